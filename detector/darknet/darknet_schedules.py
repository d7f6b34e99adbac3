"""Learning-rate policies of Darknet as schedules: functions of the update number, which starts at 1."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from detector.config.registry import register
from detector.training.schedules import ScheduleConfig, check_final


@register("iteration_steps")
class IterationSteps:
    """Schedule that multiplies the rate by a given scale at each listed update: Darknet's policy `steps`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule; the defaults are those of yolov3.cfg.

        Attributes:
            iterations: updates at which the rate changes, ascending.
            scales: the factor at each of them, above 0.
        """

        iterations: tuple[int, ...] = (400_000, 450_000)
        scales: tuple[float, ...] = (0.1, 0.1)

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.iterations) != len(self.scales) or min(self.scales, default=1.0) <= 0:
                raise ValueError(
                    f"iteration_steps: expected one scale above 0 for each iteration, got {self.scales} for "
                    f"{self.iterations}"
                )
            if list(self.iterations) != sorted(self.iterations):
                raise ValueError(f"iteration_steps: expected ascending iterations, got {self.iterations}")

    def __init__(self, config: Config) -> None:
        self._steps = list(zip(config.iterations, config.scales, strict=True))

    def __call__(self, progress: float, update: int) -> float:
        """Return the product of the scales up to an update."""
        return math.prod(scale for iteration, scale in self._steps if iteration <= update)


@register("step")
class Step:
    """Schedule that multiplies the rate by a scale every `step` updates: Darknet's policy `step`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            step: updates between two changes, at least 1.
            scale: factor at each change, 0 < scale <= 1.
        """

        step: int = 10_000
        scale: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.step < 1 or not 0 < self.scale <= 1:
                raise ValueError(f"step: expected step >= 1 and 0 < scale <= 1, got {self.step} and {self.scale}")

    def __init__(self, config: Config) -> None:
        self._step, self._scale = config.step, config.scale

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at an update."""
        return float(self._scale ** (update // self._step))


@register("exp")
class Exponential:
    """Schedule that multiplies the rate by `gamma` at every update: Darknet's policy `exp`."""

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
                raise ValueError(f"exp: expected 0 < gamma <= 1, got {self.gamma}")

    def __init__(self, config: Config) -> None:
        self._gamma = config.gamma

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at an update."""
        return float(self._gamma**update)


@register("poly")
class Polynomial:
    """Schedule with a power of the remaining share of the updates, 0 from the last one on: Darknet's policy `poly`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            iterations: updates until the rate is 0, at least 1.
            power: the power, above 0.
        """

        iterations: int = 500_000
        power: float = 4.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.iterations < 1 or self.power <= 0:
                raise ValueError(f"poly: expected iterations >= 1 and power > 0, got {self.iterations}, {self.power}")

    def __init__(self, config: Config) -> None:
        self._iterations, self._power = config.iterations, config.power

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at an update."""
        return float(max(1 - update / self._iterations, 0.0) ** self._power)


@register("sigmoid")
class SigmoidDecay:
    """Schedule that falls as a logistic curve around an update: Darknet's policy `sigmoid`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            step: the update at which the factor is one half, at least 1.
            gamma: four times the slope at that update, per update, above 0.
        """

        step: int = 10_000
        gamma: float = 0.001

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.step < 1 or self.gamma <= 0:
                raise ValueError(f"sigmoid: expected step >= 1 and gamma > 0, got {self.step} and {self.gamma}")

    def __init__(self, config: Config) -> None:
        self._step, self._gamma = config.step, config.gamma

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at an update."""
        return (1 - math.tanh(self._gamma * (update - self._step) / 2)) / 2  # equals 1 / (1 + e^x) but cannot overflow


@register("sgdr")
class WarmRestarts:
    """Schedule of half cosines of growing length (Loshchilov and Hutter 2016, equation 5): Darknet's policy `sgdr`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            cycle: updates of the first cycle, at least 1.
            growth: length of a cycle as a multiple of the one before it, at least 1.
            final: factor at the end of a cycle, 0 < final <= 1.
        """

        cycle: int = 1000
        growth: int = 2
        final: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            check_final(self.final)
            if min(self.cycle, self.growth) < 1:
                raise ValueError(f"sgdr: expected cycle and growth of at least 1, got {self.cycle} and {self.growth}")

    def __init__(self, config: Config) -> None:
        self._cycle, self._growth, self._final = config.cycle, config.growth, config.final

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at an update; the last update of a cycle still belongs to that cycle."""
        start, cycle = 0, self._cycle
        while start + cycle < update:
            start, cycle = start + cycle, cycle * self._growth
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * (update - start) / cycle)) / 2


@register("random")
class RandomRate:
    """Schedule with a power of a uniform random number, drawn per update from the seed: Darknet's policy `random`."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            power: the power, above 0.
            seed: seed of the random numbers.
        """

        power: float = 4.0
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.power <= 0:
                raise ValueError(f"random: expected power > 0, got {self.power}")

    def __init__(self, config: Config) -> None:
        self._power, self._seed = config.power, config.seed

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor at an update."""
        return float(random.Random(f"{self._seed}/{update}").random() ** self._power)
