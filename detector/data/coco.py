"""The one reader of COCO annotation files: what leaves it is finite, consistent and safe to train on and to score.

The format: https://cocodataset.org/#format-data. Boxes are kept as the file writes them, because an evaluation must
score what the file says; `CocoAnnotations.source_xyxy` gives them clipped, for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco_file import find_images, image_sizes, read_parts
from detector.data.coco_rows import CROWD, FROM_POLYGONS, FROM_RUNS, IGNORE, WITHOUT_BOX, Rows
from detector.data.problems import Findings, Problem, shown
from detector.data.string_table import Names
from detector.errors import DatasetError
from detector.structures.boxes import clip_xyxy, xywh_to_xyxy

# COCO writes coordinates with two decimals, so that a corner, a sum of two, may be off by this many pixels.
_ROUNDING_PX = 0.01
# From this share of the boxes on, what looks like another box format is one.
_XYXY_SHARE, _NORMALISED_SHARE = 0.2, 0.5


@dataclass(frozen=True, eq=False)
class CocoAnnotations:
    """The usable images and boxes of one COCO file, as flat arrays; N images in the file's order, A boxes, C classes.

    Attributes:
        annotations: the file.
        images: the folder of the images; None where the reader was told not to look at images.
        class_names: C names, sorted by category id: label i stands for `category_ids[i]`.
        category_ids: C original category ids, ascending.
        image_ids: int64 (N,), original image ids; Python's integers (dtype object) where one takes more bits.
        file_names: N file names as written, relative to `images`; kept as `Names`, whatever sequence is given.
        image_hw: int64 (N, 2), height and width as written, or of the image file where none are; 0, 0 where neither is.
        offsets: int64 (N + 1,); the boxes of image i are the rows `offsets[i]:offsets[i + 1]`.
        boxes_xywh: float64 (A, 4), pixels of the source image, as written: not clipped, width and height above 0.
        labels: int64 (A,), 0..C-1.
        is_crowd: bool (A,), regions that stand for many objects: ignored in evaluation, left out of training.
        areas: float64 (A,), square pixels, as written (the area of the object's mask in COCO itself) or width x height.
        problems: what was skipped and what was accepted although it is odd.
    """

    annotations: Path
    images: Path | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: npt.NDArray[Any]
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
        """The number of images."""
        return len(self.file_names)

    @property
    def num_boxes(self) -> int:
        """The number of boxes, crowd regions included."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of image `index`.

        Raises:
            ValueError: the annotations were read without a folder of images.
        """
        if self.images is None:
            raise ValueError(f"path wants a folder of images, found that {self.annotations} was read without one")
        return self.images / self.file_names[index]

    def _rows(self, index: int) -> slice:
        position = range(len(self))[index]  # refuses an index past the end, counts a negative one from it
        return slice(int(self.offsets[position]), int(self.offsets[position + 1]))

    def source_xyxy(self, index: int) -> npt.NDArray[np.float32]:
        """The boxes of image `index`: float32 (n, 4), source pixels, clipped to the image where its size is known."""
        height, width = self.image_hw[index].tolist()
        source_xyxy = xywh_to_xyxy(self.boxes_xywh[self._rows(index)])
        if height and width:
            source_xyxy = clip_xyxy(source_xyxy, (height, width))
        return source_xyxy.astype(np.float32)

    def labels_of(self, index: int) -> npt.NDArray[np.int64]:
        """The labels of image `index`: int64 (n,), a copy."""
        return self.labels[self._rows(index)].copy()

    def is_crowd_of(self, index: int) -> npt.NDArray[np.bool_]:
        """Which boxes of image `index` are crowd regions: bool (n,), a copy."""
        return self.is_crowd[self._rows(index)].copy()

    def ground_truth(self) -> dict[str, Any]:
        """The same annotations as a COCO dictionary that pycocotools scores correctly.

        Image and category ids are the original ones. Annotation ids count from 1 (pycocotools takes id 0 for "no match"
        and loses that box), boxes are not clipped, `area` and `iscrowd` are always there.
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


def read_coco(
    annotations: Path,
    images: Path | None,
    *,
    ignore_unknown: bool = False,
    require_annotations: bool = True,
    allow_outside: bool = False,
) -> CocoAnnotations:
    """Read a COCO annotation file and check all of it.

    What would make the data set mean something else is refused, all faults in one error. What is unusable by itself (a
    missing image, a box without area) is skipped and counted; what is odd but clear is accepted and counted. The counts
    are in `CocoAnnotations.problems`.

    Args:
        annotations: the JSON file.
        images: the folder that file names are relative to; None to leave image files unlooked at.
        ignore_unknown: skip annotations of categories that the file does not list, instead of refusing the file; they
            do not count towards `MAX_SKIPPED_SHARE`.
        require_annotations: whether a file without the key `annotations` is refused.
        allow_outside: whether file names may lead out of the folder of images.

    Raises:
        DatasetError: the file cannot be read or is refused, the folder of images does not exist, no image is usable, or
            more than `MAX_SKIPPED_SHARE` of the images or boxes would be skipped.
    """
    if images is not None and not images.is_dir():
        raise DatasetError(f"the folder of images {images} (for {annotations}) does not exist; check the path")
    findings = Findings(str(annotations))
    parts = read_parts(annotations, require_annotations, allow_outside, findings)
    table, rows = parts.images, parts.rows
    is_present = find_images(table, images, findings)
    image_hw = image_sizes(table, images, is_present, findings)
    label_of = {identifier: label for label, identifier in enumerate(parts.category_ids)}
    image_index = _indices(rows.image_ids, table.index_of)[np.array(rows.image_ranks, dtype=np.int64)]
    labels = _indices(rows.category_ids, label_of)[np.array(rows.category_ranks, dtype=np.int64)]

    def place_of(row: int) -> str:
        return f"{rows.name(row)} of {table.file_names[image_index[row]]}"

    keep, num_ignored = _belonging(rows, image_index, labels, is_present, ignore_unknown, place_of, findings)
    findings.raise_refusals()
    flags = np.array(rows.flags, dtype=np.int8)
    boxes_xywh = np.array(rows.boxes, dtype=np.float64).reshape(-1, 4)
    keep = _without(keep, (flags & WITHOUT_BOX) > 0, "annotation without four numbers for a box", place_of, findings)
    findings.count("annotation id used twice", "accepted", rows.repeated(), rows.name)
    for bit, kind in (
        (FROM_POLYGONS, "annotation without bbox, the box around its polygons is taken"),
        (FROM_RUNS, "annotation without bbox, the box around its run lengths is taken"),
        (IGNORE, "ignore flag, which has no effect"),
    ):
        findings.count(kind, "accepted", np.flatnonzero(keep & ((flags & bit) > 0)), place_of)
    wanted = np.flatnonzero(keep)

    def place_of_wanted(position: int) -> str:
        return place_of(int(wanted[position]))

    hint = other_format(boxes_xywh[wanted], image_hw[image_index[wanted]], place_of_wanted, findings)
    keep[wanted] = usable_boxes(boxes_xywh[wanted], image_hw[image_index[wanted]], place_of_wanted, findings)
    areas = np.array(rows.areas, dtype=np.float64)
    without_area = np.flatnonzero(keep & np.isnan(areas))
    findings.count("annotation without area, width x height is taken", "accepted", without_area, place_of)
    areas[without_area] = boxes_xywh[without_area, 2] * boxes_xywh[without_area, 3]

    present = np.flatnonzero(is_present)
    num_boxes = np.bincount(image_index[keep], minlength=len(is_present))[present]
    findings.count("image without annotations", "noted", present[num_boxes == 0], lambda i: table.file_names[i])
    findings.raise_if_too_many_skipped("images", len(is_present) - len(present), len(is_present))
    num_wanted = len(rows) - num_ignored
    findings.raise_if_too_many_skipped("boxes", num_wanted - int(keep.sum()), num_wanted, hint)

    order = np.flatnonzero(keep)[np.argsort(image_index[keep], kind="stable")]
    return CocoAnnotations(
        annotations=annotations,
        images=images,
        class_names=parts.class_names,
        category_ids=parts.category_ids,
        image_ids=_as_array(list(table.index_of))[present],
        file_names=Names(table.file_names[index] for index in present.tolist()),
        image_hw=image_hw[present],
        offsets=np.concatenate([[0], np.cumsum(num_boxes)]).astype(np.int64),
        boxes_xywh=boxes_xywh[order],
        labels=labels[order],
        is_crowd=(flags[order] & CROWD) > 0,
        areas=areas[order],
        problems=findings.problems,
    )


def _as_array(identifiers: list[int]) -> npt.NDArray[Any]:
    """Identifiers as int64 where all fit, else as Python's integers."""
    fits = all(-(2**63) <= identifier < 2**63 for identifier in identifiers)
    return np.array(identifiers, dtype=np.int64 if fits else object)


def _indices(identifiers: dict[int, int], listed: Mapping[int, int]) -> npt.NDArray[np.int64]:
    """The index of each identifier in what the file lists; -1 where it is not listed."""
    return np.array([listed.get(identifier, -1) for identifier in identifiers], dtype=np.int64)


def _without(
    keep: npt.NDArray[np.bool_],
    is_wrong: npt.NDArray[np.bool_],
    kind: str,
    place_of: Callable[[int], str],
    findings: Findings,
) -> npt.NDArray[np.bool_]:
    """`keep` without the rows that are wrong, which are counted as skipped."""
    findings.count(kind, "skipped", np.flatnonzero(keep & is_wrong), place_of)
    return keep & ~is_wrong


def _belonging(
    rows: Rows,
    image_index: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    is_present: npt.NDArray[np.bool_],
    ignore_unknown: bool,
    place_of: Callable[[int], str],
    findings: Findings,
) -> tuple[npt.NDArray[np.bool_], int]:
    """Which annotations belong to an image that is there and to a category: bool (A,); and how many are ignored."""
    image_ids, category_ids = list(rows.image_ids), list(rows.category_ids)

    def place_without_image(row: int) -> str:
        return f"{rows.name(row)} of image {shown(str(image_ids[rows.image_ranks[row]]))}"

    def place_with_category(row: int) -> str:
        return f"{place_of(row)}, category {category_ids[rows.category_ranks[row]]}"

    keep = np.ones(len(rows), dtype=np.bool_)
    keep = _without(keep, image_index < 0, "annotation of an unlisted image", place_without_image, findings)
    is_unlisted = keep & (labels < 0)
    if ignore_unknown:
        keep = _without(keep, is_unlisted, "annotation of an unlisted category", place_with_category, findings)
    elif is_unlisted.any():
        ranks = np.array(rows.category_ranks)[is_unlisted]
        _, first = np.unique(ranks, return_index=True)
        first_rows = np.flatnonzero(is_unlisted)[np.sort(first)].tolist()
        listed = ", ".join(f"{category_ids[rows.category_ranks[r]]} (by {place_of(r)})" for r in first_rows[:10])
        more = f" and {len(first_rows) - 10} more" if len(first_rows) > 10 else ""
        findings.refuse(f"annotations use category ids that 'categories' does not list: {listed}{more}")
    keep = _without(keep, ~is_present[image_index], "annotation of a missing image", place_of, findings)
    return keep, int(is_unlisted.sum()) if ignore_unknown else 0


def other_format(
    boxes_xywh: npt.NDArray[np.float64],
    image_hw: npt.NDArray[np.int64],
    place_of: Callable[[int], str],
    findings: Findings,
) -> str:
    """What else the boxes may be, if they look like another format; counted as accepted.

    Args:
        boxes_xywh: float64 (A, 4), as written.
        image_hw: int64 (A, 2), the size of the image of each box; 0, 0 where it is not known.
        place_of: names the place of a row.
        findings: where such boxes are counted.
    """
    limit = np.where(image_hw > 0, image_hw, np.inf)[:, ::-1] + _ROUNDING_PX
    start, size = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        overflows = (start + size > limit).any(axis=1)
        are_corners = overflows & (size > start).all(axis=1) & (size <= limit).all(axis=1)
        are_shares = ((boxes_xywh >= 0) & (boxes_xywh <= 1)).all(axis=1) & (size > 0).all(axis=1)
    if overflows.sum() > _XYXY_SHARE * len(boxes_xywh) and 2 * are_corners.sum() > overflows.sum():
        kind, rows = "box that looks like xyxy where xywh is wanted", np.flatnonzero(are_corners)
    elif are_shares.sum() > _NORMALISED_SHARE * len(boxes_xywh):
        kind, rows = "box that looks normalised to 0..1 where pixels are wanted", np.flatnonzero(are_shares)
    else:
        return ""
    findings.count(kind, "accepted", rows, place_of)
    return f"{len(rows)} x {kind}"


def usable_boxes(
    boxes_xywh: npt.NDArray[np.float64],
    image_hw: npt.NDArray[np.int64],
    place_of: Callable[[int], str],
    findings: Findings,
) -> npt.NDArray[np.bool_]:
    """Which boxes can be used: bool (A,).

    Args:
        boxes_xywh: float64 (A, 4), as written.
        image_hw: int64 (A, 2), the size of the image of each box; 0, 0 where it is not known.
        place_of: names the place of a row.
        findings: where the others are counted.
    """
    limit = np.where(image_hw > 0, image_hw, np.inf)[:, [1, 0, 1, 0]]
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are what is looked for
        corners = xywh_to_xyxy(boxes_xywh)
        is_finite = np.isfinite(corners.astype(np.float32))
        visible = np.clip(corners, 0, limit).astype(np.float32)  # as training sees it
    keep: npt.NDArray[np.bool_] = np.ones(len(boxes_xywh), dtype=np.bool_)
    wrong: tuple[tuple[str, Any], ...] = (
        ("box with a number that is not finite", ~is_finite.all(axis=1)),
        ("box of negative width or height", (width < 0) | (height < 0)),
        ("box of zero width or height", (width == 0) | (height == 0)),
        ("box wholly outside the image", (corners[:, 2:] <= 0).any(axis=1) | (corners >= limit)[:, :2].any(axis=1)),
        ("box too thin to have an area in single precision", (visible[:, 2:] <= visible[:, :2]).any(axis=1)),
    )
    for kind, is_wrong in wrong:
        keep = _without(keep, is_wrong, kind, place_of, findings)
    is_partly_outside = (corners < -_ROUNDING_PX).any(axis=1) | (corners > limit + _ROUNDING_PX).any(axis=1)
    findings.count("box partly outside the image", "accepted", np.flatnonzero(keep & is_partly_outside), place_of)
    return keep
