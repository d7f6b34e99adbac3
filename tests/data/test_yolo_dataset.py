"""Descriptions of the YOLO family: given on the command line, read with every convention of paths and names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.config import registry
from detector.data.coco import CocoAnnotations
from detector.data.coco_dataset import CocoDataset
from detector.data.yolo_dataset import YoloDataset, label_file
from detector.errors import ConfigError, DatasetError
from detector.tasks.detection_model import read_split
from detector.tasks.task import load_experiment


@pytest.fixture
def description(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a description beside images/train, images/val (4 and 2 images, one object each) and their labels."""
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            image = tmp_path / "images" / split / f"{split}{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), np.zeros((20, 40, 3), np.uint8))
            label = tmp_path / "labels" / split / f"{split}{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{number % 2} 0.5 0.5 0.5 0.5\n")

    def write(text: str) -> Path:
        path = tmp_path / "data.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


GOOD = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def split_of(file: Path, name: str = "train", **options: Any) -> CocoAnnotations:
    return YoloDataset(YoloDataset.Config(file, **options)).split(name)


def refused(file: Path, name: str = "train") -> str:
    with pytest.raises(DatasetError) as caught:
        split_of(file, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_label_file_is_where_the_family_puts_it():
    assert label_file(Path("/a/images/train/x.y.jpg")) == Path("/a/labels/train/x.y.txt")
    assert label_file(Path("/images/a/images/b.png")) == Path("/images/a/labels/b.txt")
    assert label_file(Path("/a/pictures/images.png")) == Path("/a/pictures/images.txt")
    assert label_file(Path("/a/my images/b.png")) == Path("/a/my images/b.txt")


def test_a_description_of_folders_is_read(description):
    train, val = split_of(description(GOOD)), split_of(description(GOOD), "val")
    assert (len(train), len(val)) == (4, 2)
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert train.problems == ()
    assert train.file_names[0] == "images/train/train0.jpg"
    np.testing.assert_allclose(train.boxes_xywh, [[10, 5, 20, 10]] * 4)


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n",
        "names: {1: dog, 0: cat}\nnc: 2\ntrain: ./images/train/\nval: images/val\ntest:\n",
        "path: /nowhere/coco\ntrain: images/train\nval: images/val\nnames: ['cat', 'dog']\n",
        "path: images\ntrain: train\nval: val\nnames: [cat, dog]\n",
        "train: ../images/train\nval: ../images/val\nnames: [cat, dog]\nnc: 2\n",  # as Roboflow writes it
        "train: [images/train]\nval: images/val\nnames: [cat, dog]\ndownload: |\n  import os\n  os.remove('x')\n",
        "train: train.txt\nval: images/val\nnames: [cat, dog]\n",
        "train: [one.txt, rest.txt]\nval: images/val\nnames: [cat, dog]\n",
    ],
)
def test_equivalent_descriptions_are_read_the_same(description, tmp_path, text):
    (tmp_path / "train.txt").write_text("".join(f"./images/train/train{i}.jpg\n" for i in range(4)))
    (tmp_path / "one.txt").write_text("images/train/train0.jpg\n")
    (tmp_path / "rest.txt").write_text("".join(f"{tmp_path}/images/train/train{i}.jpg\n" for i in range(1, 4)))
    train = split_of(description(text))
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert train.class_names == ("cat", "dog")
    assert train.problems == ()


def test_classes_without_names_get_default_names(description):
    train = split_of(description("train: images/train\nnc: 3\n"))
    assert train.class_names == ("class_0", "class_1", "class_2")
    assert [p.count for p in train.problems] == [3]
    assert split_of(description("train: images/train\nnames: {0: 0, 1: 7}\n")).class_names == ("0", "7")


