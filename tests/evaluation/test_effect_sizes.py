"""Claims of the paired test, counted over drawn studies, and its numbers against an independent computation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from detector.evaluation.effect_sizes import (
    MIN_PAIRS,
    SIGNIFICANCE,
    corrected,
    hedges_correction,
    holm,
    interval,
    paired_effect,
    paired_t,
)

NUM_DRAWS = 1000


def claims(differences: np.ndarray) -> np.ndarray:
    """Return the claims of each study, bool (draws, comparisons), from differences (draws, comparisons, n)."""
    return holm(paired_t(differences)[2]) <= SIGNIFICANCE


def drawn(rng: np.random.Generator, how: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of runs with mean 0 and deviation 1, of several shapes."""
    if how == "skewed":
        return rng.exponential(1.0, shape) - 1
    if how == "heavy-tailed":
        return rng.standard_t(3, shape) / math.sqrt(3)
    return rng.standard_normal(shape)


# Combinations of the other axes, values of the compared one: the shipped studies `classify`, `detect` and `depth`.
SHIPPED = [(1, 3), (1, 6), (4, 3)]


def share_with_a_claim(rng: np.random.Generator, how: str, num_draws: int, family: tuple[int, int], n: int) -> float:
    """Return the share of studies of equal samples that claim a difference; each value is tested against the first."""
    runs = drawn(rng, how, (num_draws, *family, n))
    differences = (runs[:, :, 1:] - runs[:, :, :1]).reshape(num_draws, -1, n)
    return float(claims(differences).any(axis=1).mean())


@pytest.mark.parametrize("family", SHIPPED)
def test_at_most_five_percent_of_shipped_studies_of_equal_samples_claim_a_difference(family):
    """Twenty thousand studies: the true share is a little below 5 %; a thousand would measure it only to 0.7 %."""
    assert share_with_a_claim(np.random.default_rng(0), "normal", 20 * NUM_DRAWS, family, 6) <= SIGNIFICANCE


@pytest.mark.parametrize("how", ["normal", "skewed", "heavy-tailed"])
@pytest.mark.parametrize("family", [(1, 2), *SHIPPED])
@pytest.mark.parametrize("n", [5, 6, 12])
def test_equal_samples_of_any_distribution_differ_in_at_most_five_percent_of_studies(how, family, n):
    num_draws = 4 * NUM_DRAWS
    error = math.sqrt(SIGNIFICANCE * (1 - SIGNIFICANCE) / num_draws)
    # If the true share is 5 %, as for one comparison, the count is above it half of the time.
    assert share_with_a_claim(np.random.default_rng(7), how, num_draws, family, n) <= SIGNIFICANCE + 4 * error


def test_one_comparison_of_equal_samples_claims_a_difference_at_the_nominal_rate():
    """The test is exact for normal numbers: the rate is 5 %, not only at most 5 %."""
    runs = np.random.default_rng(0).standard_normal((100_000, 2, 6))
    share = claims((runs[:, 1] - runs[:, 0])[:, None]).mean()
    assert share == pytest.approx(SIGNIFICANCE, abs=0.003)  # four standard errors of the count


@pytest.mark.parametrize("num_others", [0, 1])
def test_a_shift_of_two_deviations_at_six_seeds_is_detected_in_at_least_eighty_percent(num_others):
    """One value is shifted by two deviations of a difference; a study of three activations has one that is not."""
    rng = np.random.default_rng(1)
    differences = rng.standard_normal((NUM_DRAWS, 1 + num_others, 6))
    differences[:, 0] += 2
    assert claims(differences)[:, 0].mean() >= 0.80


def test_unpaired_noise_lowers_the_power():
    """Two deviations of a run are 1.4 of a difference if the seed has no effect: detected in 79 %, not in 97 %."""
    rng = np.random.default_rng(2)
    runs = rng.standard_normal((20_000, 2, 6))
    share = claims((runs[:, 1] + 2 - runs[:, 0])[:, None]).mean()
    expected = stats.nct.sf(stats.t.isf(0.025, 5), 5, math.sqrt(2 * 6))
    assert share == pytest.approx(expected, abs=0.012)  # four standard errors
    assert expected == pytest.approx(0.789, abs=1e-3)


