from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.data.coco import read_coco
from detector.errors import DetectorError
from detector.inference.predictor import Predictor
from detector.inference.runtime import TorchRuntime
from detector.io import files
from detector.media.charts import place_chart
from detector.media.comparisons import ImageComparison
from detector.media.images import read_image
from detector.structures.canvas import InputConfig
from detector.structures.selection import SelectConfig
from detector.tasks import run_pictures
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model
from detector.tasks.run_pictures import NUM_COMPARED, RunPictures, labels_picture, predictions_picture
from detector.training.events import Event, Noted, Started
from detector.training.run_folder import RunFolder
from detector.workflows.train import open_run, train

pytestmark = pytest.mark.usefixtures("run_charts")
Make = Callable[..., DetectionConfig]


def test_run_writes_its_pictures(experiment: Make) -> None:
    seen: list[tuple[str, list[str]]] = []
    config = experiment("predict.confidence=0.001")

    def look(event: Event) -> None:
        folder = config.train.project / "train"
        seen.append((type(event).__name__, sorted(p.name for p in folder.glob("*.png"))))

    folder = train(config, report=look).folder.path
    assert read_image(folder / "labels.png").shape[1] > 1500
    assert read_image(folder / "results.png").shape == (640, 1100, 3)
    assert read_image(folder / "val_predictions.jpg").size > 0
    assert not list(folder.glob(".*"))
    before_step_2 = [names for kind, names in seen if kind == "StepDone"][1]
    assert before_step_2 == ["labels.png"]
    assert [names for kind, names in seen if kind == "Evaluated"][1] == ["labels.png", "results.png"]


def test_resumed_run_redraws_results_but_not_labels(experiment: Make) -> None:
    config = experiment("train.iterations=6", "train.evaluations=3")
    steps = iter([False, False, True])
    folder = train(config, should_stop=lambda: next(steps)).folder.path
    assert not (folder / "val_predictions.jpg").exists()
    before = {name: (folder / name).read_bytes() for name in ("labels.png", "results.png")}
    (folder / "labels.png").write_bytes(b"kept")
    _, run, state = open_run(folder)
    train(config, resume=(run, state))
    assert (folder / "labels.png").read_bytes() == b"kept"
    assert (folder / "results.png").read_bytes() != before["results.png"]
    assert (folder / "val_predictions.jpg").exists()


def test_new_run_replaces_an_existing_picture_of_labels(experiment: Make) -> None:
    config = experiment("train.iterations=1", "train.evaluations=0")
    folder = config.train.project / "train"

    def leave_one(event: Event) -> None:
        if isinstance(event, Started):
            (folder / "labels.png").write_bytes(b"of another run")

    train(config, report=leave_one)
    assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_do_not_change_the_results(experiment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(folder: Path) -> list[dict[str, str]]:
        with (folder / "results.csv").open(newline="") as file:
            return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]

    with_pictures = train(experiment()).folder
    monkeypatch.setattr(RunPictures, "__call__", lambda self, event: None)
    without = train(experiment()).folder
    assert not (without.path / "labels.png").exists()
    assert numbers(with_pictures.path) == numbers(without.path)


def test_unwritable_picture_is_reported_and_training_continues(experiment: Make) -> None:
    config, told = experiment(), []

    def watch(event: Event) -> None:
        if isinstance(event, Noted):
            told.append(event.text)
        for name in ("labels.png", "results.png", "val_predictions.jpg"):  # a folder has the name of the file
            if (config.train.project / "train").exists():
                (config.train.project / "train" / name / "x").mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    result = train(config, report=watch)
    assert result.finished
    assert sum("results.png cannot be written" in text for text in told) == 2
    assert sum("val_predictions.jpg cannot be written" in text for text in told) == 1


# --- contents of the pictures ----------------------------------------------------------------------------------------


