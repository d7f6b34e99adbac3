"""COCO's matching and accumulation in whole arrays: the numbers of pycocotools, bit for bit, in a fraction of its time.

The rule is that of pycocotools' `COCOeval.evaluateImg`: detections of a class in an image take turns by falling score;
each takes the unmatched object of highest overlap, at equal overlap the later one, and an ignored object (a crowd, or
one outside the range of area) only if no other object matches. Overlaps are pycocotools' own. Detections with the same
turn in different images or classes are independent, so that a turn is one step for all of them, at all IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask

from detector.evaluation.precision_recall import AREA_RANGES, IOU_THRESHOLDS, LIMITS, RECALLS, Curves
from detector.evaluation.scoring_arrays import GroundTruth, Results, shared_groups

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# COCOeval caps thresholds at 1 - 1e-10, which changes none of COCO's.
_THRESHOLDS = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of detections and objects; D detections scored, A objects, T IoU thresholds, S ranges of area.

    Attributes:
        rows: int64 (D,), rows of the results, by class, then image, then falling score.
        turns: int64 (D,), the position of each among the detections of its class and image.
        truth_rows: int32 (S, T, D), the row of the ground truth that each detection matches, or -1.
        is_ignored: bool (S, T, D), detections that count neither as right nor as wrong.
        is_truth_ignored: bool (S, A), objects that need not be detected.
    """

    rows: Indices
    turns: Indices
    truth_rows: npt.NDArray[np.int32]
    is_ignored: Flags
    is_truth_ignored: Flags


def match(
    truth: GroundTruth,
    results: Results,
    limit: int = LIMITS[-1],
    *,
    ranges: npt.NDArray[np.float64] = AREA_RANGES,
    measures: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
) -> Matches:
    """Match the best detections of each class and image, at all IoU thresholds and ranges of a measure.

    Args:
        truth: the objects.
        results: the detections.
        limit: number of detections per class and image that are matched.
        ranges: float64 (S, 2), both ends included: objects outside of a range need not be detected.
        measures: the measure of every object, float64 (A,), and of every detection, float64 (N,); areas if None.
    """
    num_images = len(truth.image_ids)
    groups = results.category_ranks * num_images + results.image_ranks
    rows = np.lexsort((-results.scores, groups))  # stable, as COCOeval's sort
    turns = _positions_within(groups[rows])
    rows, turns = rows[turns < limit], turns[turns < limit]
    pairs = _overlapping(truth, results, rows, groups[rows])
    shape = (len(ranges), len(_THRESHOLDS), len(rows))
    truth_rows, is_ignored = np.full(shape, -1, np.int32), np.zeros(shape, np.bool_)
    of_truth, of_results = measures or (truth.areas, results.areas)
    measured = of_results[rows]
    low, high = ranges[:, :1], ranges[:, 1:]
    is_truth_ignored = truth.is_crowd | (of_truth < low) | (of_truth > high)
    for found, ignored, is_free_of in zip(truth_rows, is_ignored, is_truth_ignored, strict=True):
        _take_turns(pairs, truth.is_crowd, is_free_of, found)
        ignored[:] = (found >= 0) & is_free_of[found] if len(is_free_of) else False
    is_outside = (measured < low) | (measured > high)
    is_ignored |= (truth_rows < 0) & is_outside[:, None]
    return Matches(rows, turns, truth_rows, is_ignored, is_truth_ignored)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of overlapping detections and objects of one class and image; P pairs.

    Attributes:
        detections: int64 (P,), positions in `Matches.rows`.
        objects: int64 (P,), rows of the ground truth.
        overlaps: float64 (P,).
        turns: int64 (P,), the position of the detection among those of its class and image that overlap anything.
    """

    detections: Indices
    objects: Indices
    overlaps: npt.NDArray[np.float64]
    turns: Indices


def _positions_within(groups: Indices) -> Indices:
    """Return the position of each element in its run of equal elements."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def _overlapping(truth: GroundTruth, results: Results, rows: Indices, groups: Indices) -> _Pairs:
    """Return the pairs that can match at the lowest threshold."""
    truth_groups = truth.category_ranks * len(truth.image_ids) + truth.image_ranks
    objects = np.argsort(truth_groups, kind="stable")
    boxes, truth_boxes = results.boxes_xywh[rows], truth.boxes_xywh[objects]
    is_crowd = truth.is_crowd[objects].astype(np.uint8)
    found: list[tuple[Indices, Indices, npt.NDArray[np.float64]]] = []
    for own, group in shared_groups(groups, truth_groups[objects]):
        overlaps = mask.iou(boxes[own], truth_boxes[group], is_crowd[group])
        row, column = np.nonzero(overlaps >= _THRESHOLDS[0])
        found.append((row + own.start, objects[column + group.start], overlaps[row, column]))
    detections = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in found)])
    matched = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in found)])
    overlaps = np.concatenate([np.zeros(0), *(part[2] for part in found)])
    overlapping, inverse = np.unique(detections, return_inverse=True)
    return _Pairs(detections, matched, overlaps, _positions_within(groups[overlapping])[inverse])


