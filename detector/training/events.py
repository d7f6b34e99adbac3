"""Events that training reports to its observer; training itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.structures.metrics import Metrics


@dataclass(frozen=True)
class Event:
    """Base class of the events."""


@dataclass(frozen=True)
class Started(Event):
    """A run starts or resumes.

    Attributes:
        folder: the run folder.
        num_steps: optimiser steps of the whole run.
        first_step: the step it starts at, above 0 after a resume.
        num_epochs: passes over the data set in all steps.
        precision: number format of the network.
        device: the device of the run.
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
        losses: mean of each loss part since the last evaluation, on a GPU without the last few steps.
        images_per_s: images per second since the run started or resumed, evaluations excluded.
    """

    step: int
    num_steps: int
    losses: Mapping[str, float]
    images_per_s: float


@dataclass(frozen=True)
class Evaluated(Event):
    """The averaged weights were evaluated.

    Attributes:
        step: steps done so far.
        metrics: the metrics.
        is_best: whether the headline number is the best of the run.
        elapsed_s: seconds of the run, including those before a resume.
    """

    step: int
    metrics: Metrics
    is_best: bool
    elapsed_s: float


@dataclass(frozen=True)
class Noted(Event):
    """A note for the user, such as a skipped image or a fallback.

    Attributes:
        text: one sentence.
        is_of_data: whether it is about one image or one line of an annotation file, of which there may be many.
        is_warning: whether it changes the meaning of the numbers, so that it is shown also by a quiet command.
    """

    text: str
    is_of_data: bool = False
    is_warning: bool = False


Report = Callable[[Event], None]
