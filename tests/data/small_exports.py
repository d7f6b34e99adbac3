"""The images, objects and small writers that the tests of annotation formats share."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 64, 48
PNG = cv2.imencode(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
# split: image: objects (class, x1, y1, x2, y2), edges in pixels
TRAIN = {"a.png": [("cat", 5, 6, 15, 18), ("dog", 20, 10, 60, 40)], "b.png": [("dog", 1, 2, 4, 6)], "c.png": []}
VAL = {"d.png": [("cat", 0, 0, 64, 48)]}
ONE, TWO = {"train": TRAIN}, {"train": TRAIN, "val": VAL}


def images(folder: Path, names, content: bytes = PNG) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def text(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
