"""Darknet's .data files: lexed as in Darknet, with lists and labels in the places where Darknet looks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.data.coco import CocoAnnotations
from detector.data.darknet_lists import DarknetDataset, label_file
from detector.errors import ConfigError, DatasetError
from detector.tasks.detection_model import read_split
from detector.tasks.task import load_experiment

GOOD = "classes= 2\ntrain  = data/train.txt\nvalid=data/val.txt\nnames = data/x.names\nbackup = backup/\neval=coco\n"


@pytest.fixture
def data_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes cfg/x.data; images (3 and 1, one object each) are in data/img, lists and names in data."""
    lists = tmp_path / "data"
    (lists / "img").mkdir(parents=True)
    (tmp_path / "cfg").mkdir()
    for number in range(4):
        cv2.imwrite(str(lists / "img" / f"{number}.jpg"), np.zeros((20, 40, 3), np.uint8))
        (lists / "img" / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.5\n")
    (lists / "train.txt").write_text("data/img/0.jpg\r\ndata/img/1.jpg\r\ndata/img/2.jpg\r\n")
    (lists / "val.txt").write_text("data/img/3.jpg")
    (lists / "x.names").write_text("cat\ndog\n")

    def write(text: str) -> Path:
        path = tmp_path / "cfg" / "x.data"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def split_of(file: Path, name: str = "train", **options: Any) -> CocoAnnotations:
    return DarknetDataset(DarknetDataset.Config(file, **options)).split(name)


def refused(file: Path, name: str = "train") -> str:
    with pytest.raises(DatasetError) as caught:
        split_of(file, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_label_file_is_where_darknet_looks():
    for image, label in (
        ("/d/coco/images/train2017/1.jpg", "/d/coco/labels/train2017/1.txt"),
        ("/d/coco/images/val2014/COCO_val2014_1.jpg", "/d/coco/labels/val2014/COCO_val2014_1.txt"),
        ("/d/VOC2007/JPEGImages/1.jpg", "/d/VOC2007/labels/1.txt"),
        ("/d/images/1.jpg", "/d/images/1.txt"),  # unlike the YOLO family
        ("/d/images/train/1.JPG", "/d/images/train/1.txt"),
        ("/d/a.b.jpeg", "/d/a.b.txt"),
    ):
        assert label_file(Path(image)) == Path(label)


def test_a_data_file_is_read_from_darknets_own_layout(data_file):
    train, val = split_of(data_file(GOOD)), split_of(data_file(GOOD), "val")
    assert (len(train), len(val)) == (3, 1)
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 0]
    assert train.image_ids.tolist() == [0, 1, 2]
    assert train.problems == ()
    np.testing.assert_allclose(train.boxes_xywh, [[10, 5, 20, 10]] * 3)


@pytest.mark.parametrize("place", ["folder", "above", "working directory"])
def test_relative_paths_start_where_the_files_are(data_file, tmp_path, monkeypatch, place):
    written = data_file(GOOD)
    if place == "folder":
        written = written.rename(tmp_path / "x.data")
    elif place == "working directory":
        (tmp_path / "far" / "off").mkdir(parents=True)
        written = written.rename(tmp_path / "far" / "off" / "x.data")
        monkeypatch.chdir(tmp_path)
    assert len(split_of(written)) == 3


def test_lines_without_effect_are_counted(data_file):
    text = f"{GOOD}# a comment\n; another\n\nnothing\nempty=\ntrain=other.txt\nvlaid=x\n"
    train = split_of(data_file(text))
    assert [str(problem) for problem in train.problems] == [
        "2 x line without a value, accepted (line 10, line 11)",
        "1 x key given twice, the first counts, accepted (train, line 12)",
        "1 x key that is not read, accepted (vlaid, line 13; did you mean 'valid'?)",
    ]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "train", "has no split 'train'; train= and valid= name"),
        ("train=data/train.txt", "val", "has no split 'val'"),
        (GOOD, "test", "has no split 'test'"),
        (GOOD, "valid", "has no split 'valid'"),
        ("train=data/train.txt", "train", "names no class; write names="),
        (
            "train=data/none.txt\nnames=data/x.names",
            "train",
            "x.data:1: data/none.txt does not exist",
        ),
        ("train=data/train.txt\nnames=none", "train", "x.data:2: none does not exist, neither from"),
        ("classes=3\ntrain=data/train.txt\nnames=data/x.names", "train", "x.data:1: classes=3, but"),
        ("classes=two\ntrain=data/train.txt", "train", "x.data:1: classes=: expected a number of classes, got 'two'"),
        ("classes=0\ntrain=data/train.txt", "train", "got '0'"),
        ("classes=99999999999\ntrain=data/train.txt", "train", "got '99999999999'"),
        ("classes=1\ntrain=data/train.txt", "train", "1.txt:1: expected a class of 0..0, got 1"),
        (f"{GOOD}map=data/x.map", "train", "line 7: map merges classes, which is not supported"),
    ],
)
def test_a_wrong_data_file_is_refused_with_its_line(data_file, text, name, words):
    assert words in refused(data_file(text), name)


def test_an_unreadable_data_file_is_refused(tmp_path):
    path = tmp_path / "x.data"
    assert "data.file: there is no " in refused(path)
    path.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text at byte 0" in refused(path)
    path.write_bytes(b"a=b\n" * 20_000)
    assert "at most 65536 bytes" in refused(path)


def test_classes_without_names_get_default_names(data_file):
    assert split_of(data_file("classes=2\ntrain=data/train.txt")).class_names == ("class_0", "class_1")


def test_a_sixth_number_is_counted_and_does_not_shift_the_rest(data_file, tmp_path):
    for number in range(40):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.zeros((20, 40, 3), np.uint8))
        (tmp_path / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "3.txt").write_text("0 0.5 0.5 0.5 0.5 7\n1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "all.txt").write_text("".join(f"{tmp_path}/{number}.jpg\n" for number in range(40)))
    train = split_of(data_file("names=data/x.names\ntrain=all.txt"))
    assert [str(p) for p in train.problems] == [
        f"1 x line without a class and four numbers, skipped ({tmp_path / '3.txt'}:1)"
    ]
    assert train.labels[3] == 1


def test_the_key_data_accepts_the_path_of_a_data_file(data_file, monkeypatch, tmp_path):
    path = data_file(GOOD)
    monkeypatch.chdir(tmp_path)
    for override in (f"data={path}", "data=cfg/x.data"):
        config = load_experiment("mish-n", [override])
        assert config.data == DarknetDataset.Config(path)
        assert DarknetDataset(config.data).split_names() == ("train", "val")
    assert len(read_split(config, "val")) == 1
    assert load_experiment("mish-n", [f"data={path}", "data.ignore_unknown=true"]).data.ignore_unknown
    without = DarknetDataset.Config(data_file("classes=2\ntrain=data/train.txt"))
    assert DarknetDataset(without).split_names() == ("train",)
    with pytest.raises(ConfigError, match=r"there is no file 'none.data'; check the path"):
        load_experiment("mish-n", ["data=none.data"])


def test_a_data_set_without_a_file_is_refused():
    with pytest.raises(DatasetError, match=r"data.file: expected .*, got none; give data.file"):
        DarknetDataset(DarknetDataset.Config()).split("train")
