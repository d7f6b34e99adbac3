"""AP by size and shape of objects and by the number of objects in their image; recall by overlap of objects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from detector.evaluation.matching import match
from detector.evaluation.ranking import Floats, Ranking, mean_precision, weighted_precision
from detector.evaluation.scoring_arrays import GroundTruth, Results, shared_groups

SIZE_EDGES_PX = (
    0,
    16,
    32,
    64,
    96,
    128,
    256,
    math.inf,
)  # sides of squares of the same area; 32 and 96 are COCO's bounds
ASPECT_EDGES = (0, 1 / 3, 2 / 3, 3 / 2, 3, math.inf)  # width over height
OVERLAP_EDGES = (0.0, 0.2, 0.4, 1.0)
_AT_50 = 0


@dataclass(frozen=True)
class Slice:
    """Numbers of a group of objects; a number without objects is NaN.

    Attributes:
        name: the property that the objects share.
        num_objects: number of objects.
        ap: AP over IoU 0.50:0.95; NaN for slices that have recall only.
        ap50: AP at IoU 0.5.
        recall: share of the objects that are detected at IoU 0.5, of all classes together.
    """

    name: str
    num_objects: int
    ap: float
    ap50: float
    recall: float


def size_slices(truth: GroundTruth, results: Results) -> tuple[Slice, ...]:
    """Return slices by the side of a square as large as the object, in pixels, with COCO's rule for areas."""
    edges = SIZE_EDGES_PX
    names = [f"{low:g} to {high:g} px" if high < math.inf else f"from {low:g} px" for low, high in _pairs(edges)]
    return _by_range(truth, results, names, [edge**2 for edge in edges], (truth.areas, results.areas))


def aspect_slices(truth: GroundTruth, results: Results) -> tuple[Slice, ...]:
    """Return slices by width over height of the box, with COCO's rule for areas."""
    names = [
        "tall, beyond 1:3",
        "upright, 1:3 to 2:3",
        "square, 2:3 to 3:2",
        "lying, 3:2 to 3:1",
        "wide, beyond 3:1",
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        measures = [np.nan_to_num(boxes[:, 2] / boxes[:, 3]) for boxes in (truth.boxes_xywh, results.boxes_xywh)]
    return _by_range(truth, results, names, ASPECT_EDGES, (measures[0], measures[1]))


def crowding_slices(truth: GroundTruth, ranking: Ranking, num_groups: int = 3) -> tuple[Slice, ...]:
    """Return slices by number of objects per image, of about as many images each; AP is that of these images alone."""
    num_objects = np.bincount(truth.image_ranks[~truth.is_crowd], minlength=len(truth.image_ids))
    present = num_objects[num_objects > 0]
    if not len(present):
        return ()
    bounds = np.unique(np.quantile(present, np.arange(1, num_groups + 1) / num_groups, method="inverted_cdf"))
    slices, low = [], int(present.min())
    for high in bounds.astype(int).tolist():
        weights = ((num_objects >= low) & (num_objects <= high)).astype(np.int32)[None]
        precision = weighted_precision(ranking, weights, weights)[0]
        is_counted = weights[0, ranking.units] > 0
        num_wanted = int(weights[0, ranking.object_images].sum())
        recall = float(ranking.is_right[_AT_50, is_counted].sum() / num_wanted)
        name = f"{low} to {high} objects" if high > low else f"{low} object{'s' if low > 1 else ''}"
        slices.append(Slice(name, num_wanted, mean_precision(precision), mean_precision(precision[_AT_50]), recall))
        low = high + 1
    return tuple(slices)


def overlap_slices(truth: GroundTruth, ranking: Ranking) -> tuple[Slice, ...]:
    """Return slices by the greatest overlap (IoU) of an object with another one of any class: recall only."""
    wanted = np.flatnonzero(~truth.is_crowd)
    wanted = wanted[np.argsort(truth.image_ranks[wanted], kind="stable")]
    greatest = np.zeros(len(truth.areas))
    images = truth.image_ranks[wanted]
    for _, group in shared_groups(np.unique(images), images):
        boxes = truth.boxes_xywh[wanted[group]]
        overlaps = mask.iou(boxes, boxes, np.zeros(len(boxes), np.uint8))
        np.fill_diagonal(overlaps, 0)
        greatest[wanted[group]] = overlaps.max(axis=1)
    is_found = np.zeros(len(truth.areas), np.bool_)
    is_found[ranking.truth_rows[_AT_50, ranking.is_right[_AT_50]]] = True
    slices = []
    for low, high in _pairs((-1.0, *OVERLAP_EDGES)):
        is_in = ~truth.is_crowd & (greatest > low) & (greatest <= high)
        recall = float(is_found[is_in].mean()) if is_in.any() else math.nan
        name = "no overlap" if high == 0 else f"IoU {low:g} to {high:g}"
        slices.append(Slice(name, int(is_in.sum()), math.nan, math.nan, recall))
    return tuple(slices)


def _by_range(
    truth: GroundTruth, results: Results, names: Sequence[str], edges: Sequence[float], measures: tuple[Floats, Floats]
) -> tuple[Slice, ...]:
    """Return AP within each range of a measure of objects and detections; both ends belong to a range, as in COCO."""
    matches = match(truth, results, ranges=np.array(_pairs(edges)), measures=measures)
    ones = np.ones((1, len(truth.image_ids)), np.int32)
    slices = []
    for number, name in enumerate(names):
        ranking = Ranking.of(truth, results, matches, number)
        precision = weighted_precision(ranking, ones, ones)[0]
        num_objects = len(ranking.object_images)
        recall = float(ranking.is_right[_AT_50].sum() / num_objects) if num_objects else math.nan
        slices.append(Slice(name, num_objects, mean_precision(precision), mean_precision(precision[_AT_50]), recall))
    return tuple(slices)


def _pairs(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(edges))
