"""Randomised sets: `evaluate`, training's own measurement and pycocotools must have the same numbers.

A stand-in for the network answers with detections that the test draws. Each set looks like a user's: category
ids of training and validation differ, some names are aliases, categories are missing or too many, there are crowd
regions, images that EXIF turns, and images with more objects than the old limit over all classes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detector.config.schema import config_to_plain
from detector.data.coco_dataset import CocoDataset, SplitConfig
from detector.evaluation.coco_ap import CocoMetric
from detector.evaluation.coco_metrics import CocoMetrics
from detector.evaluation.evaluator import EvaluateConfig
from detector.models.checkpoint import ModelFile
from detector.models.contracts import DetectionModel
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Letterbox
from detector.tasks.detection import DetectionTask
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import LoadedModel, load_detection, matched, measure_model, read_split
from detector.training.distributed import World

Floats: TypeAlias = "npt.NDArray[np.float64]"
CANVAS_PX = 64
# What training calls a class, and what the validation file may call it.
CLASSES = {
    "bicycle": ("bicycle", "Bicycle"),
    "motorbike": ("motorbike", "motorcycle"),
    "pottedplant": ("pottedplant", "potted plant"),
    "tvmonitor": ("tvmonitor", "tv"),
    "traffic light": ("traffic light", "traffic_light"),
    "sofa": ("sofa", "couch"),
}
STRANGERS = ("drone", "kite", "robot")
ORIENTATIONS = (1, 3, 6, 8)  # of EXIF; 6 and 8 exchange width and height


class Given(DetectionModel):
    """Stand-in for a network: the boxes and scores of each image, which it recognises by its grey."""

    max_stride, image_channels = 32, 3

    def __init__(self, num_classes: int, answers: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.num_classes, self.answers = num_classes, answers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images[:, 0, CANVAS_PX // 2, CANVAS_PX // 2],)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(0, 4), torch.zeros(0, self.num_classes)
        found = [self.answers.get(int(grey), nothing) for grey in raw_maps[0]]
        most = max(len(boxes) for boxes, _ in found)
        boxes, scores = torch.zeros(len(found), most, 4), torch.zeros(len(found), most, self.num_classes)
        for row, (own_boxes, own_scores) in enumerate(found):
            boxes[row, : len(own_boxes)], scores[row, : len(own_boxes)] = own_boxes, own_scores
        return boxes, scores


@dataclass(frozen=True)
class Scene:
    """A drawn set on disk, its stand-in network, and what pycocotools is told.

    Attributes:
        config: the experiment.
        model: the network.
        names: the classes of training.
        ids: their ids in the training file.
        truth: the part of the validation file that can be scored.
        results: every detection of the network, in source pixels, with the ids of the validation file.
    """

    config: DetectionConfig
    model: Given
    names: tuple[str, ...]
    ids: tuple[int, ...]
    truth: dict[str, Any]
    results: list[dict[str, Any]]


def grey_of(index: int) -> int:
    return 10 + 20 * index


def draw_scene(folder: Path, seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    of_train = rng.permutation(list(CLASSES))[: int(rng.integers(2, len(CLASSES) + 1))].tolist()
    ids = sorted(rng.choice(90, len(of_train), replace=False).tolist())
    in_val = [name for name in of_train if rng.random() < 0.8] or of_train[:1]  # some classes are missing
    called = {name: str(rng.choice(CLASSES[name])) for name in in_val}
    strangers = rng.permutation(STRANGERS)[: int(rng.integers(0, 3))].tolist()
    listed = rng.permutation([*in_val, *strangers]).tolist()
    val_ids = dict(zip(listed, rng.choice(90, len(listed), replace=False).tolist(), strict=True))
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": val_ids[name], "name": called.get(name, name)} for name in listed]
    results: list[dict[str, Any]] = []
    answers: dict[int, tuple[Tensor, Tensor]] = {}
    is_crowded = seed % 25 == 0
    image_ids = rng.choice(1000, int(rng.integers(2, 7)), replace=False).tolist()
    for index, image_id in enumerate(image_ids):
        height, width = (int(side) for side in rng.integers(40, 200, 2))
        orientation = int(rng.choice(ORIENTATIONS))
        write_turned(folder / f"{index}.jpg", np.full((height, width, 3), grey_of(index), np.uint8), orientation)
        stored = orientation in (6, 8) and rng.random() < 0.7  # the file lists the size before EXIF turns the image
        size = (width, height) if stored else (height, width)
        entry = {"id": image_id, "file_name": f"{index}.jpg", "height": size[0], "width": size[1]}
        truth["images"].append(entry)
        num_objects = 340 if is_crowded and index == 0 else int(rng.integers(0, 9))
        boxes, labels, scores = [], [], []
        for _ in range(num_objects):
            # In a crowd, the high scores of one class must not displace the others.
            is_first = num_objects > 9 and rng.random() < 0.75
            name = in_val[0] if is_first else str(rng.choice(listed))
            w, h = rng.uniform(0.03 if num_objects > 9 else 0.1, 0.5, 2) * (width, height)
            x, y = rng.uniform(0, 1, 2) * (width - w, height - h)
            box = [round(float(v), 2) for v in (x, y, w, h)]
            area = round(box[2] * box[3] * float(rng.uniform(0.4, 1)), 2)
            crowd = int(rng.random() < 0.1)
            row = {"image_id": image_id, "category_id": val_ids[name], "bbox": box, "area": area, "iscrowd": crowd}
            truth["annotations"].append({**row, "id": len(truth["annotations"]) + 1})
            for _ in range(1 if num_objects > 9 else int(rng.integers(1, 3))):
                wrong = name in strangers or rng.random() < 0.1
                boxes.append(np.array(box) + rng.normal(0, 0.1, 4) * np.array(box)[[2, 3, 2, 3]])
                labels.append(int(rng.integers(len(of_train))) if wrong else of_train.index(name))
                lowest, highest = (0.5, 1) if is_first else (0.002, 0.5 if num_objects > 9 else 1)
                scores.append(float(rng.uniform(lowest, highest)))
        if boxes:
            found = answers[grey_of(index)] = answer((height, width), np.array(boxes), labels, scores, len(of_train))
            in_source = to_source((height, width), found[0].double().numpy())
            results += [
                {"image_id": image_id, "category_id": val_ids[of_train[label]], "bbox": box, "score": score}
                for label, box, score in zip(labels, in_source, found[1].double().amax(dim=1).tolist(), strict=True)
                if of_train[label] in in_val
            ]
    write_set(folder, of_train, ids, truth)
    train, val = (SplitConfig(folder / f"{split}.json", folder) for split in ("train", "val"))
    data = CocoDataset.Config(train=train, val=val)
    known = {val_ids[name] for name in in_val}
    truth["categories"] = [c for c in truth["categories"] if c["id"] in known]
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] in known]
    config = replace(
        _base(),
        input=InputConfig(CANVAS_PX),
        data=data,
        evaluate=EvaluateConfig(iou=1.0, batch_size=4),
    )
    return Scene(config, Given(len(of_train), answers), tuple(of_train), tuple(ids), truth, results)


@functools.cache
def _base() -> DetectionConfig:
    return load_detection("base", ["device=cpu"])


def write_turned(path: Path, upright: npt.NDArray[np.uint8], orientation: int) -> None:
    """Write an image of one colour; only the size shows that it is stored turned."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    stored = upright.swapaxes(0, 1) if orientation in (6, 8) else upright
    Image.fromarray(np.ascontiguousarray(stored)).save(path, quality=95, exif=tags.tobytes())


