"""The loggers of programs for experiments; those of programs that are not installed are used with substitutes."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detector.errors import ConfigError
from detector.tasks.detection_config import DetectionConfig
from detector.training.events import Evaluated, Event, Noted
from detector.training.logger import LoggedRun, Logger
from detector.training.mlflow_logger import MlflowLogger
from detector.training.scalar_log import ScalarLog
from detector.training.wandb_logger import WandbLogger
from detector.workflows.train import open_run, train

Make = Callable[..., DetectionConfig]
SETTINGS = {"optimizer.lr": 0.01, **{f"key{i}": i for i in range(120)}}


@pytest.mark.parametrize(
    ("word", "extra"), [("tensorboard", "log"), ("mlflow", "mlflow"), ("wandb", "wandb"), ("{name: wandb}", "wandb")]
)
def test_missing_package_names_its_extra(
    word: str, extra: str, experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch.utils.tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    config = experiment(f"train.loggers=[{word}]")
    with pytest.raises(ConfigError, match=rf"cannot be imported .* pip install 'detector-toolkit\[{extra}\]'"):
        train(config)
    assert not config.train.project.exists()


class FakeClient:
    """Substitute for MLflow's client that records its calls."""

    made: list[FakeClient] = []  # noqa: RUF012 (of one test)

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.metrics, self.params, self.events = tracking_uri, list[Any](), dict[str, str](), list[Any]()
        FakeClient.made.append(self)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.events.append(("create", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run_id: str, status: str) -> None:
        self.events.append((run_id, status))

    def log_batch(self, run_id: str, params: list[Any]) -> None:
        assert len(params) <= 100
        self.params.update(params)

    def log_metric(self, run_id: str, name: str, number: float, step: int) -> None:
        self.metrics.append((name, number, step))

    def set_terminated(self, run_id: str) -> None:
        self.events.append("end")


@pytest.fixture
def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    module: Any = types.ModuleType("mlflow")
    module.MlflowClient, module.entities = FakeClient, SimpleNamespace(Param=lambda name, value: (name, value))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr(FakeClient, "made", [])
    return FakeClient


def test_mlflow_gets_the_rows_of_the_results_and_the_settings(
    experiment: Make, fake_mlflow: type[FakeClient], tmp_path: Path
) -> None:
    stops = iter([False, False, False, True])
    config = experiment("train.loggers=[mlflow]")
    folder = train(config, should_stop=lambda: next(stops)).folder
    (first,) = fake_mlflow.made
    assert first.uri == (folder.path / "mlruns").as_uri()  # nothing leaves the machine
    assert first.events == [("create", "detector", "train"), "end"]
    assert first.params["optimizer.lr"] == str(config.optimizer.lr)
    assert {step for *_, step in first.metrics} == {3}
    assert "metrics/mAP50-95_B_" in {name for name, *_ in first.metrics}
    _, run, state = open_run(folder.path)
    train(config, resume=(run, state))
    assert fake_mlflow.made[1].events == [("r1", "RUNNING"), "end"]
    assert {step for *_, step in fake_mlflow.made[1].metrics} == {6}
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_server_is_used_when_it_is_configured(fake_mlflow: type[FakeClient], tmp_path: Path) -> None:
    MlflowLogger(MlflowLogger.Config("http://127.0.0.1:1")).start(LoggedRun(tmp_path, 0, SETTINGS))
    assert fake_mlflow.made[0].uri == "http://127.0.0.1:1"


def test_wandb_is_offline_unless_it_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(log=lambda numbers, step: calls.append((numbers, step)), finish=lambda: calls.append("end"))
    module: Any = types.ModuleType("wandb")
    module.Settings = lambda **settings: settings
    module.init = lambda **settings: calls.append(settings) or run  # type: ignore[func-returns-value]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for config in (WandbLogger.Config(), WandbLogger.Config(mode="online", entity="team")):
        logger = WandbLogger(config)
        logger.start(LoggedRun(tmp_path, 0, SETTINGS))
        logger.log({"a": 1.0}, 3)
        logger.close()
    first, second = calls[0], calls[3]
    assert (first["mode"], first["dir"], first["resume"]) == ("offline", str(tmp_path), None)
    assert first["settings"]["disable_code"] is True
    assert first["settings"]["disable_git"] is True
    assert calls[1:3] == [({"a": 1.0}, 3), "end"]
    assert (second["mode"], second["entity"], second["resume"], second["id"]) == (
        "online",
        "team",
        "allow",
        first["id"],
    )


class Failing(Logger):
    """Logger whose server goes away at one method."""

    def __init__(self, method: str) -> None:
        self.method, self.calls = method, list[str]()

    def _act(self, name: str) -> None:
        self.calls.append(name)
        if name == self.method:
            raise ConnectionError("the server is gone")

    def start(self, run: LoggedRun) -> None:
        self._act("start")

    def log(self, numbers: Any, step: int) -> None:
        self._act("log")

    def close(self) -> None:
        self._act("close")


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("start", ["start"]),
        ("log", ["start", "log"]),
        ("close", ["start", "log", "log", "close"]),
        ("", ["start", "log", "log", "close"]),
    ],
)
def test_failing_logger_ends_with_a_warning_and_not_the_training(method: str, calls: list[str], tmp_path: Path) -> None:
    folder: Any = SimpleNamespace(path=tmp_path, results=lambda: [{"step": "3", "a": "0.5"}])
    logger, notes = Failing(method), list[Event]()
    log = ScalarLog(folder, [logger], SETTINGS, notes.append)
    metrics: Any = None
    for event in (Evaluated(3, metrics, True, 1.0), Evaluated(6, metrics, True, 2.0)):
        log(event)
    log.close()
    assert logger.calls == calls
    told = [event.text for event in notes if isinstance(event, Noted)]
    assert told == (["Failing: nothing more is logged, ConnectionError: the server is gone"] if method else [])


def test_loggers_may_differ_on_resume(experiment: Make, fake_mlflow: type[FakeClient]) -> None:
    stops = iter([False, False, False, True])
    folder = train(experiment(), should_stop=lambda: next(stops)).folder
    config, run, state = open_run(folder.path, experiment("train.loggers=[mlflow]"))
    train(config, resume=(run, state))
    assert len(fake_mlflow.made) == 1


def test_real_mlflow_writes_into_the_run_folder(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    for steps in ((3,), (6, 9)):
        logger = MlflowLogger(MlflowLogger.Config())
        logger.start(LoggedRun(tmp_path, 0, SETTINGS))
        for step in steps:
            logger.log({"metrics/mAP50(B)": step / 10}, step)
        logger.close()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run_id = (tmp_path / "mlflow_run_id.txt").read_text()
    assert client.get_run(run_id).data.params["optimizer.lr"] == "0.01"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "metrics/mAP50_B_")] == [
        (3, 0.3),
        (6, 0.6),
        (9, 0.9),
    ]


def test_real_wandb_writes_into_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger = WandbLogger(WandbLogger.Config())
    logger.start(LoggedRun(tmp_path, 0, SETTINGS))
    logger.log({"metrics/mAP50(B)": 0.5}, 3)
    logger.close()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))
