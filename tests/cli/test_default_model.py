"""The model that is used where none is named, published names, and descriptions of model files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.api import Detector
from detector.cli.main import run
from detector.errors import CheckpointError
from detector.models.checkpoint import load_model_file
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import load_yolox_file, save_yolox_file
from detector.workflows.describe import describe_model

SHIPPED = Path(__file__).parents[2] / "weights" / "yolox-nano.safetensors"


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((40, 60, 3), 120, np.uint8))
    return path


def test_predict_without_a_model_uses_the_shipped_one_and_says_so(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "photo.png", "input.size=64"]) == 0
    told = capsys.readouterr()
    assert "model: yolox-nano, 80 classes of COCO" in told.err
    assert "photo.png: " in told.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("yolox-nan", "photo.png"), "yolox-nan: no such model file, .*; did you mean 'yolox-nano'"),
        (("mish-n-drawm", "photo.png"), "mish-n-drawm: no such model file, .*; did you mean 'mish-n-drawn'"),
        (("mish-n", "photo.png"), "mish-n: no such model file, run folder"),
        (("runs/detect/none", "photo.png"), "runs/detect/none: no such model file, run folder"),
        (("photo.png", "yolox-nano"), "yolox-nano: expected the model before the sources, got it after photo.png"),
        (("photo.png", "best.safetensors"), "best.safetensors: expected the model before the sources"),
        (("yolox-nano",), "expected a source after the model yolox-nano, got none"),
    ],
)
def test_mistyped_or_misplaced_model_is_not_replaced_by_the_shipped_one(
    photo: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(["predict", *words, "input.size=64"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_missing_image_beside_others_is_skipped_with_the_shipped_model(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "none.png", "photo.png", "input.size=64"]) == 0
    assert "none.png: not read" in capsys.readouterr().out


def test_predict_takes_a_published_name(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "yolox-nano", "photo.png", "input.size=64"]) == 0
    assert "photo.png: " in capsys.readouterr().out
    assert run(["predict", "yolox-s", "photo.png"]) != 0
    assert "`detector download yolox-s` fetches them" in capsys.readouterr().err


def test_start_from_drawn_pictures_is_a_model_by_its_name(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "mish-n-drawn", str(photo), "--no-pictures", "--out", str(tmp_path / "out")]) == 0
    assert "ellipse" in Detector("mish-n-drawn").class_names
    capsys.readouterr()
    assert run(["download", "mish-n-drawn"]) == 1
    assert "mish-n-drawn is part of the package, so that there is nothing to download" in capsys.readouterr().err


def test_detector_without_a_model_is_the_shipped_one(photo: Path) -> None:
    detector = Detector()
    assert detector.name == "yolox-nano"
    assert "yolox-nano.safetensors', 80 classes" in repr(detector)
    assert detector.class_names[:2] == ("person", "bicycle")
    assert detector.config.predict.best_class
    found = detector.predict(photo)
    assert not isinstance(found, list)
    assert found.image_hw == (40, 60)


def test_detector_of_missing_published_weights_can_be_trained_and_says_how_to_fetch_them(photo: Path) -> None:
    detector = Detector("yolox-s")
    assert repr(detector) == "Detector(no weights)"
    with pytest.raises(CheckpointError, match="`detector download yolox-s`"):
        detector.predict(photo)


def test_models_describes_the_shipped_weights(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "yolox-nano", "--layers"]) == 0
    out = capsys.readouterr().out
    for text in (
        "912,159",
        "1.05 at 416 px",
        "80: person, bicycle",
        "Apache-2.0",
        "COCO train2017",
        "backbone.stem.conv",
    ):
        assert text in out
    assert run(["models", "yolox-nano", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["num_parameters"] == 912_159
    assert "layers" not in plain


def test_models_describes_a_pth_like_the_model_itself(photo: Path) -> None:
    assert run(["convert", "yolox-nano", "own.pth", "--quiet"]) == 0
    shipped, found = describe_model(SHIPPED), describe_model(Path("own.pth"))
    assert (found.network, found.num_parameters, found.gflops) == ("yolox", 912_159, shipped.gflops)
    assert found.class_names == shipped.class_names
    assert found.layers == shipped.layers


def test_layers_hold_every_parameter_once() -> None:
    for name in (str(SHIPPED), "yolov4-tiny.cfg"):
        found = describe_model(Path(name))
        assert sum(layer.num_parameters for layer in found.layers) == found.num_parameters


@pytest.mark.parametrize(
    "words", [["--layers"], ["a.safetensors", "b.safetensors"], ["none.safetensors"], ["photo.png"]]
)
def test_models_refuses_what_is_no_model(photo: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(["models", *words]) != 0
    assert "Traceback" not in capsys.readouterr().err


def test_convert_to_pth_and_back_keeps_every_byte(photo: Path) -> None:
    assert run(["convert", "yolox-nano", "own.pth", "--quiet"]) == 0
    assert Path("own.names").read_text("utf-8").splitlines()[:2] == ["person", "bicycle"]
    assert run(["convert", "own.pth", "again.safetensors", "--quiet"]) == 0
    before, after = load_model_file(SHIPPED), load_model_file(Path("again.safetensors"))
    assert before.class_names == after.class_names
    assert before.state.keys() == after.state.keys()
    assert all(before.state[name].numpy().tobytes() == after.state[name].numpy().tobytes() for name in before.state)
    assert after.provenance == {"source": "own.pth"}


def test_convert_refuses_a_pth_of_another_network(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(trained.weights), str(tmp_path / "out.pth")]) != 0
    assert "expected a model of YOLOX for a .pth" in capsys.readouterr().err


def test_unfold_tells_the_loss_before_and_after(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Detector()._model().model
    assert isinstance(model, Yolox)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        torch.nn.init.ones_(norm.weight)
    save_yolox_file(Path("folded.pth"), model)
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(f"image{number}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    assert run(["convert", "folded.pth", "own.pth", "input.size=64", "--unfold", "image*.png"]) == 0
    assert "batch norm recovered from 3 images of image*.png: loss in training mode" in capsys.readouterr().err
    assert load_yolox_file(Path("own.pth")).state.keys() == model.state_dict().keys()
    assert run(["convert", "own.pth", "twice.pth", "input.size=64", "--unfold", "image*.png"]) != 0
    assert "expected a model whose batch norm was folded" in capsys.readouterr().err
