from __future__ import annotations

import math
from typing import Any

import pytest

import detector.experiment  # noqa: F401 (registers every schedule)
from detector.engine.schedule import Constant, Cosine, LearningRate, LinearDecay, ScheduleConfig, Steps
from detector.registry import build, find, names

SCHEDULES = names(ScheduleConfig)
RUNS = [1, 2, 7, 50, 1000]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", RUNS)
def test_every_factor_of_a_run_is_finite_and_above_zero_and_at_most_one(name: str, num_steps: int) -> None:
    rate = LearningRate(find(ScheduleConfig, name).Config(), num_steps)
    factors = [rate.factor(step) for step in range(num_steps)]
    assert all(math.isfinite(f) and 0 < f <= 1 for f in factors)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("warmup", "num_steps", "expected"), [(100, 1000, 100), (100, 200, 40), (0, 100, 0), (5, 4, 0)]
)
def test_warm_up_is_a_straight_line_up_to_the_peak_and_at_most_a_fifth_of_the_run(
    name: str, warmup: int, num_steps: int, expected: int
) -> None:
    rate = LearningRate(find(ScheduleConfig, name).Config(warmup_iterations=warmup), num_steps)
    factors = [rate.factor(step) for step in range(expected + 1)]
    assert factors == pytest.approx([(step + 1) / (expected + 1) for step in range(expected + 1)])
    assert factors[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_warm_up_the_factor_never_rises(name: str) -> None:
    rate = LearningRate(find(ScheduleConfig, name).Config(warmup_iterations=20), 300)
    factors = [rate.factor(step) for step in range(20, 300)]
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_factor_is_the_schedule_of_the_progress_after_warm_up(name: str) -> None:
    config = find(ScheduleConfig, name).Config(warmup_iterations=10)
    rate, schedule = LearningRate(config, 111), build(config)
    for step in range(10, 111):
        assert rate.factor(step) == pytest.approx(schedule((step - 10) / 100))
    assert rate.factor(110) == pytest.approx(schedule(1.0))


@pytest.mark.parametrize("final", [0.02, 0.5, 1.0])
def test_cosine_is_half_a_cosine_from_1_to_its_final_factor(final: float) -> None:
    cosine = Cosine(Cosine.Config(final=final))
    for progress, share in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)):
        assert cosine(progress) == pytest.approx(final + (1 - final) * share)


@pytest.mark.parametrize("final", [0.01, 0.3])
def test_linear_is_a_straight_line_from_1_to_its_final_factor(final: float) -> None:
    linear = LinearDecay(LinearDecay.Config(final=final))
    for progress in (0, 0.25, 0.5, 1):
        assert linear(progress) == pytest.approx((1 - progress) + final * progress)


def test_constant_is_one_throughout() -> None:
    assert [Constant(Constant.Config())(progress) for progress in (0, 0.3, 1)] == [1.0] * 3


def test_steps_fall_at_each_milestone_and_not_before() -> None:
    steps = Steps(Steps.Config(milestones=(0.5, 0.8, 0.8), gamma=0.5))
    found = [steps(progress) for progress in (0, 0.499, 0.5, 0.799, 0.8, 1)]
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.125, 0.125])


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (Cosine, {"final": 0.0}, "0 < final <= 1"),
        (Cosine, {"final": -0.1}, "0 < final <= 1"),
        (LinearDecay, {"final": 1.5}, "0 < final <= 1"),
        (Steps, {"milestones": (0.9, 0.8)}, "ascending milestones"),
        (Steps, {"milestones": (0.5, 1.2)}, "ascending milestones"),
        (Steps, {"gamma": 0.0}, "0 < gamma <= 1"),
    ],
)
def test_senseless_settings_are_refused(part: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part.Config(**settings)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_negative_warm_up_is_refused_by_every_schedule(name: str) -> None:
    with pytest.raises(ValueError, match="warmup_iterations >= 0, found -5"):
        find(ScheduleConfig, name).Config(warmup_iterations=-5)
