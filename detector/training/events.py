"""What the engine tells whoever watches it; the engine itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.structures.metrics import Metrics


@dataclass(frozen=True)
class Event:
    """Base of everything the engine reports."""


@dataclass(frozen=True)
class Started(Event):
    """A run begins (or goes on).

    Attributes:
        folder: the run folder.
        num_steps: optimiser steps of the whole run.
        first_step: the step it begins with, above 0 after a resume.
        num_epochs: passes over the data set that the steps amount to.
        precision: number format of the network.
        device: where it runs.
    """

    folder: Path
    num_steps: int
    first_step: int
    num_epochs: float
    precision: str
    device: str


@dataclass(frozen=True)
class StepDone(Event):
    """An optimiser step is done.

    Attributes:
        step: steps done so far.
        num_steps: steps of the whole run.
        losses: mean of each loss part since the last evaluation.
        images_per_s: images per second since the run started or resumed, evaluations excluded.
    """

    step: int
    num_steps: int
    losses: Mapping[str, float]
    images_per_s: float


@dataclass(frozen=True)
class Evaluated(Event):
    """The averaged weights were measured.

    Attributes:
        step: steps done so far.
        metrics: what was found.
        is_best: whether its headline number is the best of the run.
        elapsed_s: seconds of the run, those before a resume included.
    """

    step: int
    metrics: Metrics
    is_best: bool
    elapsed_s: float


@dataclass(frozen=True)
class Noted(Event):
    """Something the user should know: a skipped image, a fallback.

    Attributes:
        text: one sentence.
    """

    text: str


Report = Callable[[Event], None]
