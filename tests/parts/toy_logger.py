"""Example of a logger: one file in `detector/training/`, or a file given with `--import`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.training.logger import LoggedRun, Logger, LoggerConfig


@register("toy")
class LineLogger(Logger):
    """File of one line of JSON for each evaluation."""

    @dataclass(frozen=True)
    class Config(LoggerConfig):
        """Name of the file.

        Attributes:
            file_name: its name in the run folder.
        """

        file_name: str = "metrics.jsonl"

    def __init__(self, config: Config) -> None:
        self._file_name = config.file_name
        self._path = Path(config.file_name)

    def start(self, run: LoggedRun) -> None:
        """Begin in the run folder, or continue the file of an interrupted run."""
        self._path = run.folder / self._file_name

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        """Do nothing: each line is written at once."""
