from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.errors import ConfigError
from detector.evaluation.coco_metrics import CocoMetrics
from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.training.distributed import World
from detector.training.events import Evaluated, Event
from detector.workflows.train import TrainingResult, open_run, train

Make = Callable[..., DetectionConfig]


@dataclass
class Measured:
    """AP of each evaluation in turn, set by the test."""

    aps: Iterator[float] = field(default_factory=lambda: iter(()))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured()

    def ap(metrics: CocoMetrics) -> float:
        if id(metrics) not in known:
            known[id(metrics)] = (next(found.aps), metrics)  # kept alive, so that its id is not reused
        return known[id(metrics)][0]

    known: dict[int, tuple[float, CocoMetrics]] = {}
    monkeypatch.setattr(CocoMetrics, "ap", property(ap))
    return found


def evaluated_steps(config: DetectionConfig) -> tuple[TrainingResult, list[int]]:
    events: list[Event] = []
    result = train(config, report=events.append)
    return result, [event.step for event in events if isinstance(event, Evaluated)]


SIX = ("train.iterations=6", "train.evaluations=6")


@pytest.mark.parametrize(
    ("patience", "aps", "steps"),
    [
        (2, [0.1, 0.3, 0.2, 0.3], [1, 2, 3, 4]),  # an equal AP is no improvement
        (2, [0.1, 0.05, 0.2, 0.1, 0.3, 0.2], [1, 2, 3, 4, 5, 6]),  # never two in a row
        (1, [0.1, 0.1], [1, 2]),
        (0, [0.3, 0.2, 0.1, 0.1, 0.1, 0.1], [1, 2, 3, 4, 5, 6]),
        (1, [float("nan")] * 6, [1, 2, 3, 4, 5, 6]),  # an undefined AP does not count
    ],
)
def test_run_ends_after_patience_evaluations_without_improvement(
    patience: int, aps: list[float], steps: list[int], experiment: Make, measured: Measured
) -> None:
    measured.aps = iter(aps)
    result, found = evaluated_steps(experiment(*SIX, f"train.patience={patience}"))
    assert found == steps
    assert result.finished
    assert result.ended_at == (steps[-1] if len(steps) < 6 else None)
    assert load_training_state(result.folder.last)["step"] == steps[-1]


def test_early_stopping_survives_a_resume(experiment: Make, measured: Measured) -> None:
    asked: list[int] = []

    def stops() -> bool:
        asked.append(1)
        return len(asked) == 3

    measured.aps = iter([0.3, 0.2, 0.1, 0.1, 0.1, 0.1])
    config = experiment(*SIX, "train.patience=3")
    stopped = train(config, should_stop=stops)
    assert not stopped.finished
    for _ in range(2):
        _, folder, state = open_run(stopped.folder.path, config)
        resumed = train(config, resume=(folder, state))
        assert resumed.finished
        assert resumed.ended_at == 4
        assert load_training_state(folder.last)["num_worse"] == 3
    assert resumed.best == 0.3


def test_command_reports_early_stopping(
    experiment: Make, measured: Measured, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{tmp_path}/run.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(config_to_yaml(experiment(*SIX, "train.patience=1")))
    measured.aps = iter([0.3, 0.2])
    assert run(["train", path]) == 0
    assert "ended early at step 2" in capsys.readouterr().err
    measured.aps = iter([0.3, 0.2])
    assert run(["train", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ended_early_at_step"] == 2


def test_negative_patience_is_rejected(experiment: Make) -> None:
    with pytest.raises(ConfigError, match="patience"):
        experiment("train.patience=-1")


def test_early_stopping_in_one_process_ends_all_processes(
    experiment: Make, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "any", lambda self, flag: True)  # the answer of the other processes
    measured.aps = iter([0.3])
    result = train(experiment(*SIX, "train.patience=5"))
    assert result.finished
    assert result.ended_at == 1
