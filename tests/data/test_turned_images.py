"""Images that EXIF turns upright, listed with the size that they are stored with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.loader import TrainingSamples
from detector.structures.canvas import Canvas

STORED_HW, UPRIGHT_HW = (40, 100), (100, 40)
# Boxes xywh of the upright image: within both sizes, below the end of the stored one, and partly so.
WITHIN, BELOW, ACROSS = [5.0, 5, 20, 30], [4.0, 60, 30, 38], [2.0, 10, 36, 80]
TOO_LONG, WIDE = [5.0, 5, 20, 60], [60.0, 5, 30, 30]
ACROSS_RIGHT = [30.0, 10, 30, 80]  # beyond the right edge, whichever way the image is turned


def draw(folder: Path, orientation: int, listed_hw: tuple[int, int], boxes: list[list[float]]) -> Path:
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(np.full((*STORED_HW, 3), 90, np.uint8)).save(folder / "0.jpg", exif=tags.tobytes())
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i, b in enumerate(boxes, start=1)
    ]
    content: dict[str, Any] = {"categories": [{"id": 1, "name": "a"}], "annotations": rows}
    content["images"] = [{"id": 1, "file_name": "0.jpg", "height": listed_hw[0], "width": listed_hw[1]}]
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def corners(boxes: list[list[float]], image_hw: tuple[int, int]) -> list[list[float]]:
    height, width = image_hw
    return [[x, y, min(x + w, width), min(y + h, height)] for x, y, w, h in boxes]


def trained_boxes(annotations: CocoAnnotations) -> list[list[float]]:
    samples = TrainingSamples(annotations, Canvas((64, 64), 3, "letterbox"), AugmentConfig(), seed=0, cache_mb=0)
    image, objects = samples.source(0)
    assert image.shape[:2] == UPRIGHT_HW
    return objects.xyxy.tolist()


@pytest.mark.parametrize("boxes", [[WITHIN], [BELOW], [ACROSS], [WITHIN, BELOW, ACROSS], [WITHIN, ACROSS_RIGHT]])
@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("listed_hw", [STORED_HW, UPRIGHT_HW])
def test_boxes_are_clipped_to_the_upright_image(
    boxes: list[list[float]], orientation: int, listed_hw: tuple[int, int], tmp_path: Path
) -> None:
    annotations = read_coco(draw(tmp_path, orientation, listed_hw, boxes), tmp_path)
    wanted = corners(boxes, UPRIGHT_HW)
    assert annotations.boxes_xywh.tolist() == boxes  # scored as written
    assert annotations.source_xyxy(0).tolist() == wanted
    assert trained_boxes(annotations) == wanted
    is_told = [p.kind for p in annotations.problems if "before it is turned upright" in p.kind]
    assert bool(is_told) == (listed_hw == STORED_HW and boxes != [WITHIN])


def test_image_of_another_size_is_not_taken_as_turned(tmp_path: Path) -> None:
    annotations = read_coco(draw(tmp_path, 1, STORED_HW, [TOO_LONG, WITHIN]), tmp_path)
    assert annotations.image_hw.tolist() == [list(STORED_HW)]
    assert annotations.source_xyxy(0).tolist() == [[5, 5, 25, 40], [5, 5, 25, 35]]


@pytest.mark.parametrize(("boxes", "is_turned"), [([WITHIN, BELOW], True), ([BELOW, WIDE, WITHIN], False)])
def test_without_image_files_all_boxes_must_fit_the_turned_image(
    boxes: list[list[float]], is_turned: bool, tmp_path: Path
) -> None:
    file = draw(tmp_path, 6, STORED_HW, [*boxes, *([WITHIN] * 20)])  # one box that is lost is below the share allowed
    annotations = read_coco(file, None)
    assert annotations.image_hw.tolist() == [list(UPRIGHT_HW if is_turned else STORED_HW)]
    assert annotations.num_boxes == 20 + len(boxes) - (not is_turned)
