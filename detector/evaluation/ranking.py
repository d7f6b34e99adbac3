"""Matched detections in the order of their scores, and AP with a weight for each image.

The detections and objects of an image with weight w count w times. This gives the numbers that pycocotools computes for
a set in which images are repeated or left out, without matching again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.evaluation.matching import Matches, match
from detector.evaluation.precision_recall import RECALLS
from detector.evaluation.scoring_arrays import GroundTruth, Results

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Detections of a set in the order of AP: by class, then by falling score; D detections, T IoU thresholds.

    Attributes:
        class_ends: int64 (C,), the end of the rows of each class.
        units: int64 (D,), the unit that weighs each detection: its image or, in a joined ranking, image and model.
        scores: float64 (D,).
        rows: int64 (D,), the row of each detection in the results.
        truth_rows: int32 (T, D), the row of the ground truth that it matches, or -1.
        is_ignored: bool (T, D), detections that count neither as right nor as wrong.
        object_images: int64 (A,), the image of each object to detect, by class.
        object_ends: int64 (C,), the end of the objects of each class.
        num_images: number of images of the set.
    """

    class_ends: Integers
    units: Integers
    scores: Floats
    rows: Integers
    truth_rows: npt.NDArray[np.int32]
    is_ignored: Flags
    object_images: Integers
    object_ends: Integers
    num_images: int

    @classmethod
    def of(cls, truth: GroundTruth, results: Results, matches: Matches | None = None, area: int = 0) -> Ranking:
        """Return the ranking of results in one range of area, by default of all sizes; match them if not matched."""
        matches = match(truth, results) if matches is None else matches
        order = np.lexsort((-results.scores[matches.rows], results.category_ranks[matches.rows]))  # stable
        rows = matches.rows[order]
        is_wanted = ~matches.is_truth_ignored[area]
        labels = truth.category_ranks[is_wanted]
        by_class = np.argsort(labels, kind="stable")
        classes = np.arange(len(truth.category_ids))
        return cls(
            class_ends=np.searchsorted(results.category_ranks[rows], classes, side="right"),
            units=results.image_ranks[rows],
            scores=results.scores[rows],
            rows=rows,
            truth_rows=matches.truth_rows[area][:, order],
            is_ignored=matches.is_ignored[area][:, order],
            object_images=truth.image_ranks[is_wanted][by_class],
            object_ends=np.searchsorted(labels[by_class], classes, side="right"),
            num_images=len(truth.image_ids),
        )

    @property
    def is_right(self) -> Flags:
        """Detections that match an object to detect: bool (T, D)."""
        right: Flags = (self.truth_rows >= 0) & ~self.is_ignored
        return right

    @property
    def num_objects(self) -> Integers:
        """Number of objects to detect, by class: int64 (C,)."""
        return np.diff(self.object_ends, prepend=0)

    @property
    def labels(self) -> Integers:
        """Class of each detection: int64 (D,)."""
        return np.repeat(np.arange(len(self.class_ends)), np.diff(self.class_ends, prepend=0))

    def joined(self, other: Ranking) -> Ranking:
        """Return one ranking of the detections of two models on one set; units of the other start at `num_images`."""
        labels = np.concatenate([self.labels, other.labels])
        scores = np.concatenate([self.scores, other.scores])
        images = np.concatenate([self.units, other.units])
        order = np.lexsort((images, -scores, labels))
        return Ranking(
            class_ends=self.class_ends + other.class_ends,
            units=np.concatenate([self.units, other.units + self.num_images])[order],
            scores=scores[order],
            rows=np.concatenate([self.rows, other.rows])[order],
            truth_rows=np.concatenate([self.truth_rows, other.truth_rows], axis=1)[:, order],
            is_ignored=np.concatenate([self.is_ignored, other.is_ignored], axis=1)[:, order],
            object_images=self.object_images,
            object_ends=self.object_ends,
            num_images=self.num_images,
        )


def weighted_precision(ranking: Ranking, unit_weights: Weights, image_weights: Weights) -> Floats:
    """Return precision at or beyond each of COCO's recalls, for several weightings at once.

    With weights of 1 these are the bits of pycocotools; otherwise those it computes for the set in which the copies of
    an image follow each other, except that equal scores of one class in one image may count in another order.

    Args:
        ranking: the detections; T IoU thresholds, C classes.
        unit_weights: int32 (B, units), the weight of the detections of each unit.
        image_weights: int32 (B, images), the weight of the objects of each image.

    Returns:
        float64 (B, T, recalls, C); -1 where a class has no object to detect.
    """
    num_weightings, num_thresholds = len(unit_weights), len(ranking.truth_rows)
    found = np.full((num_weightings, num_thresholds, len(RECALLS), len(ranking.class_ends)), -1.0)
    is_right = ranking.is_right
    begin = object_begin = 0
    for label, (end, object_end) in enumerate(
        zip(ranking.class_ends.tolist(), ranking.object_ends.tolist(), strict=True)
    ):
        images = ranking.object_images[object_begin:object_end]
        num_wanted = np.take(image_weights, images, axis=1).sum(axis=1)
        if num_wanted.any():
            rows = slice(begin, end)
            own = is_right[:, rows], ranking.is_ignored[:, rows]
            found[..., label] = _of_class(*own, np.take(unit_weights, ranking.units[rows], axis=1), num_wanted)
            found[num_wanted == 0, :, :, label] = -1
        begin, object_begin = end, object_end
    return found


def _of_class(is_right: Flags, is_ignored: Flags, weights: Weights, num_wanted: Integers) -> Floats:
    """Return precision (B, T, recalls) of a class, of detections (T, n) by falling score with weights (B, n)."""
    # Recall only grows at right detections; nothing changes after the last one.
    num_used = int(np.flatnonzero(is_right.any(axis=0)).max(initial=-1)) + 1
    weights, num_weightings = weights[:, :num_used], len(weights)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 of 0 where a class has no object; the caller overwrites it
        # Number of COCO's recalls that are reached with 0, 1, ... detected objects.
        reached = np.searchsorted(RECALLS, np.arange(num_wanted.max() + 1) / num_wanted[:, None], side="right")
    num_counted = np.cumsum(weights, axis=1, dtype=np.int32)
    found = np.zeros((num_weightings, len(is_right), len(RECALLS)))
    for threshold, (right, ignored) in enumerate(zip(is_right[:, :num_used], is_ignored[:, :num_used], strict=True)):
        places = np.flatnonzero(right)
        if not len(places):
            continue
        num_right = np.cumsum(weights[:, places], axis=1, dtype=np.int32)
        counted = num_counted[:, places]
        if ignored.any():
            passed_over = np.flatnonzero(ignored)
            num_passed_over = np.cumsum(weights[:, passed_over], axis=1, dtype=np.int32)
            before = np.searchsorted(passed_over, places)
            counted = counted - np.pad(num_passed_over, ((0, 0), (1, 0)))[:, before]
        precision = num_right / (counted + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        levels = np.take_along_axis(reached, num_right, axis=1)
        steps = np.diff(levels, axis=1, prepend=0, append=len(RECALLS))  # the last are recalls that are never reached
        values = np.concatenate([precision, np.zeros((num_weightings, 1))], axis=1)
        found[:, threshold] = np.repeat(values.ravel(), steps.ravel()).reshape(num_weightings, -1)
    return found


def mean_precision(precision: Floats) -> float:
    """Return AP of precision at recalls over all classes with objects, as pycocotools does; NaN without objects."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else float("nan")
