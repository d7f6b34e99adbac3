"""The twelve COCO numbers, AP per class and by size, and an operating point, of detections as written.

AP without a label is always COCO's AP, of at most 100 detections per class and image. AP with other limits is computed
on request and has the limit in its name, as `AP@maxDets=300`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from detector.data.problems import Findings
from detector.errors import ConfigError
from detector.evaluation.matching import fast_curves
from detector.evaluation.number_text import class_table, number_text, with_note
from detector.evaluation.precision_recall import (
    AREA_NAMES,
    AREA_RANGES,
    IOU_THRESHOLDS,
    LIMITS,
    RECALLS,
    Curves,
    pycocotools_curves,
)
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.io.nouns import plural

# The order of pycocotools' `stats`.
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

Backend = Literal["auto", "pycocotools", "fast"]
# `pycocotools` is the reference; `fast` gives the same bits sooner, so `auto` takes it.
BACKENDS: dict[str, Callable[[GroundTruth, Results, Sequence[int]], Curves]] = {
    "pycocotools": pycocotools_curves,
    "fast": fast_curves,
}
_AT_50 = 0
_AT_75 = int(np.flatnonzero(IOU_THRESHOLDS == 0.75)[0])


@dataclass(frozen=True)
class ClassMetrics:
    """Numbers of one class; a number without ground truth to measure it on is NaN.

    Attributes:
        name: the class; a name that several categories share is followed by the category id.
        category_id: its id in the annotation file.
        ap: AP over IoU 0.50:0.95.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ar: AR at 100 detections per image.
        num_objects: ground-truth objects, crowds excluded.
        num_detections: detections scored.
    """

    name: str
    category_id: int
    ap: float
    ap50: float
    ap75: float
    ar: float
    num_objects: int
    num_detections: int


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's numbers of one set of detections; a number without ground truth to measure it on is NaN, printed as n/a.

    Attributes:
        stats: the twelve COCO numbers by name (`STAT_NAMES`), at most 100 detections per class and image.
        other_limits: AP, AP50, AP75 and AR with other limits, by a name that holds the limit, as `AP@maxDets=300`.
        classes: the numbers of each class.
        precision: mean precision over classes at IoU 0.5, where each class has its best F1.
        recall: mean recall at the same points.
        num_images: images evaluated.
        num_objects: ground-truth objects, crowds excluded.
        num_by_size: the same objects, small, medium and large.
        num_crowds: crowd regions.
        num_detections: detections given.
        num_beyond_limit: detections beyond 100 of a class in an image, which COCO's AP ignores.
        lowest_score: the lowest score among the detections; NaN without any.
        backend: the scorer that computed the numbers, with its version.
        ground_truth_sha256: the hash of the ground truth as scored, `GroundTruth.sha256`.
    """

    # The names that readers of other programs' files know; box metrics have a (B).
    first_columns: ClassVar[Sequence[str]] = (
        "epoch",
        "step",
        "time",
        "train/box_loss",
        "train/cls_loss",
        "train/dfl_loss",
        "metrics/precision(B)",
        "metrics/recall(B)",
        "metrics/mAP50(B)",
        "metrics/mAP50-95(B)",
        "lr/pg0",
    )

    stats: dict[str, float]
    other_limits: dict[str, float]
    classes: tuple[ClassMetrics, ...]
    precision: float
    recall: float
    num_images: int
    num_objects: int
    num_by_size: dict[str, int]
    num_crowds: int
    num_detections: int
    num_beyond_limit: int
    lowest_score: float
    backend: str
    ground_truth_sha256: str = field(repr=False)

    @property
    def ap(self) -> float:
        """AP over IoU 0.50:0.95; NaN without ground truth."""
        return self.stats["AP"]

    @property
    def headline(self) -> float:
        """AP, the number that decides which of two models is better."""
        return self.ap

    def columns(self) -> dict[str, float]:
        """Return the numbers of a row of `results.csv` by column."""
        return {
            "metrics/precision(B)": self.precision,
            "metrics/recall(B)": self.recall,
            "metrics/mAP50(B)": self.stats["AP50"],
            "metrics/mAP50-95(B)": self.ap,
        }

    @property
    def class_ap(self) -> dict[str, float]:
        """AP of each class by name."""
        return {row.name: row.ap for row in self.classes}

    def to_plain(self) -> dict[str, object]:
        """Return the numbers as plain data for JSON; a number that does not exist is None."""
        plain = as_plain({"metric": "coco", **self.stats, **dataclasses.asdict(self), "class_ap": self.class_ap})
        del plain["stats"]
        return plain

    def to_text(self) -> str:
        """Return the twelve COCO numbers, those with other limits and those of each class as text."""
        stats, sizes = self.stats, self.num_by_size
        lines = [
            f"{plural(self.num_images, 'image')}, {plural(self.num_objects, 'object')} "
            f"({sizes['small']} small, {sizes['medium']} medium, {sizes['large']} large), "
            f"{plural(self.num_crowds, 'crowd region')}, {plural(self.num_detections, 'detection')}",
            f"at most 100 detections per class and image; {self.num_beyond_limit} beyond that are ignored",
            f"scored by {self.backend}",
            f"ground truth as scored: sha256 {self.ground_truth_sha256}",
            "",
            "        0.50:0.95   0.50    0.75   small  medium   large",
            "AP      " + "  ".join(f"{number_text(stats[n]):>7}" for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
            "        1 per image      10     100   small  medium   large",
            "AR      "
            + "  ".join(f"{number_text(stats[n]):>7}" for n in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")),
            "",
            *(f"{name} {number_text(value)}" for name, value in self.other_limits.items()),
            f"precision {number_text(self.precision)}  recall {number_text(self.recall)}  "
            "(IoU 0.5, best F1 of each class)",
            "",
        ]
        rows = [
            (c.name, *map(number_text, (c.ap, c.ap50, c.ap75, c.ar)), str(c.num_objects), str(c.num_detections))
            for c in self.classes
        ]
        lines += class_table(("class", "AP", "AP50", "AP75", "AR100", "objects", "detections"), rows)
        return with_note("\n".join(lines))


def as_plain(numbers: Mapping[str, object]) -> dict[str, object]:
    """Return plain data for JSON: NaN becomes None."""
    return {key: _plain_value(value) for key, value in numbers.items()}


def _plain_value(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain_value(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def score_results(
    ground_truth: Mapping[str, Any] | GroundTruth,
    results: Sequence[Mapping[str, object]] | Results,
    *,
    backend: Backend = "auto",
    other_limits: Sequence[int] = (),
) -> CocoMetrics:
    """Score COCO result records against ground truth, in float64, as written.

    Args:
        ground_truth: the objects, or a COCO data set as `CocoAnnotations.ground_truth()` returns it.
        results: the detections, or records with image_id, category_id, bbox (xywh) and score.
        backend: `pycocotools`, or `fast` for the same bits in a fraction of the time; `auto` is `fast`.
        other_limits: numbers of detections per class and image to compute AP and AR for besides COCO's.

    Raises:
        ConfigError: a limit below 1.
        DatasetError: a record is not finite, is incomplete or names an unknown image; pycocotools would count a NaN
            box as a perfect match and ignore the others silently.
    """
    if min(other_limits, default=1) < 1:
        raise ConfigError(f"limits: expected numbers of detections of at least 1, got {list(other_limits)}")
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else GroundTruth.of_mapping(ground_truth)
    if not isinstance(results, Results):
        results = checked_results(results, truth, Findings("the results"))
    name = "fast" if backend == "auto" else backend
    return summarize(truth, results, BACKENDS[name](truth, results, sorted({*LIMITS, *other_limits})), name)


def summarize(truth: GroundTruth, results: Results, curves: Curves, backend: str) -> CocoMetrics:
    """Return the numbers of curves that one of `BACKENDS` computed."""
    coco = curves.limits.index(LIMITS[-1])
    precision = curves.precision[:, :, :, 0, coco]  # of objects of any size
    recall = curves.recall[:, :, 0, coco]
    at_best = [_best_f1(precision[_AT_50, :, label]) for label in range(len(truth.category_ids))]
    known = [pair for pair in at_best if pair is not None]
    wanted, is_sized = ~truth.is_crowd, _is_of_size(truth.areas)
    objects = np.bincount(truth.category_ranks[wanted], minlength=len(truth.category_ids)).tolist()
    detections = np.bincount(results.category_ranks, minlength=len(truth.category_ids)).tolist()
    per_image = np.unique(results.category_ranks * len(truth.image_ids) + results.image_ranks, return_counts=True)[1]
    return CocoMetrics(
        stats={
            "AP": _mean(precision),
            "AP50": _mean(precision[_AT_50]),
            "AP75": _mean(precision[_AT_75]),
            **{f"AP{AREA_NAMES[a][0]}": _mean(curves.precision[:, :, :, a, coco]) for a in (1, 2, 3)},
            **{f"AR{limit}": _mean(curves.recall[:, :, 0, curves.limits.index(limit)]) for limit in LIMITS},
            **{f"AR{AREA_NAMES[a][0]}": _mean(curves.recall[:, :, a, coco]) for a in (1, 2, 3)},
        },
        other_limits={
            f"{name}@maxDets={limit}": _mean(values)
            for level, limit in enumerate(curves.limits)
            if limit not in LIMITS
            for name, values in (
                ("AP", curves.precision[:, :, :, 0, level]),
                ("AP50", curves.precision[_AT_50, :, :, 0, level]),
                ("AP75", curves.precision[_AT_75, :, :, 0, level]),
                ("AR", curves.recall[:, :, 0, level]),
            )
        },
        classes=tuple(
            ClassMetrics(
                name,
                category_id,
                _mean(precision[:, :, label]),
                _mean(precision[_AT_50, :, label]),
                _mean(precision[_AT_75, :, label]),
                _mean(recall[:, label]),
                objects[label],
                detections[label],
            )
            for label, (name, category_id) in enumerate(zip(truth.class_names, truth.category_ids, strict=True))
        ),
        precision=float(np.mean([p for p, _ in known])) if known else math.nan,
        recall=float(np.mean([r for _, r in known])) if known else math.nan,
        num_images=len(truth.image_ids),
        num_objects=int(wanted.sum()),
        num_by_size={name: int((wanted & is_sized[a]).sum()) for a, name in enumerate(AREA_NAMES) if a},
        num_crowds=int(truth.is_crowd.sum()),
        num_detections=len(results),
        num_beyond_limit=int(np.maximum(per_image - LIMITS[-1], 0).sum()),
        lowest_score=float(results.scores.min()) if len(results) else math.nan,
        backend=f"{'' if backend == 'pycocotools' else f'{backend}, overlaps of '}pycocotools {version('pycocotools')}",
        ground_truth_sha256=truth.sha256,
    )


def _is_of_size(areas: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which areas (A,) are within each of COCO's ranges, whose ends belong to both neighbours: bool (4, A)."""
    within: npt.NDArray[np.bool_] = (areas >= AREA_RANGES[:, :1]) & (areas <= AREA_RANGES[:, 1:])
    return within


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean over the entries with ground truth, as pycocotools does: it writes -1 where there is none."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else math.nan


def _best_f1(precision: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Return precision and recall at the best F1 of a class, or None where it has no ground truth."""
    if (precision < 0).any():
        return None
    best = int(np.argmax(2 * precision * RECALLS / np.maximum(precision + RECALLS, 1e-16)))
    return float(precision[best]), float(RECALLS[best])
