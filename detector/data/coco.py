"""Reader of COCO annotation files: its result is finite, consistent and safe to train on and to score.

The format: https://cocodataset.org/#format-data. Boxes are kept as written in the file, because an evaluation
must score them as written; `CocoAnnotations.source_xyxy` returns them clipped, for training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from detector.data.coco_file import CocoParts, Names, find_images, image_sizes, read_parts
from detector.data.coco_rows import (
    CROWD,
    FROM_POLYGONS,
    FROM_RUNS,
    IGNORE,
    ROUNDING_PX,
    WITHOUT_BOX,
    other_format,
    usable_boxes,
    without_rows,
)
from detector.data.problems import Findings, Problem, shown
from detector.errors import DatasetError, MediaError
from detector.io.remote import may_open
from detector.media.images import image_hw as read_image_hw
from detector.structures.boxes import clip_xyxy, xywh_to_xyxy

# Python's integers where an id takes more than 64 bits.
ImageIds: TypeAlias = "npt.NDArray[np.int64] | npt.NDArray[np.object_]"


@dataclass(frozen=True, eq=False)
class CocoAnnotations:
    """Usable images and boxes of one annotation file, as flat arrays.

    There are N images in the order of the file, A boxes and C classes.

    Attributes:
        annotations: the file.
        images: the folder of the images; None where the file was read without images.
        class_names: C names, sorted by category id: label i stands for `category_ids[i]`.
        category_ids: C original category ids, ascending.
        image_ids: int64 (N,), original image ids; Python's integers (dtype object) where one takes more bits.
        file_names: N file names as written, relative to `images`; any sequence is converted to `Names`.
        image_hw: int64 (N, 2), height and width as written, or else of the image file; 0, 0 where neither is known.
        offsets: int64 (N + 1,); the boxes of image i are the rows `offsets[i]:offsets[i + 1]`.
        boxes_xywh: float64 (A, 4), pixels of the source image, as written: not clipped, width and height above 0.
        labels: int64 (A,), 0..C-1.
        is_crowd: bool (A,), regions that stand for many objects: ignored in evaluation, left out of training.
        areas: float64 (A,), square pixels, as written (the area of the object's mask in COCO itself) or width x height.
        problems: kinds of faults that were skipped, accepted or noted.
    """

    annotations: Path
    images: Path | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: ImageIds
    file_names: Sequence[str]
    image_hw: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    problems: tuple[Problem, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.file_names, Names):
            object.__setattr__(self, "file_names", Names(self.file_names))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.file_names)

    @property
    def num_boxes(self) -> int:
        """Number of boxes, crowd regions included."""
        return len(self.labels)

    def digest(self) -> str:
        """Return the SHA-256 of the content, as 64 hex digits; it does not depend on the folders of the files."""
        arrays = (self.image_hw, self.offsets, self.boxes_xywh, self.labels, self.is_crowd, self.areas)
        blocks = (np.ascontiguousarray(array).data for array in arrays)
        return digest_of((self.class_names, self.category_ids), self.image_ids.tolist(), self.file_names, blocks)

    def path(self, index: int) -> Path:
        """Return the file of an image.

        Raises:
            ValueError: the annotations were read without a folder of images.
        """
        if self.images is None:
            raise ValueError(
                f"path: expected annotations read with a folder of images, got {self.annotations} without one"
            )
        return self.images / self.file_names[index]

    def _rows(self, index: int) -> slice:
        position = range(len(self))[index]  # rejects an index past the end, counts a negative one from the end
        return slice(int(self.offsets[position]), int(self.offsets[position + 1]))

    def source_xyxy(self, index: int, image_hw: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Return the boxes of an image: float32 (n, 4), source pixels, clipped to the image where its size is known.

        Args:
            index: the image.
            image_hw: height and width of the decoded image, upright; by default those of `image_hw`.
        """
        height, width = image_hw or self.image_hw[index].tolist()
        source_xyxy = xywh_to_xyxy(self.boxes_xywh[self._rows(index)])
        if height and width:
            source_xyxy = clip_xyxy(source_xyxy, (height, width))
        return source_xyxy.astype(np.float32)

    def labels_of(self, index: int) -> npt.NDArray[np.int64]:
        """Return the labels of an image: int64 (n,), a copy."""
        return self.labels[self._rows(index)].copy()

    def is_crowd_of(self, index: int) -> npt.NDArray[np.bool_]:
        """Return a mask of the boxes of an image that are crowd regions: bool (n,), a copy."""
        return self.is_crowd[self._rows(index)].copy()

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations as a COCO dictionary that pycocotools scores correctly.

        Image and category ids are the original ones. Annotation ids count from 1 (pycocotools takes id 0 for "no match"
        and loses that box), boxes are not clipped, `area` and `iscrowd` are always present.
        """
        image_of_row = np.repeat(self.image_ids, np.diff(self.offsets)).tolist()
        category_of_row = [self.category_ids[label] for label in self.labels.tolist()]
        columns = zip(
            image_of_row, category_of_row, self.boxes_xywh.tolist(), self.areas.tolist(), self.is_crowd, strict=True
        )
        images = zip(self.image_ids.tolist(), self.file_names, self.image_hw.tolist(), strict=True)
        return {
            "info": {},
            "images": [{"id": i, "file_name": name, "height": hw[0], "width": hw[1]} for i, name, hw in images],
            "categories": [
                {"id": i, "name": name} for i, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": [
                {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": int(crowd)}
                for i, (image, category, box, area, crowd) in enumerate(columns, start=1)
            ],
        }


def _fault(folder: Path) -> str:
    return "is a file" if folder.exists() else "does not exist"


def read_coco(
    annotations: Path,
    images: Path | None,
    *,
    ignore_unknown: bool = False,
    require_annotations: bool = True,
    allow_outside: bool = False,
) -> CocoAnnotations:
    """Read a COCO annotation file and check all of it.

    Faults that would change the meaning of the data set are refused, all of them in one error. A single unusable entry
    (a missing image, a box without area) is skipped, an odd but clear one is accepted; `problems` counts both.

    Args:
        annotations: the JSON file.
        images: the folder that file names are relative to; None to read no image file.
        ignore_unknown: skip annotations of categories that the file does not list, instead of refusing the file; they
            do not count towards `MAX_SKIPPED_SHARE`.
        require_annotations: whether a file without the key `annotations` is refused.
        allow_outside: whether file names may lead out of the folder of images.

    Raises:
        DatasetError: the file or the folder of images cannot be read, the file is refused, no image is usable, or more
            than `MAX_SKIPPED_SHARE` of the images or boxes would be skipped.
    """
    if images is not None and not images.is_dir() and not may_open(images):
        raise DatasetError(f"the folder of images {images} (for {annotations}) {_fault(images)}; check the path")
    findings = Findings(str(annotations))
    parts = read_parts(annotations, require_annotations, allow_outside, findings)
    is_present = find_images(parts.images, images, findings)
    return checked_annotations(parts, annotations, images, is_present, findings, ignore_unknown)


def checked_annotations(
    parts: CocoParts,
    annotations: Path,
    images: Path | None,
    is_present: npt.NDArray[np.bool_],
    findings: Findings,
    ignore_unknown: bool = False,
) -> CocoAnnotations:
    """Return the usable images and boxes of the sections of a file, checked as `read_coco` does.

    Args:
        parts: the sections; those of the images may be changed.
        annotations: the file, or the one that stands for it.
        images: the folder that file names are relative to, or None.
        is_present: bool (N,), which images have a file; may be changed.
        findings: the faults so far; the others are added.
        ignore_unknown: as in `read_coco`.

    Raises:
        DatasetError: as `read_coco` raises.
    """
    image_hw = image_sizes(parts.images, images, is_present, findings)
    kept = checked_rows(parts, is_present, image_hw, images, findings, ignore_unknown)
    num_boxes = np.bincount(kept.image_index, minlength=len(is_present))
    present = require_enough(parts.images.file_names, is_present, num_boxes, kept.num_listed, kept.hint, findings)
    order = np.argsort(kept.image_index, kind="stable")
    return CocoAnnotations(
        annotations=annotations,
        images=images,
        class_names=parts.class_names,
        category_ids=parts.category_ids,
        image_ids=_as_array(list(parts.images.index_of))[present],
        file_names=Names(parts.images.file_names[index] for index in present.tolist()),
        image_hw=image_hw[present],
        offsets=np.concatenate([[0], np.cumsum(num_boxes[present])]).astype(np.int64),
        boxes_xywh=kept.boxes_xywh[order],
        labels=kept.labels[order],
        is_crowd=kept.is_crowd[order],
        areas=kept.areas[order],
        problems=findings.problems,
    )


@dataclass(frozen=True)
class KeptRows:
    """Usable annotations of a file, or of a part of it: B rows in the order of the file.

    Attributes:
        image_index: int64 (B,), position of the image in the file.
        labels, is_crowd, areas, boxes_xywh: as in `CocoAnnotations`.
        num_listed: annotations that were looked at, without those of ignored categories.
        hint: another box format that the boxes seem to have, or an empty text.
    """

    image_index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    boxes_xywh: npt.NDArray[np.float64]
    num_listed: int
    hint: str


def checked_rows(
    parts: CocoParts,
    is_present: npt.NDArray[np.bool_],
    image_hw: npt.NDArray[np.int64],
    images: Path | None,
    findings: Findings,
    ignore_unknown: bool,
) -> KeptRows:
    """Return the usable annotations of the sections of a file.

    Args:
        parts: the sections.
        is_present: bool (N,), which images are used.
        image_hw: int64 (N, 2), their sizes; those that are listed before they are turned upright are exchanged.
        images: the folder of the images, or None.
        findings: the faults so far; the others are added.
        ignore_unknown: as in `read_coco`.

    Raises:
        DatasetError: the file is refused.
    """
    columns = _Columns(parts)
    keep, num_ignored = _linked_rows(columns, is_present, ignore_unknown, findings)
    findings.raise_refusals()
    _exchange_sides(columns, keep, image_hw, images, findings)
    keep, hint = _usable_rows(columns, keep, image_hw, findings)
    areas = _areas(columns, keep, findings)
    is_crowd = (columns.flags & CROWD) > 0
    num_listed, boxes_xywh = len(parts.rows) - num_ignored, columns.boxes_xywh[keep]
    index, labels = columns.image_index[keep], columns.labels[keep]
    return KeptRows(index, labels, is_crowd[keep], areas[keep], boxes_xywh, num_listed, hint)


def require_enough(
    file_names: Sequence[str],
    is_present: npt.NDArray[np.bool_],
    num_boxes: npt.NDArray[np.int64],
    num_listed: int,
    hint: str,
    findings: Findings,
) -> npt.NDArray[np.int64]:
    """Return the positions of the images that are used; note those without boxes.

    Args:
        file_names: N names.
        is_present: bool (N,), which images are used.
        num_boxes: int64 (N,), usable boxes of each.
        num_listed: as in `KeptRows`.
        hint: as in `KeptRows`.
        findings: the faults so far; images without boxes are added.

    Raises:
        DatasetError: too many images or boxes would be skipped.
    """
    findings.count(
        "image without annotations", "noted", np.flatnonzero(is_present & (num_boxes == 0)), lambda i: file_names[i]
    )
    present = np.flatnonzero(is_present)
    findings.raise_if_too_many_skipped("images", len(is_present) - len(present), len(is_present))
    findings.raise_if_too_many_skipped("boxes", num_listed - int(num_boxes.sum()), num_listed, hint)
    return present


def digest_of(
    classes: tuple[Sequence[str], Sequence[int]],
    image_ids: Sequence[int],
    file_names: Iterable[str],
    blocks: Iterable[bytes | memoryview],
) -> str:
    """Return the SHA-256 of annotations from class names and ids, images, and the bytes of the arrays, in order."""
    names = [name.rpartition("/")[2] for name in file_names]
    content = hashlib.sha256(json.dumps((*classes, image_ids, names)).encode())
    for block in blocks:
        content.update(block)
    return content.hexdigest()


class _Columns:
    """Annotations of a file as arrays of A rows, linked to its images and categories.

    Attributes:
        rows: the annotations as read.
        file_names: the name of each image of the file.
        image_index: int64 (A,), position of the image in the file; -1 where the file does not list it.
        labels: int64 (A,), position of the category, by id; -1 where the file does not list it.
        flags: int8 (A,), bits of `detector.data.coco_rows`.
        boxes_xywh: float64 (A, 4), as written.
    """

    def __init__(self, parts: CocoParts) -> None:
        self.rows, self.file_names = parts.rows, parts.images.file_names
        rows, label_of = parts.rows, {identifier: label for label, identifier in enumerate(parts.category_ids)}
        self.image_index = _indices(rows.image_ids, parts.images.index_of)[np.array(rows.image_ranks, dtype=np.int64)]
        self.labels = _indices(rows.category_ids, label_of)[np.array(rows.category_ranks, dtype=np.int64)]
        self.flags = np.array(rows.flags, dtype=np.int8)
        self.boxes_xywh = np.array(rows.boxes, dtype=np.float64).reshape(-1, 4)

    def place_of(self, row: int) -> str:
        """Return a row as a message names it."""
        return f"{self.rows.name(row)} of {self.file_names[self.image_index[row]]}"


def _usable_rows(
    columns: _Columns, keep: npt.NDArray[np.bool_], image_hw: npt.NDArray[np.int64], findings: Findings
) -> tuple[npt.NDArray[np.bool_], str]:
    """Return which of the rows to keep have a usable box, bool (A,), and a hint at another box format."""
    flags, place_of = columns.flags, columns.place_of
    is_bare = (flags & WITHOUT_BOX) > 0
    keep = without_rows(keep, is_bare, "annotation without four numbers for a box", place_of, findings)
    findings.count("annotation id used twice", "accepted", columns.rows.repeated(), columns.rows.name)
    for bit, kind in (
        (FROM_POLYGONS, "annotation without bbox, the box around its polygons is taken"),
        (FROM_RUNS, "annotation without bbox, the box around its run lengths is taken"),
        (IGNORE, "ignore flag, which has no effect"),
    ):
        findings.count(kind, "accepted", np.flatnonzero(keep & ((flags & bit) > 0)), place_of)
    kept = np.flatnonzero(keep)
    boxes_xywh, sizes_hw = columns.boxes_xywh[kept], image_hw[columns.image_index[kept]]

    def place_of_kept(position: int) -> str:
        return place_of(int(kept[position]))

    hint = other_format(boxes_xywh, sizes_hw, place_of_kept, findings)
    keep[kept] = usable_boxes(boxes_xywh, sizes_hw, place_of_kept, findings)
    return keep, hint


def _exchange_sides(
    columns: _Columns,
    keep: npt.NDArray[np.bool_],
    image_hw: npt.NDArray[np.int64],
    folder: Path | None,
    findings: Findings,
) -> None:
    """Exchange height and width in `image_hw` of images that were listed with the size before EXIF turns them upright.

    Boxes belong to the upright image. A box beyond the listed size is the reason to look at the header of the file;
    without a folder of images, all boxes of the image must be within the exchanged size.
    """
    rows = np.flatnonzero(keep & np.isfinite(columns.boxes_xywh).all(axis=1))
    image_index = columns.image_index[rows]
    with np.errstate(over="ignore"):  # a box of 1e308 pixels is rejected later
        ends = columns.boxes_xywh[rows, :2] + columns.boxes_xywh[rows, 2:]
    width_height = image_hw[image_index][:, ::-1]
    is_beyond = (ends > width_height + ROUNDING_PX).any(axis=1) & (width_height > 0).all(axis=1)
    is_beyond_exchanged = (ends > width_height[:, ::-1] + ROUNDING_PX).any(axis=1)
    unfit = set(image_index[is_beyond_exchanged].tolist())
    exchanged = []
    for index in np.unique(image_index[is_beyond]).tolist():
        listed_hw = (int(image_hw[index, 0]), int(image_hw[index, 1]))
        if folder is None:
            is_exchanged = index not in unfit
        else:
            try:
                is_exchanged = read_image_hw(folder / columns.file_names[index]) == listed_hw[::-1] != listed_hw
            except MediaError:  # reported when the image is read
                continue
        if is_exchanged:
            image_hw[index] = listed_hw[::-1]
            exchanged.append(index)
    kind = "image listed with the size before it is turned upright"
    findings.count(kind, "accepted", np.array(exchanged, np.int64), lambda index: columns.file_names[index])


def _areas(columns: _Columns, keep: npt.NDArray[np.bool_], findings: Findings) -> npt.NDArray[np.float64]:
    """Return the area of each row, float64 (A,): width x height where a row to keep gives none."""
    areas = np.array(columns.rows.areas, dtype=np.float64)
    without_area = np.flatnonzero(keep & np.isnan(areas))
    findings.count("annotation without area, width x height is taken", "accepted", without_area, columns.place_of)
    areas[without_area] = columns.boxes_xywh[without_area, 2] * columns.boxes_xywh[without_area, 3]
    return areas


def _as_array(identifiers: list[int]) -> ImageIds:
    """Return identifiers as int64 where all fit, else as Python's integers."""
    fits = all(-(2**63) <= identifier < 2**63 for identifier in identifiers)
    return np.array(identifiers, dtype=np.int64 if fits else object)


def _indices(identifiers: dict[int, int], listed: Mapping[int, int]) -> npt.NDArray[np.int64]:
    """Return the position of each identifier in a list of the file; -1 where it is not listed."""
    return np.array([listed.get(identifier, -1) for identifier in identifiers], dtype=np.int64)


def _linked_rows(
    columns: _Columns, is_present: npt.NDArray[np.bool_], ignore_unknown: bool, findings: Findings
) -> tuple[npt.NDArray[np.bool_], int]:
    """Return which rows belong to a present image and to a category, bool (A,), and how many are ignored."""
    rows, place_of = columns.rows, columns.place_of
    image_ids, category_ids = list(rows.image_ids), list(rows.category_ids)

    def place_without_image(row: int) -> str:
        return f"{rows.name(row)} of image {shown(str(image_ids[rows.image_ranks[row]]))}"

    def place_with_category(row: int) -> str:
        return f"{place_of(row)}, category {category_ids[rows.category_ranks[row]]}"

    keep = np.ones(len(rows), dtype=np.bool_)
    keep = without_rows(keep, columns.image_index < 0, "annotation of an unlisted image", place_without_image, findings)
    is_unlisted = keep & (columns.labels < 0)
    if ignore_unknown:
        keep = without_rows(keep, is_unlisted, "annotation of an unlisted category", place_with_category, findings)
    elif is_unlisted.any():
        ranks = np.array(rows.category_ranks)[is_unlisted]
        _, first = np.unique(ranks, return_index=True)
        first_rows = np.flatnonzero(is_unlisted)[np.sort(first)].tolist()
        listed = ", ".join(f"{category_ids[rows.category_ranks[r]]} (by {place_of(r)})" for r in first_rows[:10])
        more = f" and {len(first_rows) - 10} more" if len(first_rows) > 10 else ""
        findings.refuse(f"annotations use category ids that 'categories' does not list: {listed}{more}")
    keep = without_rows(keep, ~is_present[columns.image_index], "annotation of a missing image", place_of, findings)
    return keep, int(is_unlisted.sum()) if ignore_unknown else 0
