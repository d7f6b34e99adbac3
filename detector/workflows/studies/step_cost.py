"""Cost of a training step: every combination trains in its own process, and they take turns step by step.

A change in the speed of the machine therefore affects all of them. The parent writes a line to a process for each step;
the process makes the step and answers with its time in milliseconds.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch

from detector.config.registry import import_parts
from detector.errors import ConfigError
from detector.io.machine import machine, peak_bytes
from detector.tasks.task import load_experiment
from detector.training.events import Event, Report, Started, StepDone
from detector.workflows.studies.plan import PlannedRun, StudyConfig, runs_of
from detector.workflows.studies.records import RunEvaluation, RunRecord, StudyFolder, read_record, write_record
from detector.workflows.studies.runner import (
    Outcome,
    Shard,
    begun,
    command_of,
    environment_of,
    open_log,
    with_error,
    write_study,
)
from detector.workflows.studies.worker import of_run
from detector.workflows.train import train

WARM_UP_TURNS = 3  # the first steps compile kernels and allocate memory


class _Turns:
    """Reporter that makes a training run wait for a line on stdin before each step, until stdin ends."""

    def __init__(self, report: Report) -> None:
        self.times_ms: list[float] = []
        self.started: Started | None = None
        self.peak_bytes: int | None = None
        self.have_ended = False
        self._begun_s, self._report = 0.0, report

    def __call__(self, event: Event) -> None:
        """Process an event and pass it on."""
        if isinstance(event, Started):
            self.started = event
            self._wait()
        elif isinstance(event, StepDone):
            on_gpu = self.started is not None and self.started.device.startswith("cuda")
            if on_gpu:
                torch.cuda.synchronize()
            self.times_ms.append((time.perf_counter() - self._begun_s) * 1e3)
            self.peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()
            sys.stdout.write(f"{self.times_ms[-1]:.4f}\n")
            sys.stdout.flush()
            self._wait()
        self._report(event)

    def _wait(self) -> None:
        self.have_ended = not sys.stdin.readline()
        self._begun_s = time.perf_counter()


def make_cost_run(path: Path, runs: Path, report: Report = lambda event: None) -> bool:
    """Make the steps of one combination, one for each line on stdin, and complete its record.

    Args:
        path: the record.
        runs: the parent of the run folders.
        report: receives every event.

    Returns:
        True if the run was completed; False if stdin ended before, since steps without turns are not comparable.

    Raises:
        DetectorError: everything that training raises.
    """
    record = read_record(path)
    for file in record.imports:
        import_parts(Path(file))
    config = load_experiment(record.experiment, record.overrides, are_own=False)
    if not config.train.iterations or config.train.iterations <= WARM_UP_TURNS:
        raise ConfigError(
            f"a study of costs: expected train.iterations above {WARM_UP_TURNS}, got {config.train.iterations}"
        )
    turns, folder = _Turns(report), runs / path.stem
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    experiment = of_run(config, record, path, runs, evaluations=0)
    result = train(experiment, report=turns, should_stop=lambda: turns.have_ended)
    assert turns.started is not None  # a run that has ended has started
    shutil.rmtree(folder)
    if not result.finished:
        return False
    median_ms = statistics.median(turns.times_ms[WARM_UP_TURNS:])
    stats = {"step_ms": median_ms}
    if turns.peak_bytes is not None:
        stats["peak_mb"] = turns.peak_bytes / 2**20
    write_record(
        path,
        replace(
            record,
            state="finished",
            evaluations=(RunEvaluation(len(turns.times_ms), stats),),
            num_steps=turns.started.num_steps,
            num_epochs=turns.started.num_epochs,
            step_s=median_ms / 1e3,
            total_s=sum(turns.times_ms) / 1e3,
            peak_bytes=turns.peak_bytes,
            device=turns.started.device,
            machine=machine(),
        ),
    )
    return True


def make_cost_runs(
    study: StudyConfig,
    folder: StudyFolder,
    shard: Shard,
    imports: Sequence[Path] = (),
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Make the missing runs of a study of costs: all combinations of a seed take turns.

    Raises:
        ConfigError: the folder holds runs with other settings, another command is making one of them, or a shard is
            requested.
        CheckpointError: a file cannot be written.
    """
    if shard.count > 1:
        raise ConfigError("a study of costs: expected one process, since runs take turns, got --shard; leave it out")
    planned_runs = runs_of(study)
    records = {planned.key: folder.read(planned) for planned in planned_runs}
    write_study(study, folder)
    number = 0
    for seed in range(study.seeds):
        row = [planned for planned in planned_runs if planned.seed == seed]
        took_s = 0.0
        if not all((record := records[planned.key]) is not None and record.is_done for planned in row):
            begun_s = time.monotonic()
            records.update(_in_turns(study, folder, row, imports))
            took_s = (time.monotonic() - begun_s) / len(row)
        for planned in row:
            number += 1
            found = records[planned.key]
            assert found is not None  # the run was made earlier or just now
            told(Outcome(planned, found, number, len(planned_runs), took_s))


def _in_turns(
    study: StudyConfig, folder: StudyFolder, row: Sequence[PlannedRun], imports: Sequence[Path]
) -> dict[str, RunRecord]:
    with ExitStack() as files:
        workers: dict[str, subprocess.Popen[str]] = {}
        starts: dict[str, int] = {}
        try:
            for planned in row:
                log = files.enter_context(open_log(folder, planned))
                begun(folder, planned, None, imports)
                starts[planned.key] = log.tell()
                workers[planned.key] = subprocess.Popen(
                    command_of(folder, planned),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment_of(study, planned, None),
                )
            waiting = dict(workers)
            while waiting:
                waiting = {key: worker for key, worker in waiting.items() if _takes_a_turn(worker)}
        finally:
            for worker in workers.values():
                assert worker.stdin is not None
                with suppress(BrokenPipeError):  # the process ended while it waited for its turn
                    worker.stdin.close()
            codes = {key: worker.wait() for key, worker in workers.items()}
    return {planned.key: with_error(folder, planned, codes[planned.key], starts[planned.key]) for planned in row}


def _takes_a_turn(worker: subprocess.Popen[str]) -> bool:
    """Let a process make one more step; return False if it has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return False
    return bool(worker.stdout.readline())