def write_set(folder: Path, names: list[str], ids: list[int], val: dict[str, Any]) -> None:
    """Write the validation file, and a training file with an object of each class."""
    image = {"id": 1, "file_name": "0.jpg", **{key: val["images"][0][key] for key in ("height", "width")}}
    rows = [{"id": i, "image_id": 1, "category_id": i, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0} for i in ids]
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    train = {"images": [image], "annotations": rows, "categories": categories}
    for split, content in (("train", train), ("val", val)):
        (folder / f"{split}.json").write_text(json.dumps(content))


def answer(
    image_hw: tuple[int, int], boxes_xywh: Floats, labels: list[int], scores: list[float], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return boxes on the canvas (n, 4) and scores (n, classes), float32, as the network gives them."""
    fitted = Letterbox.fit(image_hw, (CANVAS_PX, CANVAS_PX), "letterbox")
    source_xyxy = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + np.abs(boxes_xywh[:, 2:])], axis=1)
    of_classes = torch.zeros(len(labels), num_classes)
    of_classes[torch.arange(len(labels)), torch.tensor(labels)] = torch.tensor(scores, dtype=torch.float32)
    return torch.from_numpy(fitted.boxes_to_canvas(source_xyxy).astype(np.float32)), of_classes


def to_source(image_hw: tuple[int, int], canvas_xyxy: Floats) -> list[list[float]]:
    """Return boxes xywh in pixels of the image, clipped to it, computed here in float64."""
    (height, width), ratio = image_hw, CANVAS_PX / max(image_hw)
    resized_hw = [max(1, round(side * ratio)) for side in image_hw]
    top, left = ((CANVAS_PX - side) // 2 for side in resized_hw)
    scale = np.array([resized_hw[1] / width, resized_hw[0] / height] * 2)
    corners = np.clip((canvas_xyxy - [left, top, left, top]) / scale, 0, [width, height, width, height])
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def by_pycocotools(scene: Scene) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset = scene.truth
        found.dataset = {**scene.truth, "annotations": []}
        for number, row in enumerate(scene.results, start=1):
            area = row["bbox"][2] * row["bbox"][3]
            found.dataset["annotations"].append({**row, "id": number, "area": area, "iscrowd": 0})
        coco.createIndex()
        found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value == -1 else float(value) for value in evaluation.stats]


def by_training(scene: Scene) -> CocoMetrics:
    task = DetectionTask(scene.config, lambda event: None)
    return task.measure(scene.model, torch.device("cpu"), World())


def by_evaluate(scene: Scene) -> CocoMetrics:
    file = ModelFile(config_to_plain(scene.config), scene.names, scene.ids, {})
    opened = LoadedModel(scene.config, scene.model, file)
    loaded, annotations = matched(opened, read_split(scene.config, "val"), lambda text: None)
    numbers, _ = measure_model(loaded, annotations, CocoMetric(CocoMetric.Config()))
    assert isinstance(numbers, CocoMetrics)
    return numbers


def check_sets(folder: Path, seeds: range) -> None:
    """Draw a set for each seed and compare; every kind of number and of input must have occurred."""
    wrong, values = [], []
    for seed in seeds:
        own = folder / str(seed)
        own.mkdir()
        scene = draw_scene(own, seed)
        reference = by_pycocotools(scene)
        for name, measured in (("training", by_training(scene)), ("evaluate", by_evaluate(scene))):
            if not np.array_equal(list(measured.stats.values()), reference, equal_nan=True):
                wrong.append((seed, name, list(measured.stats.values()), reference))
        values.append(reference[0])
        shutil.rmtree(own)
    assert not wrong, f"{len(wrong)} differences, first: {wrong[0]}"
    assert len({value for value in values if 0 < value < 1}) > 0.8 * len(values)  # the numbers say something


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_evaluate_training_and_pycocotools_agree_on_random_sets(start: int, tmp_path: Path) -> None:
    check_sets(tmp_path, range(start, start + 50))


@pytest.mark.nightly
def test_evaluate_training_and_pycocotools_agree_on_5000_random_sets(tmp_path: Path) -> None:
    check_sets(tmp_path, range(1000, 6000))
