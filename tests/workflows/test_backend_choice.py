"""The choice of the fastest back end, with timings that the test sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.errors import CheckpointError, ConfigError
from detector.export.export_config import ExportSettings
from detector.inference.prediction_run import PredictionOptions
from detector.media.images import write_image
from detector.tasks.detection_model import LoadedModel, load_model
from detector.tasks.requests import PredictionRequest
from detector.workflows import backend_choice as module
from detector.workflows.backend_choice import with_fastest_backend

MODEL = Path(__file__).parent.parent / "fixtures/before_rebuild/models/mish.safetensors"


class Machine:
    """Stand-in for exports and timings: counts the measurements; `image_ms` says how fast each back end is."""

    def __init__(self, image_ms: dict[str, float]) -> None:
        self.image_ms, self.num_measured, self.refused = image_ms, 0, ""

    def export(self, loaded: LoadedModel, path: Path, settings: ExportSettings) -> None:
        if settings.target == self.refused:
            raise CheckpointError("differs")
        path.write_bytes(b"export")

    def timed(self, models: dict[str, Any]) -> dict[str, float]:
        self.num_measured += 1
        return {name: self.image_ms[name] for name in models}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine({"torch": 3.0, "onnx": 2.0, "openvino": 1.0})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "export_model", machine.export)
    monkeypatch.setattr(module, "_timed", machine.timed)
    monkeypatch.setattr(module, "_is_installed", lambda target: True)
    monkeypatch.setattr(module, "_version", str)
    monkeypatch.setattr(
        module, "load_model", lambda path, *a, **k: path if path.stem == "model" else load_model(path, *a, **k)
    )
    return machine


@pytest.fixture
def request_of() -> Callable[..., PredictionRequest]:
    def build(*overrides: str) -> PredictionRequest:
        words = ("device=cpu", *overrides)
        return PredictionRequest(weights=MODEL, sources="none.jpg", options=PredictionOptions(), overrides=words)

    return build


def test_fastest_is_measured_once_and_remembered(
    machine: Machine, request_of: Callable[..., PredictionRequest]
) -> None:
    said: list[str] = []
    first = with_fastest_backend(request_of(), said.append)
    assert (first.weights.name, first.overrides) == ("model.xml", ())
    assert said[-1] == "back end openvino: 1.0 ms per image here (onnx 2.0, torch 3.0)"
    assert [file.name for file in sorted(first.weights.parent.iterdir())] == ["choice.json", "model.xml"]
    assert with_fastest_backend(request_of(), said.append).weights == first.weights
    assert machine.num_measured == 1
    assert with_fastest_backend(request_of("predict.confidence=0.5"), said.append).weights != first.weights
    assert machine.num_measured == 2


def test_damaged_export_is_measured_again(machine: Machine, request_of: Callable[..., PredictionRequest]) -> None:
    path = with_fastest_backend(request_of(), lambda text: None).weights
    path.write_bytes(b"exporT")
    assert with_fastest_backend(request_of(), lambda text: None).weights == path
    assert (path.read_bytes(), machine.num_measured) == (b"export", 2)


def test_process_that_measures_at_the_same_time_keeps_the_choice_of_the_first(
    machine: Machine, request_of: Callable[..., PredictionRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[PredictionRequest] = []

    def timed_late(models: dict[str, Any]) -> dict[str, float]:
        monkeypatch.setattr(module, "_timed", machine.timed)
        first.append(with_fastest_backend(request_of(), lambda text: None))
        return {"torch": 3.0, "onnx": 1.0, "openvino": 2.0}

    monkeypatch.setattr(module, "_timed", timed_late)
    second = with_fastest_backend(request_of(), lambda text: None)
    assert first[0].weights == second.weights
    assert second.weights.is_file()
    assert {path.name for path in second.weights.parent.parent.iterdir()} == {second.weights.parent.name}


def test_torch_keeps_the_model_file(machine: Machine, request_of: Callable[..., PredictionRequest]) -> None:
    machine.image_ms["torch"] = 0.5
    assert with_fastest_backend(request_of(), lambda text: None) == request_of()


def test_back_end_that_differs_is_left_out(machine: Machine, request_of: Callable[..., PredictionRequest]) -> None:
    said: list[str] = []
    machine.refused = "openvino"
    assert with_fastest_backend(request_of(), said.append).weights.name == "model.onnx"
    assert "back end openvino is left out: differs" in said


@pytest.mark.parametrize(
    "damage", ["{", "{}", '{"image_ms": {}}', '{"image_ms": {"mxnet": 1}}', '{"image_ms": 3}', "gone"]
)
def test_damaged_choice_is_measured_again(
    damage: str, machine: Machine, request_of: Callable[..., PredictionRequest]
) -> None:
    path = with_fastest_backend(request_of(), lambda text: None).weights
    if damage == "gone":
        path.unlink()
    else:
        (path.parent / "choice.json").write_text(damage)
    assert with_fastest_backend(request_of(), lambda text: None).weights == path
    assert path.is_file()
    assert json.loads((path.parent / "choice.json").read_text())["image_ms"] == machine.image_ms
    assert machine.num_measured == 2


@pytest.mark.parametrize("override", ["runtime.precision=bf16", "runtime.compile=true", "views.flip=true"])
def test_settings_with_one_back_end_are_refused(
    override: str, machine: Machine, request_of: Callable[..., PredictionRequest]
) -> None:
    with pytest.raises(ConfigError, match="--backend auto: expected"):
        with_fastest_backend(request_of(override), lambda text: None)


@pytest.mark.nightly
def test_command_predicts_with_the_chosen_back_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # the data set of the model is drawn there
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 128, np.uint8))
    for _ in range(2):
        words = ["predict", str(MODEL), str(tmp_path / "grey.png"), "--backend", "auto", "--out", str(tmp_path / "out")]
        assert run(words) == 0
        assert "back end" in capsys.readouterr().err
