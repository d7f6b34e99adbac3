"""The one reader of COCO annotation files: what leaves it is finite, consistent and safe to train on and to score.

The format: https://cocodataset.org/#format-data. Boxes are kept as the file writes them, because an evaluation must
score what the file says; `CocoAnnotations.source_xyxy` gives them clipped, for training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco_file import parse, place, read_categories, read_images, read_rows, sections
from detector.data.problems import Findings, Problem
from detector.errors import DatasetError
from detector.geometry import clip_xyxy, xywh_to_xyxy

# COCO writes coordinates with two decimals, so that a corner, a sum of two, may be off by this many pixels.
_ROUNDING_PX = 0.01


@dataclass(frozen=True, eq=False)
class CocoAnnotations:
    """The usable images and boxes of one COCO file, as flat arrays; N images in the file's order, A boxes, C classes.

    Attributes:
        annotations: the file.
        images: the folder of the images; None where the reader was told not to look at images.
        class_names: C names, sorted by category id: label i stands for `category_ids[i]`.
        category_ids: C original category ids, ascending.
        image_ids: int64 (N,), original image ids.
        file_names: N file names as written, relative to `images`.
        image_hw: int64 (N, 2), height and width as written; 0, 0 where the file does not give them.
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
    image_ids: npt.NDArray[np.int64]
    file_names: tuple[str, ...]
    image_hw: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    problems: tuple[Problem, ...]

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
        category_of_row = np.asarray(self.category_ids, dtype=np.int64)[self.labels].tolist()
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
    image_entries, category_entries, entries = sections(parse(annotations), require_annotations, findings)
    findings.raise_refusals()
    class_names, category_ids = read_categories(category_entries, findings)
    table = read_images(image_entries, images, allow_outside, findings)
    rows = read_rows(entries, table, category_ids, ignore_unknown, findings)
    findings.raise_refusals()

    image_index, positions = np.array(rows.image_index, dtype=np.int64), np.array(rows.positions, dtype=np.int64)
    boxes_xywh = np.array(rows.boxes, dtype=np.float64).reshape(-1, 4)
    areas, labels = np.array(rows.areas, dtype=np.float64), np.array(rows.labels, dtype=np.int64)

    def place_of(row: int) -> str:
        position = int(positions[row])
        return place(entries[position], position, table.file_names[image_index[row]])

    keep = usable_boxes(boxes_xywh, table.image_hw[image_index], place_of, findings)
    without_area = np.flatnonzero(keep & np.isnan(areas))
    for row in without_area.tolist():
        findings.accept("annotation without area, width x height is taken", place_of(row))
    areas[without_area] = boxes_xywh[without_area, 2] * boxes_xywh[without_area, 3]

    present = np.flatnonzero(table.is_present)
    num_boxes = np.bincount(image_index[keep], minlength=len(table.ids))[present]
    for index in present[num_boxes == 0].tolist():
        findings.accept("image without annotations", table.file_names[index])
    findings.raise_if_too_many_skipped("images", len(table.ids) - len(present), len(table.ids))
    num_wanted = len(entries) - rows.num_ignored
    findings.raise_if_too_many_skipped("boxes", num_wanted - int(keep.sum()), num_wanted)

    order = np.flatnonzero(keep)[np.argsort(image_index[keep], kind="stable")]
    return CocoAnnotations(
        annotations=annotations,
        images=images,
        class_names=class_names,
        category_ids=category_ids,
        image_ids=np.array(table.ids, dtype=np.int64)[present],
        file_names=tuple(table.file_names[index] for index in present),
        image_hw=table.image_hw[present],
        offsets=np.concatenate([[0], np.cumsum(num_boxes)]).astype(np.int64),
        boxes_xywh=boxes_xywh[order],
        labels=labels[order],
        is_crowd=np.array(rows.is_crowd, dtype=np.bool_)[order],
        areas=areas[order],
        problems=findings.problems,
    )


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
    keep = np.ones(len(boxes_xywh), dtype=np.bool_)
    for kind, is_wrong in (
        ("box with a number that is not finite", ~is_finite.all(axis=1)),
        ("box of negative width or height", (width < 0) | (height < 0)),
        ("box of zero width or height", (width == 0) | (height == 0)),
        ("box wholly outside the image", (corners[:, 2:] <= 0).any(axis=1) | (corners >= limit)[:, :2].any(axis=1)),
        ("box too thin to have an area in single precision", (visible[:, 2:] <= visible[:, :2]).any(axis=1)),
    ):
        for row in np.flatnonzero(keep & is_wrong).tolist():
            findings.skip(kind, place_of(row))
        keep &= ~is_wrong
    is_partly_outside = (corners < -_ROUNDING_PX).any(axis=1) | (corners > limit + _ROUNDING_PX).any(axis=1)
    for row in np.flatnonzero(keep & is_partly_outside).tolist():
        findings.accept("box partly outside the image", place_of(row))
    return keep