@pytest.mark.parametrize("num_pairs", [2, 3, 6, 25])
def test_the_numbers_equal_those_of_another_implementation(num_pairs):
    rng = np.random.default_rng(num_pairs)
    a, b = rng.normal(0.4, 0.02, num_pairs), rng.normal(0.38, 0.02, num_pairs)
    effect = paired_effect(a.tolist(), b.tolist())
    reference = stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(0.95)
    assert effect.difference == pytest.approx(np.mean(a - b), rel=1e-12)
    assert (effect.low, effect.high) == pytest.approx((low, high), rel=1e-9)
    assert paired_t(a - b)[2] == pytest.approx(reference.pvalue, rel=1e-9)
    if num_pairs >= MIN_PAIRS:
        assert effect.p_value == pytest.approx(reference.pvalue, rel=1e-9)


def test_the_effect_size_has_no_bias():
    """Its mean over many draws is the true effect size; without the correction it would be 19 % too large."""
    d = np.random.default_rng(3).normal(0.8, 1.0, (200_000, 6))
    mean, deviation, _ = paired_t(d)
    assert (hedges_correction(5) * mean / deviation).mean() == pytest.approx(0.8, abs=0.005)
    assert hedges_correction(5) == pytest.approx(1 - 3 / (4 * 5 - 1), abs=0.002)  # Hedges' approximation


@pytest.mark.parametrize("p_values", [(0.01, 0.04, 0.03, 0.2), (0.5, 0.5), (0.001, 0.9, 0.02), (0.04,)])
def test_holm_equals_the_closed_test_of_bonferroni(p_values):
    """A hypothesis is rejected if every set of hypotheses that it belongs to is rejected by Bonferroni's rule."""
    corrected_p = holm(p_values)
    for index in range(len(p_values)):
        sets = [
            chosen
            for size in range(1, len(p_values) + 1)
            for chosen in itertools.combinations(range(len(p_values)), size)
            if index in chosen
        ]
        closed = max(min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets)
        assert corrected_p[index] == pytest.approx(closed, abs=1e-15)


def test_a_comparison_without_a_test_is_not_counted_by_holm():
    found = holm([0.03, math.nan, 0.02])
    assert found[[0, 2]].tolist() == holm([0.03, 0.02]).tolist()
    assert math.isnan(found[1])


@pytest.mark.parametrize("num_pairs", range(MIN_PAIRS))
def test_few_pairs_are_described_but_not_tested(num_pairs):
    values = [0.9 + 1e-4 * i for i in range(num_pairs)]
    effect = corrected([paired_effect(values, [0.1] * num_pairs)])[0]
    assert effect.is_descriptive
    assert not effect.is_claimed
    assert effect.num_pairs == num_pairs
    assert math.isnan(effect.difference) == (num_pairs == 0)


@pytest.mark.parametrize("num_pairs", [2, 3])
def test_an_effect_size_needs_three_pairs(num_pairs):
    effect = paired_effect([0.3, 0.5, 0.9][:num_pairs], [0.1] * num_pairs)
    assert math.isnan(effect.size) == (num_pairs == 2)
    assert effect.low < effect.difference < effect.high


def test_differences_that_do_not_vary_are_never_claimed():
    constant = corrected([paired_effect([0.75] * 6, [0.5] * 6), paired_effect([0.5] * 6, [0.5] * 6)])
    assert [effect.is_claimed for effect in constant] == [False, False]
    assert math.isnan(constant[0].size)
    assert constant[0].is_descriptive
    assert constant[1].p_value == 1


def test_the_interval_of_a_mean_is_students_t_interval():
    values = [0.1, 0.15, 0.13, 0.2]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert interval(values) == pytest.approx(expected, rel=1e-9)
    assert all(math.isnan(end) for end in interval([0.3]))
