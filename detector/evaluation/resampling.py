"""Uncertainty of a number: intervals over images, a paired test of two models, mean and deviation over seeds.

The images of a set are a sample; AP would differ with other images. The bootstrap (Efron 1979) draws sets of as many
images from them, with replacement, and shows how AP varies. The test counts how often a difference as large arises when
the detections of the two models are swapped at random in each image (a permutation test; Smucker et al. 2007 compare
such tests for ranked results). Both take the models as given; only runs with other seeds show how much the number
varies between training runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.errors import DatasetError
from detector.evaluation.precision_recall import IOU_THRESHOLDS, RECALLS
from detector.evaluation.ranking import Floats, Ranking, Weights, mean_precision, weighted_precision

NUM_RESAMPLES = 1000
LEVEL = 0.95
_AT_75 = int(np.flatnonzero(IOU_THRESHOLDS == 0.75)[0])
_CHUNK_BYTES = 64_000_000  # size of the largest array at a time


@dataclass(frozen=True)
class Interval:
    """Number with its interval; all NaN where there is nothing to measure it on.

    Attributes:
        value: the number of the set itself.
        low: lower end of the percentile interval.
        high: upper end of the interval.
        deviation: standard deviation over the resamples, the standard error of the value.
    """

    value: float
    low: float
    high: float
    deviation: float

    def __str__(self) -> str:
        return "n/a" if math.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f} .. {self.high:.3f})"


@dataclass(frozen=True)
class Bootstrap:
    """Intervals over the images of a set.

    Attributes:
        stats: intervals of AP, AP50 and AP75, and of APs where small objects were ranked.
        class_ap: interval of the AP of each class, in the order of the categories.
        num_resamples: number of sets that were drawn.
        num_images: number of images of each set.
        level: share of the resamples within an interval.
        seed: seed of the draw.
    """

    stats: dict[str, Interval]
    class_ap: tuple[Interval, ...]
    num_resamples: int
    num_images: int
    level: float
    seed: int


@dataclass(frozen=True)
class PairedTest:
    """Paired test of a second model against a first one on one set of images.

    Attributes:
        difference: AP of the second minus AP of the first, with its interval over images.
        p_value: two-sided p-value of the permutation test: how often chance alone gives a difference as large.
        share_better: share of the resamples in which the second is better.
        num_resamples: number of resamples and number of permutations.
    """

    difference: Interval
    p_value: float
    share_better: float
    num_resamples: int


@dataclass(frozen=True)
class OverSeeds:
    """Number over runs that differ only in their seed.

    Attributes:
        mean: mean over the runs.
        deviation: standard deviation of a run (n - 1); NaN with a single run.
        low: lowest value.
        high: highest value.
        num_runs: number of runs.
    """

    mean: float
    deviation: float
    low: float
    high: float
    num_runs: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.deviation:.4f} (n = {self.num_runs}, {self.low:.4f} .. {self.high:.4f})"


def draw_weights(num_images: int, num_resamples: int, seed: int) -> Weights:
    """Return how often each image is in each resample, drawn with replacement: int32 (resamples, images)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, num_images, (num_resamples, num_images))
    rows = np.arange(num_resamples)[:, None] * num_images
    counts = np.bincount((drawn + rows).ravel(), minlength=num_resamples * num_images)
    return counts.reshape(num_resamples, num_images).astype(np.int32)


