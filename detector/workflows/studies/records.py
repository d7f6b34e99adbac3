"""Records of the runs of a study: one small JSON file each, written atomically.

FOLDER/study.yaml           the study as it was last requested
FOLDER/results/KEY.json     the record of each run that was started
FOLDER/runs/KEY/            its run folder, as `detector train` leaves it, by default without weights
FOLDER/logs/KEY.log         its output
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from detector.config.schema import config_from_plain
from detector.errors import ConfigError, DatasetError
from detector.io.atomic import write_atomically
from detector.workflows.studies.plan import PlannedRun

FALLING = ("entropy", "step_ms", "peak_mb")  # metrics whose lowest value is the best
State = Literal["begun", "finished", "diverged", "failed", "pruned"]


@dataclass(frozen=True)
class RunEvaluation:
    """One evaluation of a run.

    Attributes:
        step: optimiser steps done.
        stats: its metrics by name; undefined ones are left out.
    """

    step: int
    stats: dict[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One run of a study.

    Attributes:
        cell: its value on each axis.
        seed: its seed.
        experiment: the experiment that was varied.
        overrides: the overrides of the experiment.
        state: begun, finished, diverged (a loss or gradient was not finite), failed, or pruned: ended early by a search
            because other settings do better.
        error: the reason why it failed or diverged.
        evaluations: the evaluations in the order of their steps.
        num_steps: optimiser steps of the run.
        num_epochs: passes over the data set in these steps.
        step_s: median time of a step in seconds, evaluations excluded.
        total_s: time of the whole run in seconds, start of its process excluded.
        peak_bytes: peak memory of its process or GPU; None if the system does not report it.
        device: the device of the run.
        machine: description of the machine.
        imports: Python files that register the parts it names.
    """

    cell: dict[str, str]
    seed: int
    experiment: str
    overrides: tuple[str, ...]
    state: State = "begun"
    error: str | None = None
    evaluations: tuple[RunEvaluation, ...] = ()
    num_steps: int = 0
    num_epochs: float = 0.0
    step_s: float | None = None
    total_s: float | None = None
    peak_bytes: int | None = None
    device: str = ""
    machine: str = ""
    imports: tuple[str, ...] = field(default=())

    @property
    def is_done(self) -> bool:
        """True if the run need not be repeated."""
        return self.state in ("finished", "diverged", "pruned")

    def number(self, metric: str, judged: str) -> float:
        """Return a metric of the final or the best evaluation; NaN if there is none."""
        found = [evaluation.stats.get(metric, math.nan) for evaluation in self.evaluations]
        if self.state != "finished" or not found:
            return math.nan
        if judged == "final":
            return found[-1]
        known = [value for value in found if not math.isnan(value)]
        return (min if metric in FALLING else max)(known, default=math.nan)


class StudyFolder:
    """The files of a study."""

    def __init__(self, path: Path) -> None:
        """Set the paths; nothing is created."""
        self.path = path
        self.study, self.runs = path / "study.yaml", path / "runs"

    def result_path(self, key: str) -> Path:
        """Return the path of the record of a run."""
        return self.path / "results" / f"{key}.json"

    def log_path(self, key: str) -> Path:
        """Return the path of the output of a run."""
        return self.path / "logs" / f"{key}.log"

    def write(self, key: str, record: RunRecord) -> None:
        """Write the record of a run.

        Raises:
            CheckpointError: the file cannot be written.
        """
        write_record(self.result_path(key), record)

    def read(self, planned: PlannedRun) -> RunRecord | None:
        """Read the record of a planned run; return None if it was not started.

        Raises:
            DatasetError: its file cannot be read.
            ConfigError: the record belongs to a run with other settings.
        """
        path = self.result_path(planned.key)
        if not path.is_file():
            return None
        record = read_record(path)
        theirs, ours = set(record.overrides), set(planned.overrides)
        same_name = _short(record.experiment) == _short(planned.experiment)
        if not same_name or record.overrides != planned.overrides:
            changed = sorted(theirs ^ ours) or ["another order of the overrides" if same_name else record.experiment]
            raise ConfigError(
                f"{path}: expected the settings that the study began with, got others: {', '.join(changed)}; "
                "give them again, or another folder with --out"
            )
        return record


def _short(experiment: str) -> str:
    """Return the name of an experiment without its folder."""
    return Path(experiment).name.removesuffix(".yaml")


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record atomically.

    Raises:
        CheckpointError: the file cannot be written; an old one is intact.
    """
    text = json.dumps(asdict(record), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        plain: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError("expected a mapping")
        return config_from_plain(RunRecord, plain, str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise DatasetError(f"{path}: expected a record of a run ({error}); delete it and run again") from error


def plain_stats(stats: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are finite."""
    return {name: float(value) for name, value in stats.items() if math.isfinite(value)}


def next_evaluations(so_far: Sequence[RunEvaluation], found: RunEvaluation) -> tuple[RunEvaluation, ...]:
    """Append an evaluation to those of a run; drop those of later steps, left from before a resume."""
    return (*(evaluation for evaluation in so_far if evaluation.step < found.step), found)
