"""Logger for Weights & Biases: files in the run folder, which `wandb sync` sends, or its server on request."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from detector.config.registry import register
from detector.training.logger import LoggedRun, Logger, LoggerConfig, continued_id, imported

_ID_FILE = "wandb_run_id.txt"


@register("wandb")
class WandbLogger(Logger):
    """Metrics and settings in Weights & Biases."""

    @dataclass(frozen=True)
    class Config(LoggerConfig):
        """Place in Weights & Biases.

        Attributes:
            project: name of the project.
            entity: user or team of the project, or None for the one that is logged in.
            mode: `offline` writes files into the run folder and sends nothing; `online` sends metrics and settings.
        """

        project: str = "detector"
        entity: str | None = None
        mode: Literal["offline", "online"] = "offline"

    def __init__(self, config: Config) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported
        self._wandb = imported("wandb", "train.loggers", "wandb")
        self._config = config
        self._run: Any = None

    def start(self, run: LoggedRun) -> None:
        """Create a run with the settings, or continue that of an interrupted run; no code or output is recorded."""
        known = continued_id(run.folder, _ID_FILE)
        own = known or uuid.uuid4().hex[:8]
        (run.folder / _ID_FILE).write_text(own, "utf-8")
        self._run = self._wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            mode=self._config.mode,
            dir=str(run.folder),
            name=run.folder.name,
            id=own,
            resume=None if known is None or self._config.mode == "offline" else "allow",
            config=dict(run.settings),
            settings=self._wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Finish the files, and with `online` wait until they are sent."""
        self._run.finish()
