"""`detector train --plot-schedule` and `--dry-run`: the schedule, memory and speed of a planned run."""

from __future__ import annotations

import json
from pathlib import Path

from detector.cli.progress import say
from detector.errors import ConfigError, DetectorError
from detector.io.nouns import plural
from detector.media.run_charts import schedule_chart
from detector.tasks.task import TaskConfig
from detector.workflows.dry_run import Rehearsal, plan_schedule, rehearse
from detector.workflows.training_progress import TrainingProgress


def plot_schedule(config: TaskConfig, path: Path, quiet: bool) -> None:
    """Draw the learning rate of a run into a PNG.

    Raises:
        ConfigError: the file has another suffix.
        DetectorError: it cannot be written, or the data set cannot be used.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot-schedule: expected a file that ends in .png, got {str(path)!r}; rename it")

    picture = schedule_chart(plan_schedule(config))
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise DetectorError(f"{path}: the picture cannot be written, {error.strerror}; choose another path") from error
    say(f"schedule: {path}", quiet)


def dry_run(config: TaskConfig, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Make the first steps of a run, print the measurements, keep nothing; return the exit code.

    Raises:
        DetectorError: everything that training could raise up to there.
    """
    rehearsal = rehearse(config, TrainingProgress(quiet, verbose))
    if rehearsal.is_main:
        print(json.dumps(rehearsal.to_plain()) if as_json else _text(rehearsal))
    return 0


def _text(found: Rehearsal) -> str:
    evaluation = "none: no val split is configured"
    if found.num_val_images:
        at = found.evaluated_at
        times = f"{plural(len(at), 'time')}, first after step {at[0]:,}" if at else "never: train.evaluations is 0"
        evaluation = f"{_images(found.num_val_images, found.num_val_objects)}; {times}"
    memory = "not reported by this system"
    if found.peak_bytes is not None:
        where = "of the GPU" if found.device.startswith("cuda") else "of the main process"
        memory = f"{found.peak_bytes / 2**30:.2f} GiB at most, {where}"
    if found.largest_hw is not None:
        memory += f", the largest canvas of {found.largest_hw[0]} x {found.largest_hw[1]} px included"
    per_s = found.images_per_step / found.step_s
    lines = {
        "network": f"{found.num_parameters:,} parameters, {plural(found.num_classes, 'class', 'classes')}",
        "training": _images(found.num_images, found.num_objects),
        "evaluation": evaluation,
        "run": f"{plural(found.num_steps, 'step')} of {plural(found.images_per_step, 'image')} "
        f"({found.num_epochs:.1f} epochs) on {found.device}, {found.precision}",
        "memory": memory,
        "speed": f"{found.step_s:.3g} s a step, {per_s:.1f} images/s; the first step was done after "
        f"{found.first_step_s:.1f} s",
        "time": f"about {duration(found.steps_s + found.evaluations_s)}: steps {duration(found.steps_s)}, "
        f"evaluations {duration(found.evaluations_s)}",
    }
    return "\n".join([*(f"{name:<11} {text}" for name, text in lines.items()), "dry run: no files were kept"])


def _images(number: int, num_boxes: int | None) -> str:
    images = plural(number, "image")
    return images if num_boxes is None else f"{images}, {plural(num_boxes, 'box', 'boxes')}"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
