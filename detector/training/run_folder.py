"""The folder of a training run: configuration, metrics, weights and pictures of the first batches."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from detector.errors import DetectorError
from detector.io.atomic import sweep_temporary
from detector.io.files import write_whole
from detector.structures.metrics import Metrics
from detector.training.train_config import TrainConfig


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder.
        best: file of the best averaged weights.
        last: file of the whole training state, to resume from.
        superseded: file of the training state of an older version, removed when `last` is written.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing folder and remove leftovers of interrupted saves."""
        self.path = path
        self.best, self.last = path / "weights" / "best.safetensors", path / "weights" / "last.safetensors"
        self.superseded = path / "weights" / "last.pt"
        self._results = path / "results.csv"
        if self.last.parent.is_dir():
            sweep_temporary(self.last.parent)
            sweep_temporary(path)

    @classmethod
    def create(
        cls, project: Path, name: str, subfolders: Sequence[str] = ("weights",), *, reuse: bool = False
    ) -> RunFolder:
        """Create a folder `project/name`, with the first free number appended to the name, and its subfolders.

        Args:
            project: the parent folder.
            name: the name.
            subfolders: the folders in it.
            reuse: whether to use an existing folder of this name if it holds no save, as a run killed early leaves it.

        Raises:
            DetectorError: the folder cannot be made.
        """
        if reuse and _is_without_save(project / name):
            (project / name / "weights").mkdir(exist_ok=True)
            return cls(project / name)
        for number in range(1, 10_000):
            path = project / (name if number == 1 else f"{name}{number}")
            try:
                path.mkdir(parents=True, exist_ok=False)
                for subfolder in subfolders:
                    (path / subfolder).mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise DetectorError(f"{path}: the run folder cannot be made, {error.strerror}") from error
            return cls(path)
        raise DetectorError(f"{project}: ten thousand runs are named {name!r}; choose another train.run_name")

    @property
    def saved_state(self) -> Path | None:
        """The file of the training state, or None before the first save."""
        return next((file for file in (self.last, self.superseded) if file.is_file()), None)

    def write_config(self, yaml_text: str) -> None:
        """Write the resolved configuration."""
        (self.path / "config.yaml").write_text(yaml_text, encoding="utf-8")

    def add_result(
        self,
        *,
        epoch: float,
        step: int,
        elapsed_s: float,
        losses: Mapping[str, float],
        metrics: Metrics,
        learning_rate: float,
    ) -> None:
        """Add a row to `results.csv`; drop rows of later steps, left from before a resume, first."""
        row = {
            "epoch": f"{epoch:.2f}",
            "step": step,
            "time": f"{elapsed_s:.2f}",
            **{f"train/{name}_loss": f"{value:.5f}" for name, value in losses.items()},
            **{name: f"{value:.5f}" for name, value in metrics.columns().items()},
            "lr/pg0": f"{learning_rate:.6g}",
        }
        columns = list(dict.fromkeys([*metrics.first_columns, *row]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows([*(r for r in self.results() if int(r["step"]) < step), row])
        self.write_file("results.csv", text.getvalue().encode())

    def results(self) -> list[dict[str, str]]:
        """Return the rows of `results.csv` so far."""
        if not self._results.exists():
            return []
        with self._results.open(newline="") as file:
            return [dict(row) for row in csv.DictReader(file)]

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file atomically: an old one stays until the new one is complete.

        Raises:
            DetectorError: the file cannot be written.
        """
        path = self.path / name
        try:
            write_whole(path, lambda file: file.write(content), durable=False)
        except OSError as error:
            raise DetectorError(
                f"{path} cannot be written ({error.strerror}); an old version is intact: check the disk"
            ) from error


def _is_without_save(path: Path) -> bool:
    """Return True for the folder of a run before its first save: empty, or with an empty folder for weights."""
    if not path.is_dir():
        return False
    weights = path / "weights"
    is_bare = not any(path.iterdir())
    return is_bare or (
        weights.is_dir() and not any(entry.suffix in (".pt", ".safetensors") for entry in weights.iterdir())
    )


@contextmanager
def removed_if_empty(folder: Path, asked: Path | None) -> Iterator[None]:
    """Remove a folder for results at an error, if it is new and nothing was written into it.

    Args:
        folder: the folder that `results_folder` gave.
        asked: the folder that was asked for; it stays.
    """
    try:
        yield
    except BaseException:
        if asked is None:
            with suppress(OSError):  # it holds files
                folder.rmdir()
        raise


def results_folder(asked: Path | None, name: str, project: Path = TrainConfig.project) -> Path:
    """Return a folder for results: the one asked for, or a new one in a project, by default that of detection.

    Raises:
        DetectorError: it cannot be made.
    """
    if asked is None:
        return RunFolder.create(project, name, subfolders=()).path
    try:
        asked.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DetectorError(f"{asked}: the folder for results cannot be made, {error.strerror}") from error
    return asked
