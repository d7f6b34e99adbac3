from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from detector.errors import ConfigError
from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.workflows.train import open_run, train

Make = Callable[..., DetectionConfig]
MODULE = "torch.utils.tensorboard"


@dataclass
class Writer:
    """Substitute for torch's SummaryWriter that records its calls."""

    log_dir: str
    purge_step: int | None
    scalars: list[tuple[str, float, int]] = field(default_factory=list)
    flushed: int = 0
    closed: bool = False

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert not self.closed
        self.scalars.append((tag, scalar_value, global_step))

    def flush(self) -> None:
        self.flushed = len(self.scalars)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """Return the list of writers that runs create."""
    made: list[Writer] = []

    def make(**settings: Any) -> Writer:
        made.append(Writer(**settings))
        return made[-1]

    module = types.ModuleType(MODULE)
    module.SummaryWriter = make  # type: ignore[attr-defined]  # as torch's module has it
    monkeypatch.setitem(sys.modules, MODULE, module)
    return made


def test_scalars_equal_the_results_file(experiment: Make, writers: list[Writer]) -> None:
    folder = train(experiment("train.tensorboard=true")).folder
    (writer,) = writers
    assert (writer.log_dir, writer.purge_step, writer.closed) == (str(folder.path), None, True)
    assert writer.flushed == len(writer.scalars)
    wanted = [
        (name, float(text), int(row["step"]))
        for row in folder.results()
        for name, text in row.items()
        if name not in ("epoch", "step", "time") and math.isfinite(float(text))
    ]
    assert writer.scalars == wanted
    assert {step for *_, step in wanted} == {3, 6}
    assert {"train/box_loss", "metrics/mAP50-95(B)", "lr/pg0"} <= {name for name, *_ in wanted}


def test_resumed_run_purges_the_steps_that_it_repeats(experiment: Make, writers: list[Writer]) -> None:
    stops = iter([False, False, False, True])
    config = experiment("train.tensorboard=true")
    folder = train(config, should_stop=lambda: next(stops)).folder
    assert load_training_state(folder.last)["step"] == 4
    _, run, state = open_run(folder.path)
    train(config, resume=(run, state))
    assert [writer.purge_step for writer in writers] == [None, 5]
    assert [{step for *_, step in writer.scalars} for writer in writers] == [{3}, {6}]


def test_nothing_is_logged_by_default(experiment: Make, writers: list[Writer]) -> None:
    train(experiment())
    assert writers == []


def test_missing_package_is_reported_before_a_run_folder_is_created(
    experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    config = experiment("train.tensorboard=true")
    with pytest.raises(ConfigError, match=r"^train.loggers or train.tensorboard: .* 'detector-toolkit\[log\]'"):
        train(config)
    assert not config.train.project.exists()


def test_undefined_numbers_are_not_logged(
    experiment: Make, writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment("train.tensorboard=true", "train.evaluations=1")
    monkeypatch.setattr(
        "detector.training.run_folder.RunFolder.results", lambda self: [{"step": "6", "a": "nan", "b": "", "c": "0.5"}]
    )
    monkeypatch.setattr("detector.tasks.run_pictures.results_chart", lambda rows: b"")
    train(config)
    assert writers[0].scalars == [("c", 0.5, 6)]
