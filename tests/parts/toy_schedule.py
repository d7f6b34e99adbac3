"""Example of a schedule: one file in `detector/training/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

from detector.config.registry import register
from detector.training.schedules import ScheduleConfig


@register("toy")
class InverseRoot:
    """Learning rate that falls with the square root of the number of updates (Vaswani et al. 2017, section 5.3)."""

    @dataclass(frozen=True)
    class Config(ScheduleConfig):
        """Settings of the schedule.

        Attributes:
            flat: updates with the peak learning rate.
        """

        flat: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.flat < 1:
                raise ValueError(f"the toy schedule: expected flat >= 1, got {self.flat}")

    def __init__(self, config: Config) -> None:
        self._flat = config.flat

    def __call__(self, progress: float, update: int) -> float:
        """Return the factor of an update, which counts from 1."""
        return float(min(1.0, (self._flat / update) ** 0.5))
