"""Thresholds on the score: precision, recall and F1 at each one, the best ones, and the calibration of scores.

A detection is right if COCO's matching says so at IoU 0.5 with at most 100 detections of a class in an image. Matching
goes by falling score, so that detections below a threshold do not change the matches of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.errors import ConfigError
from detector.evaluation.ranking import Flags, Floats, Integers, Ranking

NUM_BINS = 10  # of a reliability diagram, equal in width
_AT_50 = 0


@dataclass(frozen=True, eq=False)
class RankedScores:
    """Detections of one class or of several together, by falling score; N detections without the ignored ones.

    Attributes:
        scores: float64 (N,), descending.
        is_right: bool (N,).
        num_objects: objects to detect.
    """

    scores: Floats
    is_right: Flags
    num_objects: int

    @classmethod
    def of(cls, ranking: Ranking, label: int | None = None) -> RankedScores:
        """Return the counts of a class, or of all classes together."""
        end = None if label is None else int(ranking.class_ends[label])
        begin = 0 if not label else int(ranking.class_ends[label - 1])
        rows = slice(begin, end)
        is_counted = ~ranking.is_ignored[_AT_50, rows]
        scores, is_right = ranking.scores[rows][is_counted], ranking.is_right[_AT_50, rows][is_counted]
        order = np.argsort(-scores, kind="stable")
        num = ranking.num_objects
        return cls(scores[order], is_right[order], int(num.sum() if label is None else num[label]))

    def at(self, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
        """Return precision, recall and F1 of the detections of at least each score (K,); NaN where they are 0 of 0."""
        num_kept = np.searchsorted(-self.scores, -thresholds, side="right")
        num_right = np.concatenate([[0], np.cumsum(self.is_right)])[num_kept]
        with np.errstate(invalid="ignore"):
            precision = num_right / num_kept
            recall = num_right / np.float64(self.num_objects)
            f1 = 2 * num_right / np.float64(num_kept + self.num_objects)
        return precision, recall, f1


@dataclass(frozen=True)
class Threshold:
    """Lowest score of the detections that are shown, and the numbers to expect then; a number of 0 of 0 is NaN.

    Attributes:
        confidence: the threshold, midway between the last score kept and the next one.
        precision: share of the detections kept that are right.
        recall: share of the objects that are detected.
        f1: harmonic mean of precision and recall.
        is_reached: whether the target is reached; if not, the threshold is the one that comes nearest to it.
    """

    confidence: float
    precision: float
    recall: float
    f1: float
    is_reached: bool


@dataclass(frozen=True)
class Target:
    """Target of a threshold: the best F1, the best recall at a precision or the best precision at a recall.

    Attributes:
        name: f1, precision or recall.
        value: the required precision or recall, 0..1; None for f1.
    """

    name: str = "f1"
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target that a text names: `f1`, `precision=0.9`, `recall=0.8`.

        Raises:
            ConfigError: the text names no target.
        """
        name, _, number = text.partition("=")
        if text == "f1":
            return cls()
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in ("precision", "recall") or not 0 < value <= 1:
            raise ConfigError(
                f"target of thresholds: expected f1, precision=0.9 or recall=0.8, got {text!r}; give one of them"
            )
        return cls(name, value)

    def __str__(self) -> str:
        return "best F1" if self.value is None else f"{self.name} of at least {self.value:g}"


def choose_threshold(counts: RankedScores, target: Target) -> Threshold | None:
    """Return the best threshold for a target, the highest of equal ones; None without objects or detections."""
    if not counts.num_objects or not len(counts.scores):
        return None
    last = np.flatnonzero(np.diff(counts.scores, append=-np.inf))  # equal scores are kept together
    precision, recall, f1 = counts.at(counts.scores[last])
    is_reached = np.ones(len(last), np.bool_)
    if target.value is None:
        best = int(np.argmax(f1))
    else:
        reaching, gained = (precision, recall) if target.name == "precision" else (recall, precision)
        is_reached = reaching >= target.value
        # The first that reaches the target with the most of the other number; if none does, the first that is nearest.
        best = int(np.argmax(np.where(is_reached, gained, -1.0) if is_reached.any() else reaching))
    end = int(last[best])
    kept = float(counts.scores[end])
    below = float(counts.scores[end + 1]) if end + 1 < len(counts.scores) else kept
    middle = (kept + below) / 2
    confidence = middle if below < middle < kept else kept
    return Threshold(confidence, float(precision[best]), float(recall[best]), float(f1[best]), bool(is_reached[best]))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of scores: of detections with a score of 0.8, eight in ten should be right; B bins of equal width.

    The bins divide 0..1. The error is the expected calibration error (Naeini et al. 2015) with precision at IoU 0.5 in
    place of accuracy, the D-ECE of Kueppers et al. 2020, equation 4, with the confidence as its only dimension.

    Attributes:
        edges: float64 (B + 1,).
        counts: int64 (B,), detections in each bin; a score on an edge belongs to the bin above it.
        confidence: float64 (B,), their mean score; NaN in empty bins.
        precision: float64 (B,), the share that is right; NaN in empty bins.
        error: mean distance of score and precision, weighted by the counts; NaN without detections.
        largest_error: the largest distance of a bin with detections.
        excess: mean score minus precision of all detections: above 0 the scores are too high.
        lowest: the lowest score included.
    """

    edges: Floats
    counts: Integers
    confidence: Floats
    precision: Floats
    error: float
    largest_error: float
    excess: float
    lowest: float

    def to_plain(self) -> dict[str, object]:
        """Return the calibration as plain data."""
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in vars(self).items()}


def calibrate(counts: RankedScores, lowest: float = 0.0, num_bins: int = NUM_BINS) -> Calibration:
    """Compare scores with precision, of the detections with at least the lowest score and at most 1."""
    is_used = (counts.scores >= max(lowest, 0.0)) & (counts.scores <= 1)
    scores, is_right = counts.scores[is_used], counts.is_right[is_used].astype(np.float64)
    edges = np.arange(num_bins + 1) / num_bins
    bins = np.minimum(np.searchsorted(edges, scores, side="right") - 1, num_bins - 1)
    num = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, scores, num_bins) / num
        precision = np.bincount(bins, is_right, num_bins) / num
    gaps = np.abs(confidence - precision)[num > 0]
    if not len(scores):
        return Calibration(edges, num, confidence, precision, math.nan, math.nan, math.nan, lowest)
    error = float((gaps * num[num > 0]).sum() / len(scores))
    excess = float(scores.mean() - is_right.mean())
    return Calibration(edges, num, confidence, precision, error, float(gaps.max()), excess, lowest)


def choose_thresholds(ranking: Ranking, target: Target) -> tuple[Threshold | None, tuple[Threshold | None, ...]]:
    """Return the threshold of all classes together, and the threshold of each class."""
    labels: Sequence[int] = range(len(ranking.class_ends))
    return (
        choose_threshold(RankedScores.of(ranking), target),
        tuple(choose_threshold(RankedScores.of(ranking, label), target) for label in labels),
    )
