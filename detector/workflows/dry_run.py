"""Dry run: schedule, memory and speed of a planned run."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detector.config import registry
from detector.data.canvas_sizes import training_canvases
from detector.io.machine import peak_bytes
from detector.media.run_charts import SchedulePlan
from detector.models.precision import choose_device
from detector.tasks.task import TaskConfig, open_task
from detector.training.events import Event, Noted, Report, Started
from detector.training.schedules import LearningRate
from detector.workflows.train import train

_TIMED_S, _MAX_TIMED_STEPS = 5.0, 20  # steps after the first are timed until one limit is reached
_MAX_POINTS = 2000  # of the curve of a schedule


def evaluation_steps(num_steps: int, evaluations: int) -> list[int]:
    """Return the steps after which a run is evaluated: evaluation k of n at ceil(k * steps / n)."""
    return sorted({-(-k * num_steps // evaluations) for k in range(1, evaluations + 1)})


def plan_schedule(config: TaskConfig) -> SchedulePlan:
    """Return the learning rate of the run that an experiment describes; the data set is read, nothing is trained.

    Raises:
        DatasetError: the data set cannot be used.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = config.for_fine_tuning() if config.train.weights is not None else config
    task = open_task(config, lambda event: None)
    train_config, batch_size = config.train, task.batch_size * num_processes
    num_steps = train_config.num_steps(task.num_images, batch_size)
    rate = LearningRate(config.schedule, num_steps)
    steps = sorted({step * (num_steps - 1) // _MAX_POINTS for step in range(_MAX_POINTS + 1)})
    num_batches = num_steps * train_config.accumulate
    closing_batch = num_batches - int(config.closing_share * num_batches)
    return SchedulePlan(
        name=f"{registry.name_of(config.schedule)} schedule, {registry.name_of(config.optimizer)}",
        steps=steps,
        rates=[config.optimizer.lr * rate.factor(step) for step in steps],
        warmup_steps=rate.warmup_steps,
        closing_from=closing_batch // train_config.accumulate,
        evaluations=evaluation_steps(num_steps, train_config.evaluations) if task.has_val else [],
        num_steps=num_steps,
        num_epochs=num_batches * batch_size / task.num_images,
    )


@dataclass(frozen=True)
class Rehearsal:
    """Measurements of a dry run.

    Attributes:
        num_parameters: parameters of the network.
        num_classes: classes of the data set.
        num_images: images of the training split.
        num_objects: its boxes; None where each image has one class.
        num_val_images: images of the validation split; 0 without one.
        num_val_objects: its boxes; None where each image has one class.
        evaluated_at: the steps after which the run would be evaluated.
        num_steps: optimiser steps of the run.
        num_epochs: passes over the data set in these steps.
        images_per_step: images of a step over all processes.
        device: the device of the run.
        precision: number format of the network.
        peak_bytes: peak memory of the GPU, or of the main process without a GPU; None if the system does not report it.
        largest_hw: height and width of the largest canvas, whose memory was measured too; None if the canvas is fixed.
        first_step_s: seconds until the end of the first step, including one-time work.
        step_s: seconds of a later step.
        val_image_s: seconds per validation image, scoring excluded.
        steps_s: estimated seconds of all steps.
        evaluations_s: estimated seconds of all evaluations.
        is_main: whether this process is the one that reports.
    """

    num_parameters: int
    num_classes: int
    num_images: int
    num_objects: int | None
    num_val_images: int
    num_val_objects: int | None
    evaluated_at: Sequence[int]
    num_steps: int
    num_epochs: float
    images_per_step: int
    device: str
    precision: str
    peak_bytes: int | None
    largest_hw: tuple[int, int] | None
    first_step_s: float
    step_s: float
    val_image_s: float
    steps_s: float
    evaluations_s: float
    is_main: bool

    def to_plain(self) -> dict[str, object]:
        """Return the measurements as plain data."""
        return {key: value for key, value in asdict(self).items() if key != "is_main"}


class _Watch:
    """Reporter that keeps the start of a run, passes its notes on and times its steps."""

    def __init__(self, report: Report) -> None:
        self.started: Started | None = None
        self._report = report
        self._begun_s = time.monotonic()
        self._done_s: list[float] = []

    def __call__(self, event: Event) -> None:
        """Keep the first start, or pass a note on."""
        if isinstance(event, Started):
            self.started = self.started or event
        elif isinstance(event, Noted):
            self._report(event)

    def is_enough(self) -> bool:
        """Note the end of a step; return True when enough steps have been timed."""
        done_s = self._done_s
        done_s.append(time.monotonic())
        return len(done_s) > 1 and (done_s[-1] - done_s[0] > _TIMED_S or len(done_s) > _MAX_TIMED_STEPS)

    def end(self) -> None:
        """Note the end of the run; a run of one step ends without a call of `is_enough`."""
        self._done_s = self._done_s or [time.monotonic()]

    @property
    def first_step_s(self) -> float:
        """Time until the end of the first step."""
        return self._done_s[0] - self._begun_s

    @property
    def step_s(self) -> float:
        """Mean time of the steps after the first, or the time of the first if there is no other."""
        num_timed = len(self._done_s) - 1
        return (self._done_s[-1] - self._done_s[0]) / num_timed if num_timed else self.first_step_s


def rehearse(config: TaskConfig, report: Report = lambda event: None) -> Rehearsal:
    """Build a run, make its first steps and time them; nothing is kept.

    The steps are those of the run, in a folder that is removed afterwards. The first step, which waits for the first
    batch and for compilation, is not timed.

    Args:
        config: the experiment.
        report: receives the notes of training.

    Raises:
        DetectorError: everything that training could raise up to there.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = config.for_canvas()
    watch = _Watch(report)
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory(prefix="detector-") as folder:
        steps_only: Any = replace(config.train, evaluations=0, project=Path(folder))  # the class of the task
        result = train(replace(config, train=steps_only), report=watch, should_stop=watch.is_enough)
        watch.end()
        config = config.with_batch_size(result.batch_size)
        task = open_task(config, lambda event: None)
        model = task.model()
        canvases = training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride)
        largest_hw = canvases[-1] if canvases else None
        if largest_hw is not None:  # the steps may not have included it
            largest: Any = replace(config.input, size=largest_hw, multi_scale=0.0)
            train(replace(config, input=largest, train=replace(steps_only, iterations=1)))
    held_bytes = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes()

    num_steps = config.train.num_steps(task.num_images, task.batch_size * num_processes)
    val_image_s, evaluated_at = 0.0, []
    if task.has_val and result.is_main:
        evaluated_at = evaluation_steps(num_steps, config.train.evaluations)
        val_image_s = task.seconds_per_val_image(model, device)
    return Rehearsal(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_classes=len(task.class_names),
        num_images=task.num_images,
        num_objects=task.num_objects,
        num_val_images=task.num_val_images,
        num_val_objects=task.num_val_objects,
        evaluated_at=evaluated_at,
        num_steps=num_steps,
        num_epochs=watch.started.num_epochs if watch.started else 0.0,
        images_per_step=task.batch_size * config.train.accumulate * num_processes,
        device=str(device),
        precision=watch.started.precision if watch.started else "",
        peak_bytes=held_bytes,
        largest_hw=largest_hw,
        first_step_s=watch.first_step_s,
        step_s=watch.step_s,
        val_image_s=val_image_s,
        steps_s=num_steps * watch.step_s,
        evaluations_s=len(evaluated_at) * task.num_val_images * val_image_s / num_processes,
        is_main=result.is_main,
    )
