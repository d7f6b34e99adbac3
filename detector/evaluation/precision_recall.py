"""Precision and recall over all that COCO's protocol varies, and pycocotools, their reference implementation."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from detector.evaluation.scoring_arrays import GroundTruth, Results

_PARAMS = Params(iouType="bbox")
IOU_THRESHOLDS: npt.NDArray[np.float64] = _PARAMS.iouThrs  # (10,), 0.50 .. 0.95
RECALLS: npt.NDArray[np.float64] = _PARAMS.recThrs  # (101,), 0.00 .. 1.00
AREA_NAMES: tuple[str, ...] = tuple(_PARAMS.areaRngLbl)  # all, small, medium, large
AREA_RANGES: npt.NDArray[np.float64] = np.array(
    _PARAMS.areaRng, np.float64
)  # (4, 2), square pixels, both ends included
LIMITS: tuple[int, ...] = tuple(_PARAMS.maxDets)  # 1, 10, 100 detections per class and image


@dataclass(frozen=True, eq=False)
class Curves:
    """Result of COCO's protocol: T IoU thresholds, R recalls, C classes, S ranges of area, L limits.

    Attributes:
        precision: float64 (T, R, C, S, L), precision at or beyond each recall; -1 without ground truth.
        recall: float64 (T, C, S, L), the recall of all detections; -1 without ground truth.
        scores: float64 (T, R, C, S, L), the score at which each recall is reached, 0 if it never is; -1 without ground
            truth.
        limits: L numbers of detections per class and image, ascending.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    limits: tuple[int, ...]


def pycocotools_curves(truth: GroundTruth, results: Results, limits: Sequence[int] = LIMITS) -> Curves:
    """Return the curves as pycocotools computes them."""
    images = [{"id": rank} for rank in range(len(truth.image_ids))]
    categories = [{"id": rank} for rank in range(len(truth.category_ids))]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        objects, found = COCO(), COCO()
        for coco, rows, areas, is_crowd in (
            (objects, truth, truth.areas, truth.is_crowd),
            (found, results, results.areas, np.zeros(len(results), np.bool_)),
        ):
            columns = zip(rows.image_ranks, rows.category_ranks, rows.boxes_xywh, areas, is_crowd, strict=True)
            annotations = [
                {
                    "id": i,
                    "image_id": int(image),
                    "category_id": int(category),
                    "bbox": box.tolist(),
                    "area": float(area),
                }
                | {"iscrowd": int(crowd)}
                for i, (image, category, box, area, crowd) in enumerate(columns, start=1)  # id 0 means "no match"
            ]
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        for annotation, score in zip(found.dataset["annotations"], results.scores.tolist(), strict=True):
            annotation["score"] = score
        objects.createIndex()
        found.createIndex()
        evaluation = COCOeval(objects, found, "bbox")
        evaluation.params.maxDets = sorted(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    numbers = evaluation.eval
    return Curves(numbers["precision"], numbers["recall"], numbers["scores"], tuple(sorted(limits)))
