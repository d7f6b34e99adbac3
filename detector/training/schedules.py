"""Learning-rate schedules by name: pure functions of the step, so that a resumed run needs no saved schedule.

These depend on the share of the run that is done; Darknet's policies, in `darknet/`, count updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from detector.config.registry import PartConfig, build, register

# From the progress after warm-up, 0..1, and the number of the update, 1.., to a factor on the peak learning rate.
Schedule: TypeAlias = Callable[[float, int], float]


@dataclass(frozen=True)
class ScheduleConfig(PartConfig[Schedule]):
    """The kind `schedule`: from progress after warm-up, 0..1, and the number of the update, 1.., to a factor.

    The peak learning rate is multiplied by the factor.

    Attributes:
        warmup_iterations: steps of the warm-up, in which the rate rises from 0.
        warmup_power: shape of the rise: 1 is a straight line. Darknet's `burn_in` of n updates is a warm-up of n - 1
            steps of power 4.
        warmup_share: largest share of the run that the warm-up may take.
    """

    folders = ("training", "darknet")

    warmup_iterations: int = 100
    warmup_power: float = 1.0
    warmup_share: float = 0.2

    def __post_init__(self) -> None:
        if self.warmup_iterations < 0:
            raise ValueError(f"a schedule: expected warmup_iterations >= 0, got {self.warmup_iterations}")
        if not (self.warmup_power > 0 and 0 <= self.warmup_share <= 1):
            raise ValueError(
                f"a schedule: expected warmup_power > 0 and warmup_share within 0..1, got {self.warmup_power} and "
                f"{self.warmup_share}"
            )


def check_final(final: float) -> None:
    """Require 0 < final <= 1 for a factor of a schedule.

    Raises:
        ValueError: the factor lies outside.
    """
    if not 0 < final <= 1:
        raise ValueError(f"a schedule: expected 0 < final <= 1, got {final}")


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
            check_final(self.final)

    def __init__(self, config: Config) -> None:
        self._final = config.final

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at a progress of 0..1."""
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
            check_final(self.final)

    def __init__(self, config: Config) -> None:
        self._final = config.final

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at a progress of 0..1."""
        return 1 + (self._final - 1) * progress


@register("constant")
class Constant:
    """The peak learning rate for the whole run."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the constant schedule, which has a warm-up only."""

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, progress: float, update: int) -> float:
        """Return 1."""
        return 1.0


@register("steps")
class Steps:
    """A drop by a factor at each milestone, which is a share of the run."""

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
                raise ValueError(f"steps: expected 0 < gamma <= 1, got {self.gamma}")
            if list(self.milestones) != sorted(self.milestones) or not all(0 <= m <= 1 for m in self.milestones):
                raise ValueError(f"steps: expected ascending milestones within 0..1, got {self.milestones}")

    def __init__(self, config: Config) -> None:
        self._milestones, self._gamma = config.milestones, config.gamma

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at a progress of 0..1."""
        return float(self._gamma ** sum(progress >= m for m in self._milestones))


@register("flat_cosine")
class FlatCosine:
    """The peak for a share of the run, then half a cosine to `final`, as in the published recipe of Ranger and Mish."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            flat: share of the run at the peak, 0 <= flat < 1; 0.72 as in the entries of the fast.ai leaderboard (2019).
            final: factor at the end, 0 < final <= 1.
        """

        flat: float = 0.72
        final: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            check_final(self.final)
            if not 0 <= self.flat < 1:
                raise ValueError(f"flat_cosine: expected 0 <= flat < 1, got {self.flat}")

    def __init__(self, config: Config) -> None:
        self._flat, self._final = config.flat, config.final

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at a progress of 0..1."""
        falling = max(0.0, progress - self._flat) / (1 - self._flat)
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * falling)) / 2


@register("one_cycle")
class OneCycle:
    """Half a cosine up to the peak, then one down to nearly 0 (Smith and Topin 2017); momentum stays constant.

    The rise replaces the warm-up: `warmup_iterations` is 0 unless set.
    """

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule; the defaults are those of torch's `OneCycleLR`.

        Attributes:
            rise: share of the run until the peak, 0 < rise < 1.
            first: factor at the start, 0 < first <= 1.
            final: factor at the end, 0 < final <= 1.
        """

        warmup_iterations: int = 0
        rise: float = 0.3
        first: float = 0.04
        final: float = 4e-6

        def __post_init__(self) -> None:
            super().__post_init__()
            check_final(self.final)
            check_final(self.first)
            if not 0 < self.rise < 1:
                raise ValueError(f"one_cycle: expected 0 < rise < 1, got {self.rise}")

    def __init__(self, config: Config) -> None:
        self._rise, self._first, self._final = config.rise, config.first, config.final

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at a progress of 0..1."""
        low, share = self._first, 1 - progress / self._rise
        if progress > self._rise:
            low, share = self._final, (progress - self._rise) / (1 - self._rise)
        return low + (1 - low) * (1 + math.cos(math.pi * share)) / 2


@register("power")
class PowerDecay:
    """A power of the remaining share of the run, from 1 to `final` ("poly" of Chen et al. 2017, DeepLab, section 4)."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule; Darknet's `poly` counts updates instead.

        Attributes:
            exponent: the power; 0.9 is DeepLab's.
            final: factor at the end, 0 < final <= 1.
        """

        exponent: float = 0.9
        final: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            check_final(self.final)
            if self.exponent <= 0:
                raise ValueError(f"power: expected exponent > 0, got {self.exponent}")

    def __init__(self, config: Config) -> None:
        self._exponent, self._final = config.exponent, config.final

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at a progress of 0..1."""
        return float(self._final + (1 - self._final) * (1 - progress) ** self._exponent)


class LearningRate:
    """The factor on the peak learning rate at each step: a warm-up, then the schedule.

    Attributes:
        warmup_steps: steps of the warm-up.
    """

    def __init__(self, config: ScheduleConfig, num_steps: int) -> None:
        """Set up the factors of a run of `num_steps` steps."""
        self._schedule = build(config)
        self._num_steps, self._power = num_steps, config.warmup_power
        self.warmup_steps = min(config.warmup_iterations, int(num_steps * config.warmup_share))

    def factor(self, step: int) -> float:
        """Return the factor at a 0-based step."""
        if step < self.warmup_steps:
            return float(((step + 1) / (self.warmup_steps + 1)) ** self._power)
        progress = (step - self.warmup_steps) / max(1, self._num_steps - 1 - self.warmup_steps)
        return float(self._schedule(progress, step + 1))
