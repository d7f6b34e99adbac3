from __future__ import annotations

import math
from typing import Any

import pytest

from detector.config.registry import build, find_config_class, names
from detector.darknet.darknet_schedules import (
    Exponential,
    IterationSteps,
    Polynomial,
    RandomRate,
    SigmoidDecay,
    Step,
    WarmRestarts,
)
from detector.training.schedules import (
    Constant,
    Cosine,
    FlatCosine,
    LearningRate,
    LinearDecay,
    OneCycle,
    PowerDecay,
    ScheduleConfig,
    Steps,
)

SCHEDULES = names(ScheduleConfig)
BY_SHARE = [
    "constant",
    "cosine",
    "flat_cosine",
    "linear",
    "power",
    "steps",
]  # start at 1 after warm-up; the others count updates
RUNS = [1, 2, 7, 50, 1000]


def darknet_rates(name: str, num_steps: int, **settings: Any) -> list[float]:
    """Return the factors of a run with a Darknet policy, by default without burn-in."""
    config = find_config_class(ScheduleConfig, name)(**{"warmup_iterations": 0, "warmup_share": 1.0, **settings})
    rate = LearningRate(config, num_steps)
    return [rate.factor(step) for step in range(num_steps)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", RUNS)
def test_factors_are_finite_and_in_0_to_1(name: str, num_steps: int) -> None:
    rate = LearningRate(find_config_class(ScheduleConfig, name)(), num_steps)
    factors = [rate.factor(step) for step in range(num_steps)]
    assert all(math.isfinite(f) and 0 < f <= 1 for f in factors)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("warmup", "num_steps", "expected"), [(100, 1000, 100), (100, 200, 40), (0, 100, 0), (5, 4, 0)]
)
def test_warm_up_is_linear_and_at_most_a_fifth_of_the_run(
    name: str, warmup: int, num_steps: int, expected: int
) -> None:
    rate = LearningRate(find_config_class(ScheduleConfig, name)(warmup_iterations=warmup), num_steps)
    factors = [rate.factor(step) for step in range(expected)]
    assert factors == pytest.approx([(step + 1) / (expected + 1) for step in range(expected)])
    if name in BY_SHARE:
        assert rate.factor(expected) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"random", "one_cycle"}))
def test_factor_never_rises_after_warm_up(name: str) -> None:
    rate = LearningRate(find_config_class(ScheduleConfig, name)(warmup_iterations=20), 300)
    factors = [rate.factor(step) for step in range(20, 300)]
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
def test_factor_equals_the_schedule_at_the_progress_after_warm_up(name: str) -> None:
    config = find_config_class(ScheduleConfig, name)(warmup_iterations=10)
    rate, schedule = LearningRate(config, 111), build(config)
    for step in range(10, 111):
        assert rate.factor(step) == pytest.approx(schedule((step - 10) / 100, step + 1))
    assert rate.factor(110) == pytest.approx(schedule(1.0, 111))


@pytest.mark.parametrize("final", [0.02, 0.5, 1.0])
def test_cosine_follows_half_a_cosine_to_its_final_factor(final: float) -> None:
    cosine = Cosine(Cosine.Config(final=final))
    for progress, share in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)):
        assert cosine(progress, 1) == pytest.approx(final + (1 - final) * share)


@pytest.mark.parametrize("final", [0.01, 0.3])
def test_linear_falls_linearly_to_its_final_factor(final: float) -> None:
    linear = LinearDecay(LinearDecay.Config(final=final))
    for progress in (0, 0.25, 0.5, 1):
        assert linear(progress, 1) == pytest.approx((1 - progress) + final * progress)


def test_constant_is_always_1() -> None:
    assert [Constant(Constant.Config())(progress, 1) for progress in (0, 0.3, 1)] == [1.0] * 3


def test_steps_change_exactly_at_the_milestones() -> None:
    steps = Steps(Steps.Config(milestones=(0.5, 0.8, 0.8), gamma=0.5))
    found = [steps(progress, 1) for progress in (0, 0.499, 0.5, 0.799, 0.8, 1)]
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.125, 0.125])


# ---- Darknet's policies; k = step + 1 is the number of the update


def test_burn_in_and_steps_equal_those_of_darknet() -> None:
    """learning_rate=0.001, burn_in=4, policy=steps, steps=6,8, scales=.1,.5."""
    factors = darknet_rates(
        "iteration_steps", 9, iterations=(6, 8), scales=(0.1, 0.5), warmup_iterations=3, warmup_power=4.0
    )
    rates = [0.001 * factor for factor in factors]
    assert rates == pytest.approx([3.90625e-6, 6.25e-5, 3.1640625e-4, 1e-3, 1e-3, 1e-4, 1e-4, 5e-5, 5e-5], rel=1e-12)


def test_warm_up_is_limited_to_its_share_of_the_run() -> None:
    for share, num_warm in ((0.0, 0), (0.1, 3), (0.2, 6), (1.0, 25)):
        rate = LearningRate(Constant.Config(warmup_iterations=25, warmup_share=share), 30)
        assert sum(rate.factor(step) < 1 for step in range(30)) == num_warm


def test_scales_above_1_raise_the_rate() -> None:
    assert darknet_rates("iteration_steps", 4, iterations=(2, 4), scales=(10.0, 0.1)) == pytest.approx([1, 10, 10, 1])


