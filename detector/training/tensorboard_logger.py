"""Logger that writes the event files of TensorBoard into the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detector.config.registry import register
from detector.training.logger import LoggedRun, Logger, LoggerConfig, imported


@register("tensorboard")
class TensorBoardLogger(Logger):
    """Event files of TensorBoard."""

    @dataclass(frozen=True)
    class Config(LoggerConfig):
        """No settings."""

    def __init__(self, config: Config) -> None:
        self._make = imported("torch.utils.tensorboard", "train.loggers or train.tensorboard", "log").SummaryWriter
        self._writer: Any = None

    def start(self, run: LoggedRun) -> None:
        """Open a file, and hide what the interrupted run wrote about steps that are repeated."""
        purged_from = run.first_step + 1 if run.first_step else None
        self._writer = self._make(log_dir=str(run.folder), purge_step=purged_from)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers as scalars."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
