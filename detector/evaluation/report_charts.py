"""Charts of an analysis, each with a name, a title and the bytes of a PNG."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detector.evaluation.analysis import Analysis
from detector.evaluation.confidence import RankedScores
from detector.evaluation.number_text import number_text
from detector.evaluation.precision_recall import RECALLS
from detector.evaluation.ranking import Floats, weighted_precision
from detector.media import score_charts

_NUM_CONFIDENCES = 501
_MAX_CLASSES = 40  # rows of a chart with a row for each class


def charts_of(analysis: Analysis) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, title and PNG of each chart."""
    yield "errors", "AP50 lost by kind of error", error_chart(analysis)
    yield "intervals", "AP and its 95 % interval over images", _intervals(analysis)
    yield "precision-recall", "Precision and recall (IoU 0.5)", _precision_recall(analysis)
    yield from _over_confidence(analysis)
    for name, title, found in (
        ("calibration", "Calibration of all detections", analysis.calibration),
        ("calibration-shown", f"Calibration from a score of {analysis.calibration_shown.lowest:g} on",
         analysis.calibration_shown),
    ):  # fmt: skip
        yield name, title, score_charts.calibration_chart(found.edges, found.precision, found.counts)
    yield (
        "confusion",
        f"Confusion matrix, from a score of {analysis.confidence:.2f} on",
        score_charts.confusion_chart(analysis.confusion, analysis.truth.class_names),
    )
    for what, title in (
        ("size", "AP by size"),
        ("aspect", "AP by shape"),
        ("crowding", "AP by objects in the image"),
        ("overlap", "Recall by greatest overlap with another object"),
    ):
        parts = [part for part in analysis.slices[what] if part.num_objects]
        values = {part.name: part.recall if what == "overlap" else part.ap for part in parts}
        notes = {part.name: f"{number_text(values[part.name])}  of {part.num_objects:,}" for part in parts}
        label = "recall at IoU 0.5" if what == "overlap" else "AP over IoU 0.50:0.95"
        yield what, title, score_charts.bar_chart(values, label, notes)


def error_chart(analysis: Analysis) -> bytes:
    """Return a chart of the AP50 gained by fixing each kind of error."""
    errors = analysis.errors
    costs = {
        **errors.costs,
        "all false positives": errors.false_positives_cost,
        "all false negatives": errors.false_negatives_cost,
    }
    notes = {
        name: number_text(cost) + (f"  ({errors.counts[name]:,})" if name in errors.counts else "")
        for name, cost in costs.items()
    }
    return score_charts.bar_chart(costs, "AP50 gained by fixing this kind alone", notes)


def _intervals(analysis: Analysis) -> bytes:
    found = analysis.intervals
    rows = dict(found.stats)
    by_class = dict(zip(analysis.truth.class_names, found.class_ap, strict=True))
    if 1 < len(by_class) <= _MAX_CLASSES:
        rows |= {f"AP {name}": interval for name, interval in by_class.items()}
    return score_charts.interval_chart({n: (i.value, i.low, i.high) for n, i in rows.items()}, "AP")


def _precision_recall(analysis: Analysis) -> bytes:
    ones = np.ones((1, analysis.ranking.num_images), np.int32)
    precision = weighted_precision(analysis.ranking, ones, ones)[0, 0]
    precision = np.where(precision < 0, np.nan, precision)
    by_class = dict(zip(analysis.truth.class_names, precision.T, strict=True))
    is_known = np.isfinite(precision[0])
    overall = precision[:, is_known].mean(axis=1) if is_known.any() else np.full(len(RECALLS), np.nan)
    return score_charts.curve_chart(RECALLS, by_class, overall, ("recall", "precision"))


def _over_confidence(analysis: Analysis) -> Iterator[tuple[str, str, bytes]]:
    thresholds = np.linspace(0, 1, _NUM_CONFIDENCES)
    ranking = analysis.ranking
    overall = RankedScores.of(ranking).at(thresholds)
    by_class = [RankedScores.of(ranking, label).at(thresholds) for label in range(len(ranking.class_ends))]
    best = analysis.overall
    for number, name in enumerate(("precision", "recall", "F1")):
        curves: dict[str, Floats] = {
            class_name: curve[number] for class_name, curve in zip(analysis.truth.class_names, by_class, strict=True)
        }
        mark = None
        if best is not None:
            value = (best.precision, best.recall, best.f1)[number]
            mark = (best.confidence, value, f"{name} {value:.2f} at {best.confidence:.2f}")
        picture = score_charts.curve_chart(thresholds, curves, overall[number], ("lowest score shown", name), mark)
        yield name.lower(), f"{name} by threshold on the score (IoU 0.5)", picture
