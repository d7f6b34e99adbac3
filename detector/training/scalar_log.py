"""The metrics of a run for TensorBoard, in addition to `results.csv`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Protocol

from detector.errors import ConfigError
from detector.training.events import Evaluated, Event, Report, Started
from detector.training.run_folder import RunFolder

_NO_SCALARS = ("epoch", "step", "time")


class ScalarWriter(Protocol):
    """Writer of TensorBoard's event files, as `torch.utils.tensorboard.SummaryWriter` is."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add a number at a step."""

    def flush(self) -> None:
        """Write what has been added."""

    def close(self) -> None:
        """Write the rest and close the file."""


def summary_writer() -> Callable[..., ScalarWriter]:
    """Return torch's class that writes TensorBoard's event files, which needs the package tensorboard.

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        writer: Callable[..., ScalarWriter] = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"train.tensorboard: the package tensorboard cannot be imported ({error}); install it "
            f"with: pip install 'detector-toolkit[log]', or leave train.tensorboard=false"
        ) from error
    return writer


class ScalarLog:
    """Reporter that writes each row of `results.csv` as scalars of the same names into the run folder."""

    def __init__(self, folder: RunFolder, writer: Callable[..., ScalarWriter], report: Report) -> None:
        """Set up a log in `folder` that passes events on to `report` first.

        Args:
            folder: the run folder.
            writer: the class that `summary_writer` returns.
            report: the next reporter.
        """
        self._folder, self._make, self._report = folder, writer, report
        self._first_step = 0
        self._writer: ScalarWriter | None = None

    def __call__(self, event: Event) -> None:
        """Pass an event on; after an evaluation, write its row of the results."""
        self._report(event)
        if isinstance(event, Started):
            self._first_step = event.first_step
        elif isinstance(event, Evaluated):
            if self._writer is None:
                # Hide what the interrupted run wrote about steps that are repeated.
                purged_from = self._first_step + 1 if self._first_step else None
                self._writer = self._make(log_dir=str(self._folder.path), purge_step=purged_from)
            for name, text in self._folder.results()[-1].items():
                if name not in _NO_SCALARS and text and math.isfinite(float(text)):
                    self._writer.add_scalar(name, float(text), event.step)
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