def bootstrap(
    ranking: Ranking,
    small: Ranking | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Bootstrap:
    """Return percentile intervals of AP over images (Efron and Tibshirani 1993, section 13.3).

    Args:
        ranking: the matched detections of the set.
        small: the ranking of its small objects, whose AP gets an interval, too, if there are any.
        num_resamples: number of sets to draw.
        seed: seed of the draw.
        level: share of the resamples within an interval.
    """
    own = _stats_of(ranking, _ones(ranking))[0]
    weights = draw_weights(ranking.num_images, num_resamples, seed)
    drawn = _stats_of(ranking, weights)
    intervals = [_interval(value, column, level) for value, column in zip(own.tolist(), drawn.T, strict=True)]
    stats = dict(zip(("AP", "AP50", "AP75"), intervals[:3], strict=True))
    if small is not None and len(small.object_images):
        value = float(_ap_of(small, _ones(small), _ones(small))[0])
        stats["APs"] = _interval(value, _ap_of(small, weights, weights), level)
    return Bootstrap(stats, tuple(intervals[3:]), num_resamples, ranking.num_images, level, seed)


def paired_test(
    first: Ranking, second: Ranking, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0, level: float = LEVEL
) -> PairedTest:
    """Test whether the second model's AP is higher than the first's beyond what the choice of images explains.

    Both use the same resamples, so that the difficulty of an image cancels out. The p-value counts the set as it is
    among the permutations, and is therefore never 0 (Phipson and Smyth 2010).

    Raises:
        DatasetError: the rankings are not of the same images and objects.
    """
    same = np.array_equal(first.object_images, second.object_images)
    if not same or first.num_images != second.num_images or not np.array_equal(first.num_objects, second.num_objects):
        raise DatasetError("paired test: expected results on the same ground truth, got two; evaluate both on one file")

    def difference(weights: Weights) -> Floats:
        return _ap_of(second, weights, weights) - _ap_of(first, weights, weights)

    own = float(difference(_ones(first))[0])
    drawn = difference(draw_weights(first.num_images, num_resamples, seed))
    swaps = np.random.default_rng(seed).integers(0, 2, (num_resamples, first.num_images), dtype=np.int32)
    joined, ones = first.joined(second), np.ones_like(swaps)
    # In a swapped image the first model gets the detections of the second.
    as_first = _ap_of(joined, np.concatenate([1 - swaps, swaps], axis=1), ones)
    as_second = _ap_of(joined, np.concatenate([swaps, 1 - swaps], axis=1), ones)
    as_large = np.abs(as_second - as_first) >= abs(own) - 1e-12  # equal up to rounding counts as equal
    p_value = (1 + int(as_large.sum())) / (1 + num_resamples)
    share = float(np.mean(drawn > 0) + np.mean(drawn == 0) / 2)
    return PairedTest(_interval(own, drawn, level), math.nan if math.isnan(own) else p_value, share, num_resamples)


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Return mean and deviation of a number over runs."""
    numbers = np.array(values, np.float64)
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return OverSeeds(float(numbers.mean()), deviation, float(numbers.min()), float(numbers.max()), len(numbers))


def _ones(ranking: Ranking) -> Weights:
    return np.ones((1, ranking.num_images), np.int32)


def _interval(value: float, drawn: npt.NDArray[np.float64], level: float) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if math.isnan(value) or len(known) < 2:
        return Interval(value, math.nan, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(value, low, high, float(known.std(ddof=1)))


def _chunked(ranking: Ranking, unit_weights: Weights, image_weights: Weights, each: Callable[[Floats], None]) -> None:
    """Call a function with the precision (T, recalls, C) of each weighting, computed for a few at a time."""
    largest = int(np.diff(ranking.class_ends, prepend=0).max(initial=0))
    per_weighting = max(4 * largest, 8 * len(IOU_THRESHOLDS) * len(RECALLS) * len(ranking.class_ends), 1)
    size = max(1, _CHUNK_BYTES // per_weighting)
    for start in range(0, len(unit_weights), size):
        rows = slice(start, start + size)
        for precision in weighted_precision(ranking, unit_weights[rows], image_weights[rows]):
            each(precision)


def _ap_of(ranking: Ranking, unit_weights: Weights, image_weights: Weights) -> Floats:
    """Return AP of each weighting: float64 (B,)."""
    found: list[float] = []
    _chunked(ranking, unit_weights, image_weights, lambda precision: found.append(mean_precision(precision)))
    return np.array(found)


def _stats_of(ranking: Ranking, weights: Weights) -> Floats:
    """Return AP, AP50, AP75 and AP of each class, for each weighting: float64 (B, 3 + C)."""
    found: list[list[float]] = []

    def add(precision: Floats) -> None:
        stats = [mean_precision(part) for part in (precision, precision[0], precision[_AT_75])]
        by_class = np.where(precision[0, 0] < 0, np.nan, precision.mean(axis=(0, 1)))
        found.append([*stats, *by_class.tolist()])

    _chunked(ranking, weights, weights, add)
    return np.array(found)
