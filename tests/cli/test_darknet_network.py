"""Darknet networks from the command line: training, conversion, evaluation and prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run

QUIET = ("--json", "--quiet")
TINY = Path(__file__).parents[1] / "darknet" / "tiny.cfg"


@pytest.fixture(name="trained")
def trained_network(trained_darknet: Any) -> Any:
    return trained_darknet


def words(*given: object) -> list[str]:
    return [str(word) for word in given]


def test_network_converted_to_weights_and_back_has_the_same_ap(trained: Any, tmp_path: Path, capsys) -> None:
    target = tmp_path / "shapes.weights"
    assert run(words("convert", trained.weights, target)) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"shapes.{k}") for k in ("weights", "cfg", "names")]
    assert (tmp_path / "shapes.names").read_text() == "circle\nsquare\ntriangle\nstar\ncross\ncrescent\n"
    again = tmp_path / "again.safetensors"
    assert run(words("convert", target, again)) == 0
    assert run(words("convert", again, tmp_path / "third.weights")) == 0
    assert (tmp_path / "third.weights").read_bytes() == target.read_bytes()
    assert (tmp_path / "third.cfg").read_text() == (tmp_path / "shapes.cfg").read_text()
    assert run(words("convert", target, tmp_path / "folded.weights", "--fold")) == 0
    assert "batch_normalize" not in (tmp_path / "folded.cfg").read_text()

    found = {}
    for name in (trained.weights, target, again, tmp_path / "folded.weights"):
        folder = tmp_path / f"val-{name.stem}"
        arguments = words("evaluate", name, trained.data, "device=cpu", "--json", "--quiet", "--save-dir", folder)
        capsys.readouterr()
        assert run(arguments) == 0
        found[name.stem] = json.loads(capsys.readouterr().out)["AP"]
    assert found["best"] > 0.2
    assert found["shapes"] == found["again"] == found["best"]
    assert found["folded"] == pytest.approx(found["best"], abs=0.01)


def test_results_of_predict_have_the_metrics_of_evaluate(trained: Any, tmp_path: Path, capsys) -> None:
    weights = tmp_path / "shapes.weights"
    assert run(words("convert", trained.weights, weights)) == 0
    assert (
        run(
            words(
                *(
                    "predict",
                    "--weights",
                    weights,
                    "--cfg",
                    tmp_path / "shapes.cfg",
                    "--names",
                    tmp_path / "shapes.names",
                ),
                *(trained.images, "--annotations", trained.annotations, "--format", "coco", "device=cpu", "--quiet"),
                *("--save-dir", tmp_path / "predict", "evaluate.batch_size=4"),
            )
        )
        == 0
    )
    capsys.readouterr()
    results = tmp_path / "predict/results.json"
    assert run(words("evaluate", "--results", results, "--annotations", trained.annotations, "--json", "--quiet")) == 0
    saved = json.loads(capsys.readouterr().out)
    measure = words(
        "evaluate", weights, trained.data, "device=cpu", "--json", "--quiet", "--save-dir", tmp_path / "val"
    )
    assert run([*measure, "evaluate.batch_size=4"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["AP"] > 0.2
    for name, value in measured.items():
        if name.startswith("A"):
            assert saved[name] == value, name


def test_without_names_classes_are_numbers_and_categories_are_matched_by_order(
    trained: Any, tmp_path: Path, capsys
) -> None:
    weights = tmp_path / "shapes.weights"
    assert run(words("convert", trained.weights, weights)) == 0
    measure = words(
        "evaluate", weights, trained.data, "device=cpu", "--json", "--quiet", "--save-dir", tmp_path / "val"
    )
    assert run(measure) == 0
    named = json.loads(capsys.readouterr().out.split("\n", 3)[3])
    (tmp_path / "shapes.names").unlink()
    assert run(measure) == 0
    assert json.loads(capsys.readouterr().out)["AP"] == named["AP"]
    image = sorted(trained.images.iterdir())[0]
    shown = words("predict", weights, image, "device=cpu", "--json", "--quiet", "--save-dir", tmp_path / "one")
    assert run(shown) == 0
    record = json.loads(capsys.readouterr().out)
    assert {found["class"] for found in record["detections"]} <= set("012345")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["a.weights"], "expected a SOURCE and a TARGET, got a.weights"),
        (["a.weights", "b.onnx"], r"b\.onnx: expected a target NAME\.safetensors, NAME\.weights or NAME\.pth"),
        (["a.weights", "b.safetensors", "--fold"], r"--fold: expected a target NAME\.weights"),
        (["missing.weights", "b.safetensors", "--cfg", "yolov3-tiny"], r"missing\.weights does not exist"),
    ],
)
def test_impossible_conversion_is_rejected_with_the_reason(given, reason, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["convert", *given]) in (2, 4)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_replaced_only_with_overwrite(trained: Any, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.cfg").write_text("precious")
    assert run(words("convert", trained.weights, tmp_path / "mine.weights")) == 2
    assert "mine.cfg: already exists; choose another TARGET or give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "mine.cfg").read_text() == "precious"
    assert not (tmp_path / "mine.weights").exists()
    assert run(words("convert", trained.weights, tmp_path / "mine.weights", "--overwrite")) == 0
    assert (tmp_path / "mine.cfg").read_text().startswith("[net]")


def test_model_without_a_cfg_cannot_be_converted_to_weights(tmp_path: Path, capsys) -> None:
    import torch

    from detector.config.schema import config_to_plain
    from detector.models.checkpoint import ModelFile, save_model
    from detector.tasks.detection_model import build_model, load_detection

    torch.manual_seed(0)
    config = load_detection("mish-n", ["model.width=0.125"])
    state = build_model(config, 1).state_dict()
    save_model(tmp_path / "m.safetensors", ModelFile(config_to_plain(config), ("ball",), (1,), state))
    assert run(words("convert", tmp_path / "m.safetensors", tmp_path / "m.weights")) == 2
    assert "its model has no .cfg" in capsys.readouterr().err