def test_label_counts_exclude_crowds_and_sizes_are_on_the_canvas(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((tiny_shapes / "annotations/train.json").read_text())
    image = {"id": 1, "file_name": content["images"][0]["file_name"], "width": 64, "height": 64}
    boxes = [([0, 0, 16, 4], 0), ([32, 16, 32, 32], 0), ([0, 0, 64, 64], 1)]
    content["images"] = [image]
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": content["categories"][i % 2]["id"], "bbox": box, "iscrowd": crowd}
        for i, (box, crowd) in enumerate(boxes, start=1)
    ]
    path = tmp_path / "few.json"
    path.write_text(json.dumps(content))
    annotations = replace(read_coco(path, tiny_shapes / "images/train"), image_hw=np.array([[64, 64]]))
    shown: dict[str, object] = {}
    png = (place_chart(np.zeros((0, 2))),)[0]
    monkeypatch.setattr(run_pictures, "class_chart", lambda names, counts: shown.update(counts=counts) or png)
    monkeypatch.setattr(run_pictures, "size_chart", lambda sides, *rest: shown.update(sides=sides["train"]) or png)
    monkeypatch.setattr(run_pictures, "place_chart", lambda centres: shown.update(centres=centres) or png)
    labels_picture(annotations, InputConfig(size=(128, 256)))
    assert shown["counts"] == {"train": [1, 1, 0, 0, 0, 0]}
    np.testing.assert_allclose(np.asarray(shown["sides"]), [2 * 8, 2 * 32])
    np.testing.assert_allclose(np.asarray(shown["centres"]), [[8 / 64, 2 / 64], [48 / 64, 32 / 64]])
    labels_picture(annotations, InputConfig(size=(128, 256), fit="stretch"))
    np.testing.assert_allclose(np.asarray(shown["sides"]), [8 * 8**0.5, 32 * 8**0.5])
    monkeypatch.setattr(run_pictures, "_MOST_DRAWN", 2)  # of a larger split, every n-th object is drawn
    labels_picture(annotations, InputConfig(size=(128, 256)))
    assert (shown["counts"], len(np.asarray(shown["sides"]))) == ({"train": [1, 1, 0, 0, 0, 0]}, 1)
    monkeypatch.setattr(run_pictures, "_MOST_DRAWN", 500_000)
    labels_picture(replace(annotations, image_hw=np.array([[0, 0]])), InputConfig(size=64))
    assert (shown["counts"], len(np.asarray(shown["sides"]))) == ({"train": [1, 1, 0, 0, 0, 0]}, 0)


def test_split_with_fewer_classes_is_drawn_with_the_names_of_the_model(
    experiment: Make, tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    content = json.loads((root / "annotations/val.json").read_text())
    kept = content["categories"][3:]
    ids = [category["id"] for category in content["categories"]]
    names = [category["name"] for category in content["categories"]]
    content["categories"] = kept
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in {c["id"] for c in kept}]
    (root / "annotations/val.json").write_text(json.dumps(content))
    val = read_coco(root / "annotations/val.json", root / "images/val")
    (root / "images/val" / val.file_names[0]).write_bytes(b"broken")
    config = experiment(data=root)
    runtime = TorchRuntime(build_model(config, 6), torch.device("cpu"))
    predictor = Predictor(runtime, config.input, names, ids, batch_size=4)
    shown: list[ImageComparison] = []

    def note(compared: Sequence[ImageComparison], class_names: Sequence[str], tile_hw: tuple[int, int]) -> None:
        shown.extend(compared)
        assert list(class_names) == names

    monkeypatch.setattr(run_pictures, "draw_comparisons", note)
    predictions_picture(predictor, val, SelectConfig())
    assert len(shown) == min(NUM_COMPARED, len(val)) - 1  # without the broken image
    for one, index in zip(shown, range(1, len(val)), strict=True):
        assert one.name == val.file_names[index]
        found = [names[label] for label in one.labels]
        assert found == [val.class_names[label] for label in val.labels_of(index)]
    assert sum(len(one.labels) for one in shown) > 0


def test_no_picture_is_drawn_if_no_image_can_be_read(experiment: Make, tiny_shapes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    val = read_coco(root / "annotations/val.json", root / "images/val")
    for name in val.file_names:
        (root / "images/val" / name).write_bytes(b"broken")
    config = experiment(data=root)
    runtime = TorchRuntime(build_model(config, 6), torch.device("cpu"))
    predictor = Predictor(runtime, config.input, val.class_names, val.category_ids)
    assert predictions_picture(predictor, val, SelectConfig()) is None


# --- files -----------------------------------------------------------------------------------------------------------


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path, "run")
    folder.write_file("a.txt", b"old")

    def full(written: Path, path: Path, *, durable: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "put_in_place", full)
    with pytest.raises(
        DetectorError, match=r"a\.txt cannot be written \(No space left on device\); an old version is intact"
    ):
        folder.write_file("a.txt", b"newer")
    assert [path.name for path in folder.path.iterdir() if path.is_file()] == ["a.txt"]
    assert (folder.path / "a.txt").read_bytes() == b"old"


def test_matplotlib_is_not_imported_with_the_training_workflow() -> None:
    code = "import sys, detector.workflows.train; print(any(name.startswith('matplotlib') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
