"""Label files, lists, .data and data.yaml files with random damage: a clear error or a count, never a crash."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.coco import CocoAnnotations
from detector.data.darknet_lists import DarknetDataset
from detector.data.yolo_dataset import YoloDataset
from detector.errors import DatasetError

NUM_IMAGES = 12
FILES = ("labels/03.txt", "labels/04.txt", "images/03.txt", "list.txt", "x.names", "x.data", "data.yaml")
# What damage is made of: bytes that mean something to one of the parsers, and some that mean nothing to any.
WORDS = [b"0", b"1", b"-1", b"9" * 30, b".5", b"nan", b"inf", b"1e999", b"1_0", b" ", b"\n", b"\r\n", b"\t", b"=", b"#",
         b";", b":", b"- ", b"{", b"}", b"[", b"]", b"'", b'"', b"&a", b"*a", b"!!python/name:os", b"|", b"../", b"/",
         b"\\", b"~", b"\0", b"\xff", b"\xef\xbb\xbf", "é".encode(), b"images", b"names", b"train", b"nc"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(NUM_IMAGES):
        cv2.imwrite(str(tmp_path / "images" / f"{number:02d}.png"), np.zeros((8, 8, 3), np.uint8))
        for name in ("images", "labels"):
            lines = f"{number % 2} 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.125 0.5\n"
            (tmp_path / name / f"{number:02d}.txt").write_text(lines)
    (tmp_path / "list.txt").write_text("".join(f"images/{number:02d}.png\n" for number in range(NUM_IMAGES)))
    (tmp_path / "x.names").write_text("cat\ndog\n")
    (tmp_path / "x.data").write_text("classes = 2\ntrain = list.txt\nnames = x.names\nbackup = backup\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images\nval: list.txt\nnc: 2\nnames:\n  0: cat\n  1: dog\n")
    return tmp_path


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(content) + 1))
        word = WORDS[rng.integers(len(WORDS))] if rng.random() < 0.8 else bytes([rng.integers(256)])
        content = content[:start] + word + content[start + int(rng.integers(0, 6)) :]
    return content


def check(annotations: CocoAnnotations) -> None:
    assert len(annotations) == len(set(annotations.image_ids.tolist()))
    assert len(annotations.boxes_xywh) == annotations.offsets[-1] == annotations.num_boxes
    assert np.isfinite(annotations.boxes_xywh).all()
    assert (annotations.boxes_xywh[:, 2:] > 0).all()
    assert ((annotations.labels >= 0) & (annotations.labels < len(annotations.class_names))).all()


def read_all(folder: Path) -> int:
    """Reads the splits; returns how many were accepted."""
    num_read, refused = 0, ""
    for data_set, split in (
        (YoloDataset(YoloDataset.Config(folder / "data.yaml")), "train"),
        (YoloDataset(YoloDataset.Config(folder / "data.yaml")), "val"),
        (DarknetDataset(DarknetDataset.Config(folder / "x.data")), "train"),
    ):
        try:
            check(data_set.split(split))
            num_read += 1
        except DatasetError as error:
            refused = str(error)
    assert len(refused) < 5000
    return num_read


@pytest.mark.parametrize("num_cases", [150, pytest.param(6_000, marks=pytest.mark.nightly)])
def test_random_damage_is_refused_or_counted(folder: Path, num_cases: int) -> None:
    rng = np.random.default_rng(num_cases)
    assert read_all(folder) == 3
    num_read = 0
    for case in range(num_cases):
        path = folder / FILES[case % len(FILES)]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        num_read += read_all(folder)
        path.write_bytes(whole)
    assert 0.2 * 3 * num_cases < num_read < 0.95 * 3 * num_cases  # past the first stage, and not untouched
