"""Runs of a study, each in its own process, so that memory and failures do not affect other runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from detector.config.schema import config_to_yaml
from detector.errors import ConfigError, DivergenceError, SaveError
from detector.io.atomic import write_atomically
from detector.io.child_process import detector_program
from detector.workflows.studies.plan import PlannedRun, StudyConfig, runs_of
from detector.workflows.studies.records import RunRecord, State, StudyFolder, read_record

PROGRAM = detector_program()  # the command of a single run
_MAX_ERROR = 2000  # characters of a log that a record keeps
# Variables of torchrun, removed because a run of a study is a single process.
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Shard:
    """The part of a study that one process makes.

    Attributes:
        index: index of the part, from 0.
        count: number of parts.
        gpu: the GPU that its runs see, or None for all.
    """

    index: int = 0
    count: int = 1
    gpu: str | None = None

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `I/N`, such as `2/4` for the second of four parts.

        Raises:
            ConfigError: the text has another form.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ConfigError(f"--shard: expected I/N such as 2/4, got {text!r}")
        return cls(int(index) - 1, int(count))

    @classmethod
    def of_torchrun(cls) -> Shard:
        """Return the part that torchrun's environment describes, with its own GPU; without it, the whole study."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        local, visible = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = [gpu for gpu in visible.split(",") if gpu]
        gpu = gpus[local % len(gpus)] if gpus else str(local)
        return cls(int(os.environ.get("RANK", "0")), count, gpu)

    def of(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Return the runs of the part."""
        return list(runs[self.index :: self.count])


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        planned: the planned run.
        record: its record.
        number: ended runs of the shard so far, including this one.
        count: runs of the shard.
        took_s: wall time in seconds, including the start of its process; 0 for a run made earlier.
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
    """Make the missing runs of a study; runs that failed without diverging are repeated.

    Args:
        study: the study.
        folder: the folder of its files.
        shard: the part to make.
        imports: Python files that register parts.
        told: receives every outcome.

    Raises:
        ConfigError: the folder holds runs with other settings, or another command is making one of them.
        CheckpointError: a file cannot be written.
    """
    planned_runs = shard.of(runs_of(study))
    records = [folder.read(planned) for planned in planned_runs]  # check all records before the long work
    write_study(study, folder)
    for number, (planned, record) in enumerate(zip(planned_runs, records, strict=True), start=1):
        took_s = 0.0
        if record is None or not record.is_done:
            begun_s = time.monotonic()
            record = _make(study, folder, planned, shard.gpu, imports)
            took_s = time.monotonic() - begun_s
        told(Outcome(planned, record, number, len(planned_runs), took_s))


def write_study(study: StudyConfig, folder: StudyFolder) -> None:
    """Write the study into its folder, for its runs and for later readers."""
    text = config_to_yaml(study)
    write_atomically(folder.study, lambda file: file.write(text.encode()))


def open_log(folder: StudyFolder, planned: PlannedRun) -> BinaryIO:
    """Open the log of a run for appending, with a lock that lasts until this process and the run have closed it.

    Raises:
        ConfigError: another command is making this run.
        SaveError: the log cannot be written.
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
            f"{folder.path}: another command is making the run {planned.key}; wait for it, or divide the runs with "
            "--shard"
        ) from error
    except (ModuleNotFoundError, OSError):  # Windows, and file systems without locks
        pass
    return log


def begun(folder: StudyFolder, planned: PlannedRun, before: RunRecord | None, imports: Sequence[Path]) -> None:
    """Write the record of a run that is about to start or resume."""
    record = RunRecord(
        planned.cell,
        planned.seed,
        planned.experiment,
        planned.overrides,
        imports=tuple(str(path.resolve()) for path in imports),
    )
    if before is not None:  # interrupted: its evaluations count if the run can be resumed
        record = replace(record, evaluations=before.evaluations)
    folder.write(planned.key, record)


def command_of(folder: StudyFolder, planned: PlannedRun) -> list[str]:
    """Return the command that makes one run."""
    own = ["--out", str(folder.path), "--run", str(folder.result_path(planned.key))]
    return [*PROGRAM, "study", str(folder.study), *own]


def environment_of(study: StudyConfig, planned: PlannedRun, gpu: str | None) -> dict[str, str]:
    """Return the environment variables of the process of a run."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    for value in planned.cell.values():
        environment |= study.environment.get(value, {})
    return environment


def with_error(folder: StudyFolder, planned: PlannedRun, code: int, start: int) -> RunRecord:
    """Return the record of an ended run; if it did not finish, with the output in its log from `start` on."""
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
        if before is not None and before.is_done:  # another command has made it in the meantime
            return before
        begun(folder, planned, before, imports)
        start = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            code = process.wait()
        except BaseException:  # this process is asked to stop: the run saves and resumes with the next command
            process.terminate()
            process.wait()
            raise
    return with_error(folder, planned, code, start)
