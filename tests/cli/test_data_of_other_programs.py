"""Training and evaluation on data sets of Darknet and of the YOLO family, and Darknet's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.data.coco import read_coco
from detector.data.conversion import Conversion, coco_to_darknet, coco_to_yolo, yolo_to_coco
from detector.tasks.detection_model import load_detection, read_split


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the JSON that a command prints."""
    capsys.readouterr()
    found = run([*words, "--json"])
    captured = capsys.readouterr()
    assert found == 0, captured.err
    return json.loads(captured.out)


@pytest.fixture(params=[coco_to_yolo, coco_to_darknet], ids=["yolo", "darknet"])
def converted(request: pytest.FixtureRequest, tiny_shapes: Path, tmp_path: Path) -> Conversion:
    """Convert the drawn data set to the format of another program."""
    splits = {
        name: read_coco(tiny_shapes / f"annotations/{name}.json", tiny_shapes / "images" / name)
        for name in ("train", "val")
    }
    made: Conversion = request.param(splits, tmp_path / "converted")
    return made


def test_text_labels_give_the_metrics_of_the_same_objects_in_coco_format(
    converted: Conversion, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, save = str(trained.weights), ["--save-dir", str(tmp_path / "results")]
    measured = printed(["evaluate", weights, f"data={converted.description}", *save], capsys)
    config = load_detection("mish-n", [f"data={converted.description}"])
    as_coco = yolo_to_coco({name: read_split(config, name) for name in ("train", "val")}, tmp_path / "coco")
    again = printed(["evaluate", weights, f"data={as_coco.description}", *save], capsys)
    assert again.pop("ground_truth") != measured.pop("ground_truth")  # they differ in file and hash
    assert again == measured
    assert measured["AP"] > 0.1


def test_training_on_text_labels_writes_a_model(
    converted: Conversion, tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny_words if not word.startswith("data=")]
    words += [f"data={converted.description}", "train.iterations=2", "train.evaluations=1", "input.arithmetic=darknet"]
    assert run(["train", *words]) == 0, capsys.readouterr().err
    (best,) = (tmp_path / "runs").rglob("best.safetensors")
    measured = printed(["evaluate", str(best), "--save-dir", str(tmp_path / "results")], capsys)
    assert measured["num_images"] == 6


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_predict_and_evaluate_agree_with_darknet_arithmetic(
    fit: str, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["input.arithmetic=darknet", f"input.fit={fit}", "input.size=[64,96]"]
    folders = [tmp_path / name for name in ("evaluate", "predict", "opencv")]
    weights = str(trained.weights)
    printed(["evaluate", weights, trained.data, *overrides, "--save-dir", str(folders[0])], capsys)
    words = ["predict", weights, str(trained.images), *overrides, "--save-dir", str(folders[1]), "--format", "coco"]
    assert run([*words, "--annotations", str(trained.annotations)]) == 0
    printed(["evaluate", weights, trained.data, *overrides[1:], "--save-dir", str(folders[2])], capsys)
    ours, theirs, in_opencv = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert ours == theirs
    assert ours != in_opencv
    assert len(ours) > 0