def test_a_key_that_is_not_read_is_counted_with_its_line(description):
    train = split_of(description(f"{GOOD}vall: images/val\nroboflow:\n  workspace: x\nauthor: y\n"))
    assert [str(p) for p in train.problems] == [
        "2 x key that is not read, accepted (vall, line 4, author, line 7)",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train\n", "data.yaml: names no class"),
        ("names: [cat]\n", "data.yaml: has no split 'train'; write train:"),
        ("train: images/train\nnames: [cat]\n", "train1.txt:1: expected a class of 0..0, got 1"),
        ("train: images/none\nnames: [cat]\n", "got images/none, which is not in"),
        ("train: labels\nnames: [cat]\n", "expected images in"),
        ("train: 3\nnames: [cat]\n", "data.yaml:1: expected a folder or a list of images, got the number 3"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", "data.yaml:3: nc is 3, but 2 names are given"),
        ("train: images/train\nnc: 900000000000\n", "data.yaml:2: nc: expected at most 999,999 classes"),
        ("train: images/train\nnames: [cat, dog]\nnc: yes\n", "data.yaml:3: nc: expected the number of classes"),
        ("train: images/train\nnames: [cat, no]\n", "data.yaml:2: expected a class name, got the bool false; put"),
        ("train: images/train\nnames: {0: cat, 2: dog}\n", "data.yaml:2: names: expected a list, or a name for each"),
        ("train: images/train\nnames: cat\n", "data.yaml:2: names: expected a list"),
        ("train: images/train\nnames: [cat]\ntrain: x\n", "data.yaml:3: duplicate key 'train', first on line 1"),
        ("path: 3\ntrain: images/train\nnames: [cat]\n", "data.yaml:1: path: expected a folder"),
        ("train: !!python/name:os.system x\nnames: [a]\n", "the tag 'tag:yaml.org,2002:python/name:os.system' is not"),
        ("train: [\nnames: [a]\n", "data.yaml:3:1: not valid YAML"),
        ("- a\n- b\n", "data.yaml:1: expected keys and values, got a list"),
    ],
)
def test_a_wrong_description_is_refused_with_its_line(description, text, words):
    assert words in refused(description(text))


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    assert "none.yaml; if it was moved, give data.file=" in refused(tmp_path / "none.yaml")


def test_unknown_classes_can_be_left_out(description, tmp_path):
    train = split_of(description("train: images/train\nnames: [cat]\n"), ignore_unknown=True)
    assert train.num_boxes == 2


# --- on the command line -------------------------------------------------------------------------------------------


def test_the_key_data_accepts_the_path_of_a_data_yaml(description, monkeypatch, tmp_path):
    path = description(GOOD)
    for override in (f"data={path}", "data=data.yaml"):
        monkeypatch.chdir(tmp_path)
        config = load_experiment("mish-n", [override])
        assert config.data == YoloDataset.Config(path)
        assert len(read_split(config, "val")) == 2
    with_option = load_experiment("mish-n", [f"data={path}", "data.ignore_unknown=true"])
    assert with_option.data == YoloDataset.Config(path, ignore_unknown=True)
    (tmp_path / "experiment.yaml").write_text("base: mish-n\ndata: data.yaml\n")
    assert load_experiment(str(tmp_path / "experiment.yaml")).data == YoloDataset.Config(path)


def test_a_configuration_of_this_package_is_not_claimed(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: coco\ntrain: {annotations: a.json, images: b}\n")
    config = load_experiment("mish-n", [f"data={path}"])
    assert isinstance(config.data, CocoDataset.Config)
    assert not YoloDataset.claims(path)
    assert not registry.is_foreign(path)
    with pytest.raises(ConfigError, match=r"there is no file 'none.yaml'; check the path"):
        load_experiment("mish-n", ["data=none.yaml"])


def test_a_description_without_val_has_only_its_other_splits(description):
    assert YoloDataset(YoloDataset.Config(description(GOOD))).split_names() == ("train", "val")
    without = description("train: images/train\nval:\nnames: [cat, dog]\n")
    assert YoloDataset(YoloDataset.Config(without)).split_names() == ("train",)


def test_a_data_set_without_a_file_is_refused():
    with pytest.raises(DatasetError, match=r"data.file: expected .*, got none; give data.file"):
        YoloDataset(YoloDataset.Config()).split("train")