def _take_turns(pairs: _Pairs, is_crowd: Flags, is_ignored: Flags, found: npt.NDArray[np.int32]) -> None:
    """Write the object that each detection takes, at each threshold, into `found` (T, D)."""
    # The best choice of a detection comes last: not ignored, of highest overlap, later in the file.
    order = np.lexsort((pairs.objects, pairs.overlaps, ~is_ignored[pairs.objects], pairs.detections, pairs.turns))
    detections, objects, overlaps = pairs.detections[order], pairs.objects[order], pairs.overlaps[order]
    is_taken = np.zeros((len(_THRESHOLDS), len(is_crowd)), np.bool_)
    ends = np.cumsum(np.bincount(pairs.turns)).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        own, wanted = detections[begin:end], objects[begin:end]
        is_free = (overlaps[begin:end] >= _THRESHOLDS[:, None]) & (is_crowd[wanted] | ~is_taken[:, wanted])
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        choice = np.maximum.reduceat(np.where(is_free, np.arange(end - begin), -1), starts, axis=1)
        threshold, column = np.nonzero(choice >= 0)
        taken = wanted[choice[threshold, column]]
        is_taken[threshold, taken] = True
        found[threshold, own[starts[column]]] = taken


def fast_curves(truth: GroundTruth, results: Results, limits: Sequence[int] = LIMITS) -> Curves:
    """Return the curves of `pycocotools_curves`, bit for bit."""
    limits = tuple(sorted(limits))
    return accumulate(truth, results, match(truth, results, limits[-1]), limits)


def accumulate(truth: GroundTruth, results: Results, matches: Matches, limits: Sequence[int] = LIMITS) -> Curves:
    """Return precision and recall of matched detections, as pycocotools' `COCOeval.accumulate` computes them."""
    num_classes, num_areas = len(truth.category_ids), len(AREA_RANGES)
    shape = (len(_THRESHOLDS), len(RECALLS), num_classes, num_areas, len(limits))
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    recall = np.full((shape[0], *shape[2:]), -1.0)
    is_right = (matches.truth_rows >= 0) & ~matches.is_ignored
    is_wrong = (matches.truth_rows < 0) & ~matches.is_ignored
    ends = np.searchsorted(results.category_ranks[matches.rows], np.arange(num_classes), side="right").tolist()
    for label, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        num_wanted = np.count_nonzero(~matches.is_truth_ignored[:, truth.category_ranks == label], axis=1).tolist()
        own_scores = results.scores[matches.rows[begin:end]]
        by_score = np.argsort(-own_scores, kind="stable")
        for level, limit in enumerate(limits):
            order = by_score[matches.turns[begin + by_score] < limit]
            ranked = own_scores[order]
            for area in range(num_areas):
                if num_wanted[area]:
                    right, wrong = is_right[area][:, begin + order], is_wrong[area][:, begin + order]
                    at = (slice(None), slice(None), label, area, level)
                    precision[at], scores[at], recall[:, label, area, level] = _ranked(
                        right, wrong, ranked, num_wanted[area]
                    )
    return Curves(precision, recall, scores, tuple(limits))


def _ranked(
    right: Flags, wrong: Flags, ranked: npt.NDArray[np.float64], num_wanted: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return precision and score (T, R) at each recall, and recall (T,), of detections (T, n) by falling score."""
    num_right, num_wrong = right.cumsum(axis=1, dtype=np.float64), wrong.cumsum(axis=1, dtype=np.float64)
    recall = num_right / num_wanted
    precision = num_right / (num_wrong + num_right + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    at_recall = np.zeros((2, len(right), len(RECALLS)))
    for threshold in range(len(right)):
        reached = np.searchsorted(recall[threshold], RECALLS)
        reached = reached[reached < len(ranked)]
        at_recall[0, threshold, : len(reached)] = precision[threshold, reached]
        at_recall[1, threshold, : len(reached)] = ranked[reached]
    return at_recall[0], at_recall[1], recall[:, -1] if len(ranked) else np.zeros(len(right))
