"""One run of a study in this process: trained as by `detector train --continue`, with its evaluations recorded."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detector.config.registry import import_parts
from detector.config.schema import config_to_plain
from detector.errors import CheckpointError, ConfigError
from detector.io.machine import machine, peak_bytes
from detector.models.checkpoint import TrainingState
from detector.tasks.task import TaskConfig, load_experiment
from detector.training.events import Evaluated, Event, Report, Started, StepDone
from detector.training.run_folder import RunFolder
from detector.workflows.studies.records import (
    RunEvaluation,
    RunRecord,
    next_evaluations,
    plain_stats,
    read_record,
    write_record,
)
from detector.workflows.train import open_run, train


class _Watch:
    """Reporter that writes the evaluations of a run into its record."""

    def __init__(self, path: Path, record: RunRecord, metric: str, report: Report) -> None:
        self.record = record
        self._path, self._metric, self._report = path, metric, report
        self._last_s: float | None = None
        self._steps_s: list[float] = []

    def __call__(self, event: Event) -> None:
        """Process an event and pass it on."""
        now_s = time.perf_counter()
        if isinstance(event, Started):
            self.record = replace(
                self.record, num_steps=event.num_steps, num_epochs=event.num_epochs, device=event.device
            )
        elif isinstance(event, StepDone):
            if self._last_s is not None:
                self._steps_s.append(now_s - self._last_s)
            self._last_s = now_s
        elif isinstance(event, Evaluated):
            self._evaluated(event)
            self._last_s = None  # the time until the next step includes the evaluation
        self._report(event)

    def _evaluated(self, event: Evaluated) -> None:
        if self._metric not in event.metrics.stats:
            raise ConfigError(
                f"metric: expected one of {', '.join(event.metrics.stats)}, got {self._metric!r}; choose a metric of "
                f"the evaluation"
            )
        found = RunEvaluation(event.step, plain_stats(event.metrics.stats))
        evaluations = next_evaluations(self.record.evaluations, found)
        self.record = replace(self.record, evaluations=evaluations, total_s=event.elapsed_s)
        write_record(self._path, self.record)

    @property
    def step_s(self) -> float | None:
        """Median time of a step."""
        return statistics.median(self._steps_s) if self._steps_s else None


def make_run(
    path: Path,
    runs: Path,
    metric: str,
    *,
    keep_weights: bool,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Make the run that a record describes and complete the record.

    Args:
        path: the record.
        runs: the parent of the run folders.
        metric: the metric that the evaluations must contain.
        keep_weights: whether to keep the weights.
        report: receives every event.
        should_stop: called after each step; if true, the run is saved and ends.

    Returns:
        True if the run was completed.

    Raises:
        DetectorError: everything that training raises.
    """
    begun_s = time.perf_counter()
    record = read_record(path)
    for file in record.imports:
        import_parts(Path(file))
    config = load_experiment(record.experiment, record.overrides, are_own=False)
    config = of_run(config, record, path, runs)
    folder = runs.resolve() / path.stem
    resume = _interrupted(folder, config, record)
    if resume is None:
        record = replace(record, evaluations=())
        shutil.rmtree(folder, ignore_errors=True)
    watch = _Watch(path, record, metric, report)
    result = train(config, resume=resume, report=watch, should_stop=should_stop, reuse_folder=True)
    if not result.finished:
        return False
    if not watch.record.evaluations:
        raise ConfigError(
            "a study: expected runs with evaluations, got none; give a val split and train.evaluations >= 1"
        )
    total_s = time.perf_counter() - begun_s
    if resume is not None:
        total_s = watch.record.total_s or total_s
    write_record(path, _finished(watch, total_s))
    if not keep_weights:
        shutil.rmtree(folder / "weights")
    return True


def _interrupted(folder: Path, config: TaskConfig, record: RunRecord) -> tuple[RunFolder, TrainingState] | None:
    """Return the folder and state to resume a run from, or None if it has to start again."""
    if RunFolder(folder).saved_state is None:
        return None
    try:
        _, run_folder, state = open_run(folder, config)
        if state["config"].get("data") != config_to_plain(config)["data"]:
            return None  # other data may need other steps, and `train` would refuse other annotations
        known = {evaluation.step for evaluation in record.evaluations}
        measured = [int(row["step"]) for row in run_folder.results()]
        is_older = any(step not in known for step in measured if step <= state["step"])
        return None if is_older else (run_folder, state)
    except (CheckpointError, ConfigError):  # for example saved by another version
        return None


def _finished(watch: _Watch, total_s: float) -> RunRecord:
    """Return the record of a completed run."""
    on_gpu = watch.record.device.startswith("cuda")
    return replace(
        watch.record,
        state="finished",
        step_s=watch.step_s,
        total_s=total_s,
        peak_bytes=torch.cuda.max_memory_reserved() if on_gpu else peak_bytes(),
        machine=machine(),
    )


def of_run(config: TaskConfig, record: RunRecord, path: Path, runs: Path, **changes: Any) -> TaskConfig:
    """Return an experiment with the seed and folder of a run of a study, and changes of its section `train`."""
    own: dict[str, Any] = {"seed": record.seed, "project": runs.resolve(), "run_name": path.stem}
    settings: Any = replace(config.train, **own, **changes)
    return replace(config, train=settings)
