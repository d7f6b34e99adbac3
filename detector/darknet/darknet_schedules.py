"""Darknet's learning-rate policies as schedules: functions of the number of the update, which starts at 1."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from detector.config.registry import register
from detector.training.schedules import ScheduleConfig, check_final


@register("iteration_steps")
class IterationSteps:
    """A factor of its own at each of some updates: Darknet's policy `steps`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule; the defaults are those of yolov3.cfg.

        Attributes:
            iterations: updates from which on the rate is changed, ascending.
            scales: the factor at each of them.
        """

        iterations: tuple[int, ...] = (400_000, 450_000)
        scales: tuple[float, ...] = (0.1, 0.1)

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.iterations) != len(self.scales) or min(self.scales, default=1.0) <= 0:
                raise ValueError(
                    f"iteration_steps wants one scale above 0 for each of its iterations, found {self.scales} for "
                    f"{self.iterations}"
                )
            if list(self.iterations) != sorted(self.iterations):
                raise ValueError(f"iteration_steps wants ascending iterations, found {self.iterations}")

    def __init__(self, config: Config) -> None:
        self._steps = list(zip(config.iterations, config.scales, strict=True))

    def __call__(self, progress: float, update: int) -> float:
        """The product of the scales up to an update."""
        return math.prod(scale for iteration, scale in self._steps if iteration <= update)


@register("step")
class Step:
    """A factor every so many updates: Darknet's policy `step`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            step: updates between two changes.
            scale: factor at each change, 0 < scale <= 1.
        """

        step: int = 10_000
        scale: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.step < 1 or not 0 < self.scale <= 1:
                raise ValueError(f"step wants step >= 1 and 0 < scale <= 1, found {self.step} and {self.scale}")

    def __init__(self, config: Config) -> None:
        self._step, self._scale = config.step, config.scale

    def __call__(self, progress: float, update: int) -> float:
        """The factor at an update."""
        return float(self._scale ** (update // self._step))


@register("exp")
class Exponential:
    """A factor at every update: Darknet's policy `exp`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            gamma: factor per update, 0 < gamma <= 1.
        """

        gamma: float = 0.9999

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.gamma <= 1:
                raise ValueError(f"exp wants 0 < gamma <= 1, found {self.gamma}")

    def __init__(self, config: Config) -> None:
        self._gamma = config.gamma

    def __call__(self, progress: float, update: int) -> float:
        """The factor at an update."""
        return float(self._gamma**update)


@register("poly")
class Polynomial:
    """A power of what is left of so many updates, 0 from the last on: Darknet's policy `poly`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            iterations: updates until the rate is 0.
            power: the power.
        """

        iterations: int = 500_000
        power: float = 4.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.iterations < 1 or self.power <= 0:
                raise ValueError(f"poly wants iterations >= 1 and power > 0, found {self.iterations}, {self.power}")

    def __init__(self, config: Config) -> None:
        self._iterations, self._power = config.iterations, config.power

    def __call__(self, progress: float, update: int) -> float:
        """The factor at an update."""
        return float(max(1 - update / self._iterations, 0.0) ** self._power)


@register("sigmoid")
class Sigmoid:
    """A falling logistic curve about an update: Darknet's policy `sigmoid`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            step: the update at which the factor is one half.
            gamma: steepness there, times 4, per update.
        """

        step: int = 10_000
        gamma: float = 0.001

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.step < 1 or self.gamma <= 0:
                raise ValueError(f"sigmoid wants step >= 1 and gamma > 0, found {self.step} and {self.gamma}")

    def __init__(self, config: Config) -> None:
        self._step, self._gamma = config.step, config.gamma

    def __call__(self, progress: float, update: int) -> float:
        """The factor at an update."""
        return (1 - math.tanh(self._gamma * (update - self._step) / 2)) / 2  # 1 / (1 + e^x), without its overflow


@register("sgdr")
class WarmRestarts:
    """Half cosines of growing length (Loshchilov and Hutter 2016, equation 5): Darknet's policy `sgdr`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            cycle: updates of the first cycle.
            growth: how many times as long as the last a cycle is.
            final: factor at the end of a cycle, 0 < final <= 1.
        """

        cycle: int = 1000
        growth: int = 2
        final: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            check_final(self.final)
            if min(self.cycle, self.growth) < 1:
                raise ValueError(f"sgdr wants cycle and growth of at least 1, found {self.cycle} and {self.growth}")

    def __init__(self, config: Config) -> None:
        self._cycle, self._growth, self._final = config.cycle, config.growth, config.final

    def __call__(self, progress: float, update: int) -> float:
        """The factor at an update; the last one of a cycle still belongs to it."""
        start, cycle = 0, self._cycle
        while start + cycle < update:
            start, cycle = start + cycle, cycle * self._growth
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * (update - start) / cycle)) / 2


@register("random")
class RandomRate:
    """A power of a uniform random number at every update, a function of the seed: Darknet's policy `random`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            power: the power.
            seed: seed of the numbers.
        """

        power: float = 4.0
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.power <= 0:
                raise ValueError(f"random wants power > 0, found {self.power}")

    def __init__(self, config: Config) -> None:
        self._power, self._seed = config.power, config.seed

    def __call__(self, progress: float, update: int) -> float:
        """The factor at an update."""
        return float(random.Random(f"{self._seed}/{update}").random() ** self._power)
