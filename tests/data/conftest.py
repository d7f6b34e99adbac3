"""Fixtures of the tests of data: a sound COCO file, and one that a test has changed."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.config import registry
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.dataset import Dataset
from detector.tasks.detection_model import load_detection

NUM_IMAGES = 40  # enough for one fault to stay below the share that may be skipped
HEIGHT, WIDTH = 60, 80


def sound() -> dict[str, Any]:
    """Images 100, 101, ... of 60 x 80, one box in each, categories 90, 3, 7 in that order."""
    boxes = [[5.25, 6.5, 30, 20], [40, 10, 25.5, 45]]
    return {
        "images": [
            {"id": 100 + i, "file_name": f"{i:03d}.png", "height": HEIGHT, "width": WIDTH} for i in range(NUM_IMAGES)
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}],
        "annotations": [
            {"id": 1 + i, "image_id": 100 + i, "category_id": (3, 7, 90)[i % 3], "iscrowd": 0}
            | {"bbox": boxes[i % 2], "area": boxes[i % 2][2] * boxes[i % 2][3]}
            for i in range(NUM_IMAGES)
        ],
    }


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(NUM_IMAGES):
        (folder / f"{i:03d}.png").write_bytes(png(WIDTH, HEIGHT))
    return folder


@pytest.fixture
def read_changed(tmp_path: Path, pictures: Path) -> Callable[..., CocoAnnotations]:
    """Reads a sound file changed by a function of its dictionary, which may give the whole content instead."""

    def read(change: Callable[[dict[str, Any]], Any], folder: Path = pictures, **options: Any) -> CocoAnnotations:
        document = sound()
        content = change(document)
        if not isinstance(content, (str, bytes)):
            content = json.dumps(document)
        path = tmp_path / "instances.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return read_coco(path, folder, **options)

    return read


def objects_of(annotations: CocoAnnotations) -> dict[str, list[tuple[Any, ...]]]:
    """Return the objects by the name of their image, sorted: class, x1, y1, x2, y2, and `ignored` for crowds."""
    found = {}
    for index, name in enumerate(annotations.file_names):
        rows = slice(int(annotations.offsets[index]), int(annotations.offsets[index + 1]))
        names = [annotations.class_names[label] for label in annotations.labels[rows].tolist()]
        corners = annotations.boxes_xywh[rows].copy()
        corners[:, 2:] += corners[:, :2]
        marks = [("ignored",) if crowd else () for crowd in annotations.is_crowd[rows].tolist()]
        columns = zip(names, corners.tolist(), marks, strict=True)
        found[Path(name).name] = sorted((label, *box, *mark) for label, box, mark in columns)
    return found


@pytest.fixture
def assert_export() -> Callable[..., Dataset]:
    """Read a path as `data=PATH` does, and compare with the truth: images, boxes, classes, splits and sizes."""

    def check(path: Path, truth: dict[str, Any], reader: str, image_hw: tuple[int, int]) -> Dataset:
        config = load_detection("base", [f"data={json.dumps(str(path))}"])
        assert config.data is not None
        assert registry.name_of(config.data) == reader
        dataset = registry.build(config.data)
        assert isinstance(dataset, Dataset)
        assert sorted(dataset.split_names()) == sorted(truth)
        for split, images in truth.items():
            annotations = dataset.split(split)
            found = objects_of(annotations)
            expected = {Path(image).name: sorted(objects) for image, objects in images.items()}
            assert sorted(found) == sorted(expected)
            for image, objects in expected.items():
                got = found[image]
                assert [(item[0], *item[5:]) for item in got] == [(item[0], *item[5:]) for item in objects], image
                np.testing.assert_allclose([item[1:5] for item in got], [item[1:5] for item in objects], atol=0.01)
            assert annotations.images is not None
            assert all(annotations.path(index).is_file() for index in range(len(annotations)))
            assert (annotations.image_hw == image_hw).all()
        return dataset

    return check
