"""Logger for MLflow: a folder of its files in the run folder, or a tracking server that the config names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detector.config.registry import register
from detector.training.logger import LoggedRun, Logger, LoggerConfig, continued_id, imported

_ID_FILE = "mlflow_run_id.txt"
_UNFIT = re.compile(r"[^\w\-./ ]")  # characters that MLflow does not take in the name of a metric
_MOST_PARAMETERS = 100  # in one request


@register("mlflow")
class MlflowLogger(Logger):
    """Metrics and settings in MLflow."""

    @dataclass(frozen=True)
    class Config(LoggerConfig):
        """Place in MLflow.

        Attributes:
            tracking_uri: address of a tracking server or store, to which metrics and settings are sent; by default
                the folder `mlruns` of the run folder.
            experiment: name of the experiment in MLflow.
        """

        tracking_uri: str | None = None
        experiment: str = "detector"

    def __init__(self, config: Config) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when the package is imported
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._mlflow = imported("mlflow", "train.loggers", "mlflow")
        self._config = config
        self._client: Any = None
        self._run_id = ""

    def start(self, run: LoggedRun) -> None:
        """Create a run with the settings as parameters, or continue that of an interrupted run."""
        uri = self._config.tracking_uri or (run.folder / "mlruns").as_uri()
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        known = continued_id(run.folder, _ID_FILE)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._run_id = known
            return
        found = self._client.get_experiment_by_name(self._config.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._config.experiment)
        self._run_id = self._client.create_run(experiment, run_name=run.folder.name).info.run_id
        (run.folder / _ID_FILE).write_text(self._run_id, "utf-8")
        parameters = [self._mlflow.entities.Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=parameters[start : start + _MOST_PARAMETERS])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers as metrics of a step."""
        for name, number in numbers.items():
            self._client.log_metric(self._run_id, _UNFIT.sub("_", name), number, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run_id)
