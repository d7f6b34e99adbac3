"""Ground truth and results as columns for scorers, with ranks in place of identifiers.

Scorers never see identifiers: an image id may have more bits than NumPy's integers, and pycocotools reads an annotation
id of 0 as "no match". Ranks ascend with the ids, which keeps the order in which pycocotools goes through images and
classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Objects of a split; A rows, by image and, within an image, in the order of the file.

    Attributes:
        image_ids: ids of the images, ascending, with or without objects.
        image_hw: int64 (images, 2), height and width; 0, 0 where they are not known.
        category_ids: ids of the categories, ascending.
        class_names: the name of each category; a name that several categories share is followed by the id.
        image_ranks: int64 (A,), the index of each object's image in `image_ids`.
        category_ranks: int64 (A,), the index of its category in `category_ids`.
        boxes_xywh: float64 (A, 4), source pixels, as written.
        areas: float64 (A,), square pixels, as written.
        is_crowd: bool (A,).
    """

    image_ids: tuple[int, ...]
    image_hw: npt.NDArray[np.int64]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    image_ranks: npt.NDArray[np.int64]
    category_ranks: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]

    @classmethod
    def of_annotations(cls, annotations: CocoAnnotations) -> GroundTruth:
        """Return the objects of an annotation file."""
        image_ids = annotations.image_ids.tolist()
        by_id = sorted(range(len(image_ids)), key=image_ids.__getitem__)
        rank = np.empty(len(image_ids), dtype=np.int64)
        rank[by_id] = np.arange(len(image_ids))
        image_ranks = np.repeat(rank, np.diff(annotations.offsets))
        order = np.argsort(image_ranks, kind="stable")
        return cls(
            image_ids=tuple(image_ids[index] for index in by_id),
            image_hw=annotations.image_hw[by_id],
            category_ids=annotations.category_ids,
            class_names=_unique_names(annotations.category_ids, annotations.class_names),
            image_ranks=image_ranks[order],
            category_ranks=annotations.labels[order],
            boxes_xywh=annotations.boxes_xywh[order],
            areas=annotations.areas[order],
            is_crowd=annotations.is_crowd[order],
        )

    @classmethod
    def of_mapping(cls, ground_truth: Mapping[str, Any]) -> GroundTruth:
        """Return the objects of a COCO dictionary as `CocoAnnotations.ground_truth` returns it; it must be valid."""
        images = sorted(ground_truth["images"], key=lambda image: image["id"])
        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        image_rank = {image["id"]: rank for rank, image in enumerate(images)}
        category_rank = {category["id"]: rank for rank, category in enumerate(categories)}
        rows = sorted(ground_truth["annotations"], key=lambda row: image_rank[row["image_id"]])
        category_ids = tuple(category_rank)
        return cls(
            image_ids=tuple(image_rank),
            image_hw=np.array([(i.get("height", 0), i.get("width", 0)) for i in images], np.int64).reshape(-1, 2),
            category_ids=category_ids,
            class_names=_unique_names(category_ids, [category["name"] for category in categories]),
            image_ranks=np.array([image_rank[row["image_id"]] for row in rows], np.int64),
            category_ranks=np.array([category_rank[row["category_id"]] for row in rows], np.int64),
            boxes_xywh=np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
            areas=np.array([row["area"] for row in rows], np.float64),
            is_crowd=np.array([bool(row["iscrowd"]) for row in rows], np.bool_),
        )

    @property
    def sha256(self) -> str:
        """Hash of everything that a score depends on: the ids of images and categories, and every object.

        It depends on the ground truth as scored, not on the file and its layout.
        """
        digest = hashlib.sha256(repr((self.image_ids, self.category_ids)).encode())
        for column in (self.image_ranks, self.category_ranks, self.is_crowd):
            digest.update(column.astype("<i8").tobytes())
        for numbers in (self.boxes_xywh, self.areas):
            digest.update(numbers.astype("<f8").tobytes())
        return digest.hexdigest()


def _unique_names(category_ids: tuple[int, ...], names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each category; a name that several categories share is followed by the id."""
    counts = Counter(names)
    return tuple(n if counts[n] == 1 else f"{n} ({i})" for i, n in zip(category_ids, names, strict=True))


@dataclass(frozen=True, eq=False)
class Results:
    """Detections as in a results file; N rows in its order.

    Attributes:
        image_ranks: int64 (N,), as in `GroundTruth`.
        category_ranks: int64 (N,), as in `GroundTruth`.
        boxes_xywh: float64 (N, 4), source pixels, finite.
        scores: float64 (N,), finite.
    """

    image_ranks: npt.NDArray[np.int64]
    category_ranks: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def to_records(self, truth: GroundTruth) -> list[dict[str, object]]:
        """Return the detections as COCO result records, with the ids of the ground truth; nothing is rounded."""
        columns = zip(
            self.image_ranks, self.category_ranks, self.boxes_xywh.tolist(), self.scores.tolist(), strict=True
        )
        return [
            {
                "image_id": truth.image_ids[image],
                "category_id": truth.category_ids[category],
                "bbox": box,
                "score": score,
            }
            for image, category, box, score in columns
        ]

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Square pixels of the boxes: float64 (N,)."""
        areas: npt.NDArray[np.float64] = self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3]
        return areas


def shared_groups(groups: npt.NDArray[np.int64], truth_groups: npt.NDArray[np.int64]) -> list[tuple[slice, slice]]:
    """Return the positions of the detections and objects of every group that has both.

    Args:
        groups: int64 (N,), the group of each detection, ascending; a group is a class in an image.
        truth_groups: int64 (A,), the group of each object, ascending.

    Returns:
        A slice of the detections and one of the objects, for each group.
    """
    present, starts = np.unique(truth_groups, return_index=True)
    ends = np.searchsorted(truth_groups, present, side="right")
    firsts, lasts = np.searchsorted(groups, present), np.searchsorted(groups, present, side="right")
    columns = zip(firsts.tolist(), lasts.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [(slice(first, last), slice(start, end)) for first, last, start, end in columns if first < last]
