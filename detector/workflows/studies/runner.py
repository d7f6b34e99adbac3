"""Carries out the runs of a study, each in a process of its own: its memory is its own, and so is its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from detector.config.schema import config_to_yaml
from detector.errors import ConfigError, DivergenceError, SaveError
from detector.io.atomic import write_atomically
from detector.workflows.studies.plan import PlannedRun, StudyConfig, runs_of
from detector.workflows.studies.records import RunRecord, State, StudyFolder, read_record

PROGRAM = (sys.executable, "-m", "detector")  # what makes a single run
_MAX_ERROR = 2000  # characters of a log that a record keeps
# What torchrun tells its processes; a run of a study is not one of several.
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Shard:
    """The part of a study that one process makes: number `index` of `count`, from 0 on.

    Attributes:
        index: which.
        count: of how many.
        gpu: the GPU its runs see, or None for all.
    """

    index: int = 0
    count: int = 1
    gpu: str | None = None

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/4` as the second of four.

        Raises:
            ConfigError: it is something else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ConfigError(f"--shard wants I/N such as 2/4, found {text!r}")
        return cls(int(index) - 1, int(count))

    @classmethod
    def of_torchrun(cls) -> Shard:
        """The part that torchrun's environment describes, with a GPU of its own; the whole where there is none."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        local, visible = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = [gpu for gpu in visible.split(",") if gpu]
        gpu = gpus[local % len(gpus)] if gpus else str(local)
        return cls(int(os.environ.get("RANK", "0")), count, gpu)

    def of(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Its runs out of all."""
        return list(runs[self.index :: self.count])


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        planned: which.
        record: what it left.
        number: how many of the shard's runs have ended, this one included.
        count: runs of the shard.
        took_s: wall time in seconds, the start of its process included; 0 of one that had been made before.
    """

    planned: PlannedRun
    record: RunRecord
    number: int
    count: int
    took_s: float


def make_runs(
    study: StudyConfig,
    folder: StudyFolder,
    shard: Shard,
    imports: Sequence[Path] = (),
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Makes the runs of a study that are not there yet. Runs that failed, but for diverging, are tried again.

    Args:
        study: the study.
        folder: where its files go.
        shard: the part of it to make.
        imports: Python files that register parts.
        told: told of every run.

    Raises:
        ConfigError: the folder holds runs with other settings, or another command makes one of them.
        CheckpointError: the disk refuses.
    """
    planned_runs = shard.of(runs_of(study))
    records = [folder.read(planned) for planned in planned_runs]  # all, before hours are spent
    write_study(study, folder)
    for number, (planned, record) in enumerate(zip(planned_runs, records, strict=True), start=1):
        took_s = 0.0
        if record is None or not record.is_done:
            begun_s = time.monotonic()
            record = _make(study, folder, planned, shard.gpu, imports)
            took_s = time.monotonic() - begun_s
        told(Outcome(planned, record, number, len(planned_runs), took_s))


def write_study(study: StudyConfig, folder: StudyFolder) -> None:
    """Writes the study down, for its runs and for whoever looks into the folder later."""
    text = config_to_yaml(study)
    write_atomically(folder.study, lambda file: file.write(text.encode()))


def open_log(folder: StudyFolder, planned: PlannedRun) -> BinaryIO:
    """Opens the log of a run at its end; until it is closed, here and in the run's process, no other command has it.

    Raises:
        ConfigError: another command makes this run.
        SaveError: the disk refuses.
    """
    path = folder.log_path(planned.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError as error:
        raise SaveError(f"{path} cannot be written ({error.strerror}): check the disk") from error
    try:
        import fcntl

        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log.close()
        raise ConfigError(
            f"{folder.path}: a run wants one command to make it, found another one at work on {planned.key}; wait for "
            "it, or share the runs out with --shard"
        ) from error
    except (ModuleNotFoundError, OSError):  # Windows, and file systems without locks
        pass
    return log


def begun(folder: StudyFolder, planned: PlannedRun, before: RunRecord | None, imports: Sequence[Path]) -> None:
    """Writes the record of a run that is about to begin or to go on."""
    record = RunRecord(
        planned.cell,
        planned.seed,
        planned.experiment,
        planned.overrides,
        imports=tuple(str(path.resolve()) for path in imports),
    )
    if before is not None:  # interrupted: what it measured counts if the run can be taken up
        record = replace(record, evaluations=before.evaluations)
    folder.write(planned.key, record)


def command_of(folder: StudyFolder, planned: PlannedRun) -> list[str]:
    """The command that makes one run."""
    own = ["--out", str(folder.path), "--run", str(folder.result_path(planned.key))]
    return [*PROGRAM, "study", str(folder.study), *own]


def environment_of(study: StudyConfig, planned: PlannedRun, gpu: str | None) -> dict[str, str]:
    """The variables of its process."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    for value in planned.cell.values():
        environment |= study.environment.get(value, {})
    return environment


def with_error(folder: StudyFolder, planned: PlannedRun, code: int, start: int) -> RunRecord:
    """The record of a run whose process has ended; where it did not finish, with what its log says from `start` on."""
    found = read_record(folder.result_path(planned.key))
    if found.state == "finished":
        return found
    said = folder.log_path(planned.key).read_bytes()[start:].decode("utf-8", "replace").strip()[-_MAX_ERROR:]
    how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    state: State = "diverged" if code == DivergenceError.exit_code else "failed"
    found = replace(found, state=state, error=f"{how}: {said}" if said else how)
    folder.write(planned.key, found)
    return found


def _make(
    study: StudyConfig,
    folder: StudyFolder,
    planned: PlannedRun,
    gpu: str | None,
    imports: Sequence[Path],
) -> RunRecord:
    command, environment = command_of(folder, planned), environment_of(study, planned, gpu)
    with open_log(folder, planned) as log:
        before = folder.read(planned)
        if before is not None and before.is_done:  # another command made it since this one looked
            return before
        begun(folder, planned, before, imports)
        start = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            code = process.wait()
        except BaseException:  # this process is told to stop: the run saves, and goes on with the next command
            process.terminate()
            process.wait()
            raise
    return with_error(folder, planned, code, start)
