"""What a study keeps of each run: one small JSON file, whole whenever it is looked at.

FOLDER/study.yaml           the study as it was last asked for
FOLDER/results/KEY.json     one for each run that was begun
FOLDER/runs/KEY/            its run folder, as `detector train` leaves it, by default without weights
FOLDER/logs/KEY.log         what it said
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from detector.config.schema import config_from_plain
from detector.errors import ConfigError, DatasetError
from detector.io.atomic import write_atomically
from detector.workflows.studies.plan import PlannedRun

FALLING = ("entropy", "step_ms", "peak_mb")  # numbers of which the lowest is the best
State = Literal["begun", "finished", "diverged", "failed"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        step: optimiser steps done.
        stats: its numbers by name; what could not be measured is left out.
    """

    step: int
    stats: dict[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One run of a study.

    Attributes:
        cell: its value on each axis.
        seed: its seed.
        experiment: what was varied.
        overrides: of the experiment.
        state: begun, finished, diverged (training came to no finite number) or failed.
        error: why it failed or diverged.
        evaluations: in the order of their steps.
        num_steps: optimiser steps of the run.
        num_epochs: passes over the data set that they amount to.
        step_s: median time of a step in seconds, evaluations apart.
        total_s: time of the whole run in seconds, without the start of its process.
        peak_bytes: the most memory that its process, or the GPU, held; None where the system does not say.
        device: where it ran.
        machine: what it ran on, in words.
        imports: Python files that register the parts it names.
    """

    cell: dict[str, str]
    seed: int
    experiment: str
    overrides: tuple[str, ...]
    state: State = "begun"
    error: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
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
        """Whether running it again would bring nothing new."""
        return self.state in ("finished", "diverged")

    def number(self, metric: str, judged: str) -> float:
        """A number of the final or the best evaluation; NaN where there is none."""
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
        """Names them; nothing is made."""
        self.path = path
        self.study, self.runs = path / "study.yaml", path / "runs"

    def result_path(self, key: str) -> Path:
        """The record of a run."""
        return self.path / "results" / f"{key}.json"

    def log_path(self, key: str) -> Path:
        """What a run said."""
        return self.path / "logs" / f"{key}.log"

    def write(self, key: str, record: RunRecord) -> None:
        """Writes the record of a run.

        Raises:
            CheckpointError: the disk refuses.
        """
        write_record(self.result_path(key), record)

    def read(self, planned: PlannedRun) -> RunRecord | None:
        """The record of a planned run, or None where it was not begun.

        Raises:
            DatasetError: its file cannot be read.
            ConfigError: it is of a run with other settings.
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
                f"{path}: a study goes on with the settings it began with, found others: {', '.join(changed)}; "
                "give them again, or another folder with --out"
            )
        return record


def _short(experiment: str) -> str:
    """The name of an experiment wherever its file lies."""
    return Path(experiment).name.removesuffix(".yaml")


def write_record(path: Path, record: RunRecord) -> None:
    """Writes a record.

    Raises:
        CheckpointError: the disk refuses; an old one is whole.
    """
    text = json.dumps(asdict(record), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_record(path: Path) -> RunRecord:
    """Reads a record.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError("it is no mapping")
        return config_from_plain(RunRecord, plain, str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise DatasetError(f"{path}: is no record of a run ({error}); delete it and give the command again") from error


def plain_stats(stats: Mapping[str, float]) -> dict[str, float]:
    """The numbers that exist."""
    return {name: float(value) for name, value in stats.items() if math.isfinite(value)}


def next_evaluations(so_far: Sequence[Evaluation], found: Evaluation) -> tuple[Evaluation, ...]:
    """The evaluations of a run with one more; those of later steps, left from before a resume, are dropped."""
    return (*(evaluation for evaluation in so_far if evaluation.step < found.step), found)