def test_step_changes_every_step_updates() -> None:
    factors = darknet_rates("step", 8, step=3, scale=0.5)
    assert factors == pytest.approx([0.5 ** (k // 3) for k in range(1, 9)])


def test_exp_changes_at_every_update() -> None:
    assert darknet_rates("exp", 5, gamma=0.9) == pytest.approx([0.9**k for k in range(1, 6)])


def test_poly_falls_to_0_and_stays_there() -> None:
    factors = darknet_rates("poly", 7, iterations=5, power=2.0)
    assert factors == pytest.approx([0.64, 0.36, 0.16, 0.04, 0, 0, 0])


def test_sigmoid_falls_around_its_step_without_overflow() -> None:
    factors = darknet_rates("sigmoid", 9, step=5, gamma=0.7)
    assert factors == pytest.approx([1 / (1 + math.exp(0.7 * (k - 5))) for k in range(1, 10)])
    assert SigmoidDecay(SigmoidDecay.Config(step=1, gamma=1.0))(0.0, 10**6) == 0.0


def test_sgdr_restarts_with_cycles_of_growing_length() -> None:
    factors = darknet_rates("sgdr", 12, cycle=3, growth=2, final=0.1)

    def cosine(done: int, cycle: int) -> float:
        return 0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * done / cycle))

    wanted = (
        [cosine(k, 3) for k in (1, 2, 3)]
        + [cosine(k, 6) for k in (1, 2, 3, 4, 5, 6)]
        + [cosine(k, 12) for k in (1, 2, 3)]
    )
    assert factors == pytest.approx(wanted)


def test_random_rates_are_powers_of_uniform_numbers_and_depend_on_the_seed() -> None:
    factors = darknet_rates("random", 2000, power=2.0)
    assert factors == darknet_rates("random", 2000, power=2.0)
    assert factors != darknet_rates("random", 2000, power=2.0, seed=1)
    roots = sorted(factor**0.5 for factor in factors)
    assert max(abs(root - (i + 0.5) / 2000) for i, root in enumerate(roots)) < 0.05  # Kolmogorov, 2000 numbers


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (Cosine, {"final": 0.0}, "0 < final <= 1"),
        (Cosine, {"final": -0.1}, "0 < final <= 1"),
        (LinearDecay, {"final": 1.5}, "0 < final <= 1"),
        (Steps, {"milestones": (0.9, 0.8)}, "ascending milestones"),
        (Steps, {"milestones": (0.5, 1.2)}, "ascending milestones"),
        (Steps, {"gamma": 0.0}, "0 < gamma <= 1"),
        (IterationSteps, {"iterations": (5,)}, "one scale above 0 for each"),
        (IterationSteps, {"iterations": (5, 6), "scales": (0.1, 0.0)}, "one scale above 0 for each"),
        (IterationSteps, {"iterations": (6, 5)}, "ascending iterations"),
        (Step, {"step": 0}, "step >= 1"),
        (Exponential, {"gamma": 1.1}, "0 < gamma <= 1"),
        (Polynomial, {"power": 0.0}, "power > 0"),
        (SigmoidDecay, {"gamma": 0.0}, "gamma > 0"),
        (WarmRestarts, {"growth": 0}, "of at least 1"),
        (WarmRestarts, {"final": 0.0}, "0 < final <= 1"),
        (RandomRate, {"power": -1.0}, "power > 0"),
        (Constant, {"warmup_power": 0.0}, "warmup_power > 0"),
        (Constant, {"warmup_share": 1.5}, "warmup_share within 0..1"),
    ],
)
def test_invalid_settings_are_rejected(part: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part.Config(**settings)


@pytest.mark.parametrize("name", SCHEDULES)
def test_negative_warm_up_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="warmup_iterations >= 0, got -5"):
        find_config_class(ScheduleConfig, name)(warmup_iterations=-5)


def test_flat_cosine_is_1_and_then_follows_half_a_cosine() -> None:
    factor = FlatCosine(FlatCosine.Config(flat=0.6, final=0.1))
    assert [factor(progress, 1) for progress in (0, 0.3, 0.6)] == [1.0, 1.0, 1.0]
    assert factor(0.8, 1) == pytest.approx(0.55)
    assert factor(1, 1) == pytest.approx(0.1)


def test_one_cycle_rises_and_falls_in_half_cosines() -> None:
    factor = OneCycle(OneCycle.Config())
    found = [factor(progress, 1) for progress in (0, 0.15, 0.3, 0.65, 1)]
    assert found == pytest.approx([0.04, (0.04 + 1) / 2, 1.0, (4e-6 + 1) / 2, 4e-6])
    factors = [factor(progress / 1000, 1) for progress in range(1001)]
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_power_falls_with_a_power_of_the_remaining_share() -> None:
    factor = PowerDecay(PowerDecay.Config(exponent=2.0, final=0.2))
    assert [factor(progress, 1) for progress in (0, 0.5, 1)] == pytest.approx([1.0, 0.2 + 0.8 * 0.25, 0.2])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flat_cosine", {"flat": 1.0}),
        ("flat_cosine", {"final": 0.0}),
        ("one_cycle", {"rise": 0.0}),
        ("one_cycle", {"first": 2.0}),
        ("power", {"exponent": 0.0}),
    ],
)
def test_shares_out_of_range_are_rejected(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        find_config_class(ScheduleConfig, name)(**settings)
