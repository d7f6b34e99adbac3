"""The twelve COCO numbers, per-class AP and an operating point, computed by pycocotools on detections as written."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.errors import DatasetError

# The order of pycocotools' `stats`.
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class CocoMetrics:
    """What one evaluation found. A number without ground truth to measure it on is NaN, printed as n/a.

    Attributes:
        stats: the twelve COCO numbers by name (`STAT_NAMES`), at most 100 detections per class and image.
        class_ap: AP of each class by name (and category id, where several classes share a name).
        precision: mean precision over classes at IoU 0.5, where each class has its best F1.
        recall: mean recall at the same points.
        num_images: images evaluated.
        num_objects: ground-truth objects, crowds excluded.
        num_crowds: crowd regions.
        num_detections: detections scored.
    """

    stats: dict[str, float]
    class_ap: dict[str, float]
    precision: float
    recall: float
    num_images: int
    num_objects: int
    num_crowds: int
    num_detections: int

    @property
    def ap(self) -> float:
        """AP over IoU 0.50:0.95; NaN without ground truth."""
        return self.stats["AP"]

    def to_plain(self) -> dict[str, Any]:
        """The same as plain data for JSON; a number that does not exist is None."""

        def plain(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            **{name: plain(value) for name, value in self.stats.items()},
            "class_ap": {name: plain(value) for name, value in self.class_ap.items()},
            "precision": plain(self.precision),
            "recall": plain(self.recall),
            "num_images": self.num_images,
            "num_objects": self.num_objects,
            "num_crowds": self.num_crowds,
            "num_detections": self.num_detections,
        }


def score_results(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> CocoMetrics:
    """Scores COCO result records against ground truth, in float64, as written.

    Args:
        ground_truth: a COCO data set as `CocoAnnotations.ground_truth()` gives it.
        results: records with image_id, category_id, bbox (xywh) and score.

    Raises:
        DatasetError: a record that is not finite, is incomplete or names an unknown image: pycocotools would count a
            NaN box as a perfect match and pass over the rest in silence.
    """
    _check_results(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        # pycocotools writes into the annotations it evaluates.
        truth.dataset = {**ground_truth, "annotations": [dict(a) for a in ground_truth["annotations"]]}
        truth.createIndex()
        found = _detections(truth, results)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = {name: _number(value) for name, value in zip(STAT_NAMES, evaluation.stats, strict=True)}
    # (IoU thresholds, recall points, classes, areas, detection limits); area 0 is all, limit -1 is 100.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = _unique_names(ground_truth["categories"])
    class_ap = {
        names[category]: _number(_mean(precision[:, :, column]))
        for column, category in enumerate(evaluation.params.catIds)
    }
    at_best = [_best_f1(precision[0, :, column], evaluation.params.recThrs) for column in range(precision.shape[2])]
    known = [pair for pair in at_best if pair is not None]
    crowds = sum(bool(a["iscrowd"]) for a in ground_truth["annotations"])
    return CocoMetrics(
        stats=stats,
        class_ap=class_ap,
        precision=float(np.mean([p for p, _ in known])) if known else math.nan,
        recall=float(np.mean([r for _, r in known])) if known else math.nan,
        num_images=len(ground_truth["images"]),
        num_objects=len(ground_truth["annotations"]) - crowds,
        num_crowds=crowds,
        num_detections=len(results),
    )


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The name of each category id; a name that several bear is followed by the id."""
    counts = Counter(category["name"] for category in categories)
    return {c["id"]: c["name"] if counts[c["name"]] == 1 else f"{c['name']} ({c['id']})" for c in categories}


def _detections(truth: COCO, results: Sequence[Mapping[str, Any]]) -> COCO:
    """The records as pycocotools' own `loadRes` makes them, which fails on an empty list."""
    found = COCO()
    found.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"]}
    found.dataset["annotations"] = [
        {**record, "id": number, "area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}
        for number, record in enumerate(results, start=1)
    ]
    found.createIndex()
    return found


def _check_results(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for number, record in enumerate(results):
        problem = None
        try:
            values = [*record["bbox"], record["score"]]
            if len(values) != 5 or not all(math.isfinite(v) for v in values):
                problem = f"a box of 4 finite numbers and a finite score are wanted, found {values}"
            elif record["image_id"] not in images:
                problem = f"image_id {record['image_id']!r} is not in the annotation file"
            elif record["category_id"] not in categories:
                problem = f"category_id {record['category_id']!r} is not in the annotation file"
        except (KeyError, TypeError, OverflowError) as error:
            problem = f"image_id, category_id, bbox and score are wanted ({type(error).__name__}: {error})"
        if problem:
            raise DatasetError(f"result {number}: {problem}; correct the results file")


def _number(value: float) -> float:
    """A pycocotools number, whose -1 means that there is no ground truth to measure it on."""
    return math.nan if value < 0 else float(value)


def _mean(values: Any) -> float:
    known = values[values > -1]
    return float(known.mean()) if len(known) else -1.0


def _best_f1(precision: Any, recall: Any) -> tuple[float, float] | None:
    """Precision and recall where a class has its best F1, or None where it has no ground truth."""
    if (precision < 0).any():
        return None
    best = int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-16)))
    return float(precision[best]), float(recall[best])
