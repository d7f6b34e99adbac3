"""What a training run would do, told before it does it: its schedule, and a few of its steps."""

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

_TIMED_S, _MAX_TIMED_STEPS = 5.0, 20  # the steps after the first one are timed, until either is reached
_MAX_POINTS = 2000  # of a schedule's curve


def evaluation_steps(num_steps: int, evaluations: int) -> list[int]:
    """The numbers of steps done at which a run is measured: evaluation k of n at ceil(k * steps / n)."""
    return sorted({-(-k * num_steps // evaluations) for k in range(1, evaluations + 1)})


def plan_schedule(config: TaskConfig) -> SchedulePlan:
    """The learning rate of the run that a configuration describes; the data set's files are read, nothing is trained.

    Raises:
        DatasetError: the data set cannot be used.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
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
    """What a few steps of a run showed.

    Attributes:
        num_parameters: of the network.
        num_classes: of the data set.
        num_images: of the training split.
        num_objects: its boxes; None where images are told apart as a whole.
        num_val_images: of the validation split; 0 where there is none.
        num_val_objects: its boxes; None where images are told apart as a whole.
        evaluated_at: the numbers of steps done at which the run would be measured.
        num_steps: optimiser steps of the run.
        num_epochs: passes over the data set that they amount to.
        images_per_step: over all processes.
        device: where it runs.
        precision: number format of the network.
        peak_bytes: most memory that was held: of the GPU where there is one, else of the main process; None where the
            system does not say.
        largest_hw: height and width of the largest canvas, on which the memory was measured too, or None where the
            canvas does not vary.
        first_step_s: seconds until the first step was done, with all that is made once.
        step_s: seconds of a step after the first.
        val_image_s: seconds of a validation image, scoring left out.
        steps_s: estimated seconds of the run's steps.
        evaluations_s: estimated seconds of its evaluations.
        is_main: whether this process is the one to report it.
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

    def to_plain(self) -> dict[str, Any]:
        """The same as plain data."""
        return {key: value for key, value in asdict(self).items() if key != "is_main"}


def rehearse(config: TaskConfig, report: Report = lambda event: None) -> Rehearsal:
    """Builds all of a run, makes its first steps and times them; nothing of it is kept.

    The steps are those of the run itself, in a folder that is removed. One that has to wait for the first batch and for
    what is compiled on first use comes before those that are timed.

    Args:
        config: the experiment.
        report: told of what training notes.

    Raises:
        DetectorError: all that training itself would raise up to there.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    started: list[Started] = []
    begun_s = time.monotonic()
    done_s: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Started):
            started.append(event)
        elif isinstance(event, Noted):
            report(event)

    def is_enough() -> bool:
        done_s.append(time.monotonic())
        return len(done_s) > 1 and (done_s[-1] - done_s[0] > _TIMED_S or len(done_s) > _MAX_TIMED_STEPS)

    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory(prefix="detector-") as folder:
        steps_only: Any = replace(config.train, evaluations=0, project=Path(folder))  # of the task's own class
        result = train(replace(config, train=steps_only), report=watch, should_stop=is_enough)
        done_s = done_s or [time.monotonic()]  # a run of one step ends before it is asked whether to stop
        config = config.with_batch_size(result.batch_size)
        task = open_task(config, lambda event: None)
        model = task.model()
        canvases = training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride)
        largest_hw = canvases[-1] if canvases else None
        if largest_hw is not None:  # the steps may not have come to it
            largest: Any = replace(config.input, size=largest_hw, multi_scale=0.0)
            train(replace(config, input=largest, train=replace(steps_only, iterations=1)))
    held_bytes = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes()

    num_steps = config.train.num_steps(task.num_images, task.batch_size * num_processes)
    step_s = (done_s[-1] - done_s[0]) / (len(done_s) - 1) if len(done_s) > 1 else done_s[0] - begun_s
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
        num_epochs=started[0].num_epochs if started else 0.0,
        images_per_step=task.batch_size * config.train.accumulate * num_processes,
        device=str(device),
        precision=started[0].precision if started else "",
        peak_bytes=held_bytes,
        largest_hw=largest_hw,
        first_step_s=done_s[0] - begun_s,
        step_s=step_s,
        val_image_s=val_image_s,
        steps_s=num_steps * step_s,
        evaluations_s=len(evaluated_at) * task.num_val_images * val_image_s / num_processes,
        is_main=result.is_main,
    )
