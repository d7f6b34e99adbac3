"""Learning-rate schedules by name: pure functions of the progress, so that a resumed run needs no state of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from detector.registry import PartConfig, build, register


@dataclass(frozen=True)
class ScheduleConfig(PartConfig):
    """The kind `schedule`. A schedule maps the progress after warm-up, 0..1, to a factor on the peak learning rate.

    Attributes:
        warmup_iterations: steps of linear rise from 0, at most a fifth of the run.
    """

    warmup_iterations: int = 100

    def __post_init__(self) -> None:
        if self.warmup_iterations < 0:
            raise ValueError(f"a schedule wants warmup_iterations >= 0, found {self.warmup_iterations}")


def _check_final(final: float) -> None:
    if not 0 < final <= 1:
        raise ValueError(f"a schedule wants 0 < final <= 1, found {final}")


@register("cosine")
class Cosine:
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2016, equation 5, without restarts)."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the cosine schedule.

        Attributes:
            final: factor at the end, 0 < final <= 1.
        """

        final: float = 0.02

        def __post_init__(self) -> None:
            super().__post_init__()
            _check_final(self.final)

    def __init__(self, config: Config) -> None:
        self._final = config.final

    def __call__(self, progress: float) -> float:
        """The factor at a progress of 0..1."""
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * progress)) / 2


@register("linear")
class LinearDecay:
    """A straight line from 1 to `final`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the linear schedule.

        Attributes:
            final: factor at the end, 0 < final <= 1.
        """

        final: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            _check_final(self.final)

    def __init__(self, config: Config) -> None:
        self._final = config.final

    def __call__(self, progress: float) -> float:
        """The factor at a progress of 0..1."""
        return 1 + (self._final - 1) * progress


@register("constant")
class Constant:
    """The peak learning rate throughout."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """The constant schedule has a warm-up only."""

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, progress: float) -> float:
        """The factor 1."""
        return 1.0


@register("steps")
class Steps:
    """A factor at each milestone, as Darknet's policy of the same name."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the step schedule.

        Attributes:
            milestones: progress at which the rate falls, ascending, each within 0..1.
            gamma: factor at each milestone, 0 < gamma <= 1.
        """

        milestones: tuple[float, ...] = (0.8, 0.9)
        gamma: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.gamma <= 1:
                raise ValueError(f"steps wants 0 < gamma <= 1, found {self.gamma}")
            if list(self.milestones) != sorted(self.milestones) or not all(0 <= m <= 1 for m in self.milestones):
                raise ValueError(f"steps wants ascending milestones within 0..1, found {self.milestones}")

    def __init__(self, config: Config) -> None:
        self._milestones, self._gamma = config.milestones, config.gamma

    def __call__(self, progress: float) -> float:
        """The factor at a progress of 0..1."""
        return float(self._gamma ** sum(progress >= m for m in self._milestones))


class LearningRate:
    """The factor on the peak learning rate at each step: a linear warm-up, then the schedule."""

    def __init__(self, config: ScheduleConfig, num_steps: int) -> None:
        """The factors of a run of `num_steps` steps."""
        self._schedule = build(config)
        self._num_steps = num_steps
        self._warmup = min(config.warmup_iterations, num_steps // 5)

    def factor(self, step: int) -> float:
        """The factor at a 0-based step; above 0 at every step of the run."""
        if step < self._warmup:
            return (step + 1) / (self._warmup + 1)
        progress = (step - self._warmup) / max(1, self._num_steps - 1 - self._warmup)
        return float(self._schedule(progress))
