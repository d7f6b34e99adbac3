"""The contract of a logger: a program for experiments that gets the metrics of a run, such as MLflow."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config.registry import PartConfig
from detector.errors import ConfigError


@dataclass(frozen=True)
class LoggedRun:
    """Run whose metrics are logged.

    Attributes:
        folder: the run folder.
        first_step: the step it starts at, above 0 after a resume.
        settings: the configuration, with the keys as overrides have them, such as `optimizer.lr`.
    """

    folder: Path
    first_step: int
    settings: Mapping[str, object]


class Logger(ABC):
    """Receiver of the metrics of one run.

    A registered logger is constructed from its config alone, where it imports its library, and is listed in
    `train.loggers`. It writes into the run folder unless its config says otherwise. An exception of `start`, `log` or
    `close` ends the logging with a warning, and never the training.
    """

    @abstractmethod
    def start(self, run: LoggedRun) -> None:
        """Begin, or continue the record of an interrupted run."""

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of one evaluation, by the column of `results.csv`."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class LoggerConfig(PartConfig[Logger]):
    """The kind `logger`: base class of the settings of every registered logger."""

    folders = ("training",)


def imported(module: str, who: str, extra: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: its name.
        who: the key that needs it, and how to do without, as `key` or `key: remedy`.
        extra: the extra of this package that installs it.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.rpartition(".")[2]
        raise ConfigError(
            f"{who}: the package {package} cannot be imported ({error}); install it with: pip install "
            f"'detector-toolkit[{extra}]', or leave {who} out"
        ) from error


def continued_id(folder: Path, name: str) -> str | None:
    """Return the id under which a program knows the run, from a file of the run folder; None for a new run."""
    try:
        return (folder / name).read_text("utf-8").strip() or None
    except OSError:
        return None
