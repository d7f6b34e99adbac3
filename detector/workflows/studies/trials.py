"""Trials of a search: runs of an experiment with other values of the searched keys, one after another.

FOLDER/tune.yaml              the search
FOLDER/search/                the trials, with the files of a study; their evaluations use the search share
FOLDER/held-out-NUMBER/       the study of the settings of trial NUMBER against the given ones, on the held-out share
FOLDER/best.yaml              the experiment with the best settings
FOLDER/report.html            the report
"""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from detector.errors import ConfigError, DetectorError
from detector.workflows.studies.plan import PlannedRun, StudyConfig
from detector.workflows.studies.records import RunRecord, StudyFolder, read_record
from detector.workflows.studies.runner import begun, command_of, environment_of, open_log, with_error
from detector.workflows.studies.search_space import SearchedKey, Value, values_text

SEARCH_SEED = 1000  # of the runs of all trials; the runs on the held-out share have the seeds 0, 1, ...
_POLL_S = 0.2


@dataclass(frozen=True)
class Trial:
    """An ended trial.

    Attributes:
        number: its number; trial 0 has the given settings.
        values: its values of the searched keys, as far as the search can try them.
        record: its record.
        metric: the metric that is searched for.
    """

    number: int
    values: dict[str, Value]
    record: RunRecord
    metric: str

    @property
    def score(self) -> float:
        """The metric of the final evaluation; NaN unless the trial finished."""
        return self.record.number(self.metric, "final")

    @property
    def curve(self) -> list[float]:
        """The metric of each evaluation."""
        return [evaluation.stats.get(self.metric, math.nan) for evaluation in self.record.evaluations]

    @property
    def line(self) -> str:
        """The trial in one line."""
        settings = values_text(self.values) if self.number else "the given settings"
        if self.record.state == "finished":
            return f"trial {self.number}: {settings}: {self.metric} {self.score:.4f}"
        ending = self.record.error.splitlines()[-1] if self.record.error else f"after {len(self.curve)} evaluations"
        return f"trial {self.number}: {settings}: {self.record.state}, {ending}"


class Sampler(Protocol):
    """The contract of samplers: functions of the trials before, so that a search can be interrupted anywhere."""

    def ask(self, trials: Sequence[Trial]) -> dict[str, Value]:
        """Return the settings to try after some trials."""

    def is_hopeless(self, trials: Sequence[Trial], values: Sequence[float]) -> bool:
        """Return whether a running trial with these values of its evaluations should end."""


@dataclass(frozen=True)
class Budget:
    """Limits of a search.

    Attributes:
        minutes: time of all trials and of the runs on the held-out share; starts of processes excluded.
        trials: largest number of trials, or None for as many as the time allows.
        seeds: runs of the given and of the best settings on the held-out share, each.
    """

    minutes: float
    trials: int | None = None
    seeds: int = 3

    def is_spent(self, trials: Sequence[Trial]) -> bool:
        """Return whether one more trial would leave too little time for the runs on the held-out share.

        Raises:
            ConfigError: the time is too short for a search at all.
        """
        if not trials:
            return False
        run_s = sum(t.record.total_s or 0.0 for t in trials if t.record.state == "finished")
        run_s /= max(1, sum(t.record.state == "finished" for t in trials))
        # A failed trial counts as a run: settings that fail at once would else be tried without end.
        spent_s = sum(max(t.record.total_s or 0.0, run_s * (t.record.state == "failed")) for t in trials)
        is_over = spent_s + (1 + 2 * self.seeds) * run_s > 60 * self.minutes
        if len(trials) == 1 and is_over:
            needed = (2 + 2 * self.seeds) * run_s / 60
            raise ConfigError(
                f"--minutes {self.minutes:g}: expected at least {needed:.1f}, the time of two trials and of 2 x "
                f"{self.seeds} runs on held-out images, since a run takes {run_s / 60:.1f} min; raise it, or lower "
                f"train.iterations or --seeds"
            )
        return is_over or (self.trials is not None and len(trials) >= self.trials)


