"""A small data set without problems; each test adds one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.data.coco_dataset import CocoDataset, SplitConfig
from detector.data.doctor.examination import DEFAULT_CANVAS, examine, read_splits
from detector.data.doctor.findings import Report

WIDTH, HEIGHT = 320, 240


def picture(seed: str, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw soft coloured blocks that look different for each seed."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


class Folder:
    """Data set in COCO format: 6 training and 3 validation images, each with two cats and two dogs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classes: dict[int, str] = {1: "cat", 2: "dog"}
        self.images: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        self.boxes: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        for split, num in (("train", 6), ("val", 3)):
            for number in range(num):
                self.add(split, f"{split}{number}.png")

    def add(self, split: str, name: str, image: np.ndarray | None = None, **listed: Any) -> int:
        """Add an image with four boxes, shifted a little in each image; return its id."""
        image = picture(name) if image is None else image
        path = self.root / "images" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        identifier = len(self.images[split]) + 1
        height, width = image.shape[:2]
        entry = {"id": identifier, "file_name": name, "width": width, "height": height, **listed}
        self.images[split].append(entry)
        shift = 2 * identifier
        for category, x, y in ((1, 10, 10), (2, 150, 20), (1, 20, 120), (2, 160, 110)):
            self.box(split, identifier, category, [x + shift, y + shift, 60 + shift, 50 + shift])
        return identifier

    def box(self, split: str, image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
        """Add a box."""
        entry = {"id": len(self.boxes[split]) + 1, "image_id": image, "category_id": category, "bbox": bbox}
        entry.update({"area": bbox[2] * bbox[3], "iscrowd": 0, **more})
        self.boxes[split].append(entry)
        return entry

    def path(self, split: str, name: str) -> Path:
        return self.root / "images" / split / name

    def config(self) -> CocoDataset.Config:
        """Write the annotations; return the description of the data set."""
        splits: dict[str, Any] = {}
        for split, images in self.images.items():
            file = self.root / f"{split}.json"
            categories = [{"id": i, "name": name} for i, name in self.classes.items()]
            content = {"images": images, "annotations": self.boxes[split], "categories": categories}
            file.write_text(json.dumps(content), encoding="utf-8")
            splits[split] = SplitConfig(file, self.root / "images" / split)
        return CocoDataset.Config(**splits)

    def report(self, **options: Any) -> Report:
        """Examine the data set; `canvas_hw` and `fit` among the options change the canvas."""
        splits, refusals = read_splits(self.config())
        fields = {key: options.pop(key) for key in ("canvas_hw", "fit") if key in options}
        return examine("test", splits, refusals=refusals, canvas=replace(DEFAULT_CANVAS, **fields), **options)

    def codes(self, **options: Any) -> list[str]:
        return sorted({finding.code for finding in self.report(**options).findings})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def paint() -> Callable[..., np.ndarray]:
    return picture
