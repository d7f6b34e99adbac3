"""Effect of one recipe against another over paired runs: difference, interval, effect size, corrected test.

Runs are paired by seed: the effect of a seed on both (order of the images, augmentation) cancels out of the difference.
The test is Student's paired t test and not an exact one: the p-value of a permutation test is a multiple of 2 / 2^n,
with six seeds at least 1/32, which is above 5 % after any correction for two comparisons. If both recipes are equal,
their runs can be swapped, so that the differences are symmetric about zero; `tests/evaluation/test_effect_sizes.py`
counts how often the t test then claims a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95  # confidence level of the intervals
SIGNIFICANCE = 0.05  # for all comparisons of a study together
MIN_PAIRS = 5  # fewer pairs are described, but not tested
_NO_DEVIATION = 1e-12  # deviations below this share of the mean are rounding


@dataclass(frozen=True)
class Effect:
    """Comparison of a recipe with the baseline, over runs of the same seeds.

    Attributes:
        num_pairs: number of seeds that both have a run of.
        difference: mean of the differences, recipe minus baseline; NaN without pairs.
        low: lower end of its 95 % t interval, for this comparison by itself; NaN with fewer than two pairs.
        high: upper end of the interval.
        deviation: standard deviation of the differences (n - 1).
        size: Hedges' g of paired differences: J(n - 1) times mean over deviation; NaN if they do not vary, and with
            fewer than three pairs.
        p_value: two-sided p-value of the paired t test; NaN with too few pairs to test.
        corrected_p: the same after Holm's correction for all comparisons of the study; NaN before it.
    """

    num_pairs: int
    difference: float
    low: float
    high: float
    deviation: float
    size: float
    p_value: float
    corrected_p: float = math.nan

    @property
    def is_descriptive(self) -> bool:
        """True if there is no test, because the pairs are too few or do not vary."""
        return math.isnan(self.p_value)

    @property
    def is_claimed(self) -> bool:
        """True if the test supports a difference; false without a test."""
        return self.corrected_p <= SIGNIFICANCE  # False for NaN

    def to_plain(self) -> dict[str, object]:
        """Return the effect as plain data for JSON; a number that does not exist is None."""
        numbers = {name: None if math.isnan(value) else value for name, value in vars(self).items()}
        return {**numbers, "is_claimed": self.is_claimed}


def paired_t(differences: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return mean, standard deviation and two-sided p-value of differences, tested against a mean of zero.

    Student's t test of one sample. Differences that do not vary have the p-value 1 if they are 0, otherwise NaN: the
    test divides by the deviation.

    Args:
        differences: float64 (..., n), n at least 2.

    Returns:
        Three arrays float64 (...).
    """
    from scipy import special  # half a second of import that a look-up of the registered metrics would pay

    d = np.asarray(differences, np.float64)
    mean, deviation = d.mean(axis=-1), d.std(axis=-1, ddof=1)
    is_constant = deviation <= _NO_DEVIATION * np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) / (deviation / math.sqrt(d.shape[-1]))
    p = np.asarray(2 * special.stdtr(d.shape[-1] - 1, -np.where(is_constant, 0.0, t)), np.float64)
    return mean, deviation, np.where(is_constant & (mean != 0), np.nan, p)


def holm(p_values: npt.ArrayLike) -> Floats:
    """Correct p-values for all others on the last axis; NaN stands for no test and is not counted.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure": the chance of any false claim stays
    below the level, however the tests depend on each other.

    Args:
        p_values: float64 (..., m).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, axis=-1)  # NaN last
    num_tests = np.sum(~np.isnan(p), axis=-1, keepdims=True)
    factors = np.maximum(num_tests - np.arange(p.shape[-1]), 1)
    ranked = np.minimum(np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1), 1.0)
    corrected = np.empty_like(ranked)
    np.put_along_axis(corrected, order, ranked, -1)
    return corrected


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of some numbers; NaN with fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy import special

    numbers = np.asarray(values, np.float64)
    half = (
        float(special.stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * float(numbers.std(ddof=1)) / math.sqrt(len(values))
    )
    return float(numbers.mean()) - half, float(numbers.mean()) + half


def paired_effect(values: Sequence[float], baseline: Sequence[float]) -> Effect:
    """Compare a recipe with the baseline, before correction.

    The effect size is that of Gibbons, Hedeker and Davis 1993 for paired samples, with Hedges' exact correction for few
    pairs (Hedges 1981, equation 6e). Its unit is the deviation of a difference of two runs.

    Args:
        values: values of the recipe, one for each seed.
        baseline: values of the baseline, for the same seeds in the same order.
    """
    d = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    if len(d) < 2:
        return Effect(len(d), float(d.mean()) if len(d) else math.nan, *[math.nan] * 5)
    mean, deviation, p_value = (float(number) for number in paired_t(d))
    varies = deviation > _NO_DEVIATION * abs(mean)
    size = hedges_correction(len(d) - 1) * mean / deviation if varies and len(d) > 2 else math.nan
    return Effect(len(d), mean, *interval(d.tolist()), deviation, size, p_value if len(d) >= MIN_PAIRS else math.nan)


def hedges_correction(degrees: int) -> float:
    """Return the factor J(m) that removes the bias of an effect size with m degrees of freedom, at least two."""
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)


def corrected(effects: Sequence[Effect]) -> list[Effect]:
    """Return all comparisons of a study, each with its p-value corrected for the others."""
    p_values = holm([effect.p_value for effect in effects]) if effects else ()
    return [replace(effect, corrected_p=float(p)) for effect, p in zip(effects, p_values, strict=True)]
