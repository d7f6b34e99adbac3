"""Recognition of data sets: what is said, archives, choices, tasks and the answer to `data=` in Python."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.config import registry
from detector.data.classification_split import ImageSetConfig
from detector.data.coco import read_coco
from detector.data.conversion import coco_to_yolo
from detector.data.dataset import DatasetConfig
from detector.data.file_reader import FoundData
from detector.data.recogniser import recognise
from detector.errors import ConfigError, DatasetError
from detector.io.announcements import announcing
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection, read_split
from detector.tasks.task import changed_config, load_experiment, split_to_evaluate
from detector.training.events import Noted

PNG = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def coco(names: list[str]) -> str:
    rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20]} for i in range(len(names))]
    images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]})


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def roboflow(tmp_path: Path) -> Path:
    """An export of Roboflow in COCO format: three training and two validation images."""
    root = tmp_path / "export"
    for word, number in (("train", 3), ("valid", 2)):
        names = [f"{word}{i}.png" for i in range(number)]
        for name in names:
            put(root / word / name, PNG)
        put(root / word / "_annotations.coco.json", coco(names))
    return root


def data_of(*words: str, preset: str = "mish-n") -> Any:
    """Return the data set of an experiment."""
    return load_experiment(preset, words).data


def said(path: Path, kind: registry.Kind = DatasetConfig) -> list[str]:
    lines: list[str] = []
    with announcing(lines.append):
        recognise(path, kind)
    return lines


def test_one_line_says_what_was_found(roboflow: Path) -> None:
    assert said(roboflow) == ["export: Roboflow COCO export: train 3, valid 2 images, 1 class"]
    config = load_detection("mish-n", [f"data={roboflow}"])
    assert [len(read_split(config, name)) for name in ("train", "val")] == [3, 2]
    with_key = data_of(f"data={roboflow}", "data.ignore_unknown=true")
    assert (with_key.val, with_key.ignore_unknown) == (data_of(f"data={roboflow}").val, True)


def test_the_folder_around_an_export_may_be_given(roboflow: Path, tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    roboflow.rename(tmp_path / "around" / "export")
    (tmp_path / "around" / "notes.txt").write_text("from Roboflow")
    assert said(tmp_path / "around") == ["around: Roboflow COCO export: train 3, valid 2 images, 1 class"]


@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
def test_an_archive_is_unpacked_into_the_cache_once(form: str, roboflow: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "set"), form, tmp_path, "export"))
    shutil.rmtree(roboflow)
    before = {path.name for path in tmp_path.iterdir()}
    lines = said(archive)
    assert lines[0].startswith(f"{archive.name}: unpacking to {tmp_path}/cache/detector/data/set-")
    assert lines[1:] == [f"{archive.name}: Roboflow COCO export: train 3, valid 2 images, 1 class"]
    assert {path.name for path in tmp_path.iterdir()} == before | {"cache"}
    assert said(archive) == lines[1:]
    config = load_detection("mish-n", [f"data={archive.name}"])
    assert len(read_split(config, "val")) == 2


def test_an_archive_that_changed_is_unpacked_again(tmp_path: Path) -> None:
    for names in (["a.png"], ["a.png", "b.png"]):
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            archive.writestr("x.json", coco(names))
            for name in names:
                archive.writestr(f"images/{name}", PNG)
        assert said(tmp_path / "set.zip")[-1].startswith(f"set.zip: COCO data set: train {len(names)} image")


def test_several_data_sets_are_listed_with_the_words_that_choose_them(roboflow: Path, tmp_path: Path) -> None:
    put(roboflow / "data.yaml", "train: train\nval: valid\nnames: [cat]\n")
    with pytest.raises(DatasetError, match=r"^export: holds 2 data sets, expected one; choose: ") as caught:
        recognise(roboflow, DatasetConfig)
    assert "YOLO data set: train 3, valid 2 images, 1 class (data=export/data.yaml)" in str(caught.value)
    assert registry.name_of(data_of("data=export/data.yaml")) == "yolo"


def test_two_files_for_one_split_are_alternatives(tmp_path: Path) -> None:
    put(tmp_path / "set/a.png", PNG)
    for name in ("first", "second"):
        put(tmp_path / f"set/{name}.json", coco(["a.png"]))
    with pytest.raises(DatasetError, match=r"\(data=set/first.json\); COCO .* \(data=set/second.json\)$"):
        recognise(tmp_path / "set", DatasetConfig)


def test_the_folder_of_images_may_be_given_beside_a_file(roboflow: Path, tmp_path: Path) -> None:
    shutil.move(roboflow / "train/_annotations.coco.json", tmp_path / "far.json")
    claim = recognise(tmp_path / "far.json", DatasetConfig, Path("export/train"))
    assert claim.keys == {"train": {"annotations": str(tmp_path / "far.json"), "images": str(roboflow / "train")}}
    with pytest.raises(ConfigError, match=r"^there is no file or folder 'export/trian'; did you mean 'export/train'"):
        recognise(tmp_path / "far.json", DatasetConfig, Path("export/trian"))


def test_folders_of_classes_belong_to_classification(tmp_path: Path, roboflow: Path) -> None:
    for name in ("cat/a", "cat/b", "dog/c"):
        put(tmp_path / f"classes/{name}.png", PNG)
    assert said(tmp_path / "classes", ImageSetConfig) == ["classes: folders of classes: 3 images, 2 classes"]
    assert registry.name_of(data_of("data=classes", preset="classify")) == "folders"
    with pytest.raises(DatasetError, match=r"use detector train classify data=classes$"):
        load_experiment("mish-n", ["data=classes"])
    with pytest.raises(DatasetError, match=r"got Roboflow COCO export: .*use detector train mish-n data=export$"):
        load_experiment("classify", ["data=export"])


def test_a_folder_with_the_name_of_a_reader_is_read(roboflow: Path, tmp_path: Path) -> None:
    roboflow.rename(tmp_path / "coco")
    assert registry.name_of(data_of("data=coco")) == "coco"
    assert data_of("data=coco").train is not None
    (tmp_path / "shapes").mkdir()  # this name stands for a data set without a path
    assert registry.name_of(data_of("data=shapes")) == "shapes"


def test_the_only_split_of_other_data_is_evaluated(roboflow: Path) -> None:
    config = load_detection("mish-n", ["data=export/valid/_annotations.coco.json"])
    notes: list[str] = []
    assert split_to_evaluate(config, None, True, notes.append) == "train"
    assert notes == ["evaluated on train, the only split of the data set"]
    assert split_to_evaluate(config, None, False) == "val"
    assert split_to_evaluate(config, "test", True) == "test"
    assert split_to_evaluate(load_detection("mish-n", ["data=export"]), None, True) == "val"


def test_python_reports_what_was_found(roboflow: Path) -> None:
    events: list[object] = []
    config = changed_config(DetectionConfig(), str(roboflow), {}, "Detector", events.append)
    assert config.data is not None
    assert events == [Noted("export: Roboflow COCO export: train 3, valid 2 images, 1 class")]


def test_paths_of_another_machine_are_found_by_their_end(tiny_shapes: Path, tmp_path: Path) -> None:
    splits = {"val": read_coco(tiny_shapes / "annotations/val.json", tiny_shapes / "images/val")}
    description = coco_to_yolo(splits, tmp_path / "set").description
    text = description.read_text().replace("images/val", r"C:\data\set\images\val")
    description.write_text(text.replace("val: C:", "train: /home/someone/set/images/val\nval: C:"))
    config = load_detection("mish-n", [f"data={description}"])
    assert [len(read_split(config, name)) for name in ("train", "val")] == [6, 6]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (FoundData("set", {}, {"train": 144, "valid": 21}, 4), "set: train 144, valid 21 images, 4 classes"),
        (FoundData("set", {}, {"train": 1}), "set: train 1 image"),
        (FoundData("set", {}, {"train": 0, "val": 0}, 1), "set: train, val, 1 class"),
        (FoundData("set", {}), "set"),
        (FoundData("set", {}, {"": 1200}, 2), "set: 1,200 images, 2 classes"),
    ],
)
def test_words_for_what_was_found(found: FoundData, text: str) -> None:
    assert str(found) == text