def make_trials(
    study: StudyConfig,
    store: StudyFolder,
    keys: Sequence[SearchedKey],
    given: dict[str, Value],
    sampler: Sampler,
    budget: Budget,
    imports: Sequence[Path] = (),
    told: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Make the trials that are missing, until the budget is spent.

    Args:
        study: the study that the processes of the trials read: experiment, overrides and metric.
        store: the folder of the trials.
        keys: the searched keys.
        given: the values of the keys in the given settings, as far as the search can try them.
        sampler: the choice of settings.
        budget: the limits.
        imports: Python files that register parts.
        told: receives a line about each trial.

    Raises:
        DetectorError: the given settings cannot be trained.
        ConfigError: the budget is too small, or the evaluations have no value of the metric.
    """
    trials: list[Trial] = []
    while not budget.is_spent(trials):
        number = len(trials)
        path = store.result_path(_planned(study, number, ()).key)
        if path.is_file():
            record = read_record(path)
            texts = record.overrides[len(study.overrides) :]
            values = {key.key: key.value_of(text) for key, text in zip(keys, texts, strict=False)}
        else:
            values = sampler.ask(trials) if number else {}
            texts = tuple(key.override(values[key.key]) for key in keys) if number else ()
            record = None
        if record is None or not (record.is_done or record.state == "failed"):
            planned = _planned(study, number, texts)
            record = _made(study, store, planned, imports, lambda curve: _may_stop(sampler, trials, curve), told)
        trials.append(Trial(number, values if number else given, record, study.metric))
        told(trials[-1].line)
        if number == 0 and record.state != "finished":
            raise DetectorError(f"the given settings cannot be trained: the run {record.state}: {record.error}")
        if number == 0 and math.isnan(trials[0].score):
            known = ", ".join(record.evaluations[-1].stats)
            raise ConfigError(
                f"--metric {study.metric}: expected a number of the evaluation, got a name that the run in {path} has "
                f"no value of; choose one of {known} and another folder with --out"
            )
    return trials


def _planned(study: StudyConfig, number: int, texts: Sequence[str]) -> PlannedRun:
    return PlannedRun({"trial": f"{number:03d}"}, SEARCH_SEED, study.experiment, (*study.overrides, *texts))


def _may_stop(sampler: Sampler, trials: Sequence[Trial], curve: list[float]) -> bool:
    """Return whether to prune a running trial; not the given settings, and not after the last evaluation."""
    longest = max((len(trial.curve) for trial in trials), default=0)
    return bool(curve) and len(curve) < longest and sampler.is_hopeless(trials, curve)


def _made(
    study: StudyConfig,
    store: StudyFolder,
    planned: PlannedRun,
    imports: Sequence[Path],
    may_stop: Callable[[list[float]], bool],
    told: Callable[[str], None],
) -> RunRecord:
    """Make or continue one trial in a process of its own; return its record."""
    path = store.result_path(planned.key)
    with _log(store, planned, told) as log:
        before = read_record(path) if path.is_file() else None
        if before is not None and before.is_done:  # by a process that outlived its command
            return before
        begun(store, planned, before, imports)
        start = log.tell()
        process = subprocess.Popen(
            command_of(store, planned),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment_of(study, planned, None),
        )
        try:
            is_pruned = _watched(process, path, study.metric, may_stop)
        except BaseException:  # this process is asked to stop: the trial saves and resumes with the next command
            process.terminate()
            process.wait()
            raise
    if not is_pruned:
        return with_error(store, planned, process.returncode, start)
    record = replace(read_record(path), state="pruned")
    store.write(planned.key, record)
    shutil.rmtree(store.runs / planned.key / "weights", ignore_errors=True)
    return record


def _watched(
    process: subprocess.Popen[bytes], path: Path, metric: str, may_stop: Callable[[list[float]], bool]
) -> bool:
    """Wait for the process of a trial; end it and return true if its evaluations are hopeless."""
    num_seen = 0
    while True:
        try:
            process.wait(_POLL_S)
            return False
        except subprocess.TimeoutExpired:
            pass
        evaluations = read_record(path).evaluations
        if len(evaluations) == num_seen:
            continue
        num_seen = len(evaluations)
        curve = [evaluation.stats.get(metric, math.nan) for evaluation in evaluations]
        if any(map(math.isnan, curve)) or not may_stop(curve):
            continue
        process.terminate()
        process.wait()
        return read_record(path).state != "finished"


def _log(store: StudyFolder, planned: PlannedRun, told: Callable[[str], None]) -> BinaryIO:
    """Open the log of a trial; wait for a process that is still making it, after its command was killed."""
    is_told = False
    while True:
        try:
            return open_log(store, planned)
        except ConfigError:
            if not is_told:
                told(f"{planned.key}: a process of an earlier command is still making it; waiting")
            is_told = True
            time.sleep(_POLL_S)
