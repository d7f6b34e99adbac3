"""What is settled about the splits of a run before its first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.errors import DatasetError
from detector.media.images import write_image
from detector.tasks.detection import DetectionTask
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection
from detector.training.events import Event, Noted
from detector.workflows.train import train


def box(category: int, **more: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0, **more}


TRAIN = {7: "cat", 9: "dog"}
OBJECTS = [box(7), box(9)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., DetectionConfig]:
    """Return a function that writes the two splits and returns an experiment."""

    def made(
        train_rows: list[dict[str, Any]], categories: dict[int, str], val_rows: list[dict[str, Any]]
    ) -> DetectionConfig:
        write_image(tmp_path / "1.png", np.zeros((32, 32, 3), np.uint8))
        for split, listed, rows in (("train", TRAIN, train_rows), ("val", categories, val_rows)):
            content = {
                "images": [{"id": 1, "file_name": "1.png", "height": 32, "width": 32}],
                "categories": [{"id": i, "name": name} for i, name in listed.items()],
                "annotations": [{**row, "id": i} for i, row in enumerate(rows, start=1)],
            }
            (tmp_path / f"{split}.json").write_text(json.dumps(content))
        data = {s: {"annotations": f"{tmp_path}/{s}.json", "images": str(tmp_path)} for s in ("train", "val")}
        data["name"] = "coco"  # type: ignore[assignment]
        words = [f"data={json.dumps(data)}", "device=cpu", f"train.project={tmp_path}/runs", "input.size=32"]
        return load_detection("mish-n", words)

    return made


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "expected objects to train on, got 1 images with no annotation"),
        ([box(7, iscrowd=1)], "expected objects to train on, got 1 images with 1 crowd regions, which are ignored"),
    ],
)
def test_training_without_a_trainable_object_is_refused(
    rows: list[dict[str, Any]], words: str, make: Callable[..., DetectionConfig]
) -> None:
    config = make(rows, TRAIN, OBJECTS)
    with pytest.raises(DatasetError, match=words):
        train(config)
    assert not (config.train.project / "train").exists()


@pytest.mark.parametrize(
    ("categories", "rows", "words", "num_objects"),
    [
        (TRAIN, OBJECTS, [], 2),
        ({9: "cat", 7: "dog"}, OBJECTS, [], 2),
        (
            {7: "cat", 9: "dog", 3: "bird"},
            [*OBJECTS, box(3)],
            ["1 of 3 categories match no class of the training s"],
            2,
        ),
        ({1: "Cat", 2: "dog"}, [box(1), box(2)], ["1 categories are matched with another spelling: Cat = cat"], 2),
        (TRAIN, [], ["has no object to measure AP on, the last weights count as the best"], 0),
        ({7: "cat", 3: "bird"}, [box(3)], ["1 of 2 categories match no class", "has no object to measure AP on"], 0),
    ],
)
def test_categories_of_validation_are_settled_before_the_first_step(
    categories: dict[int, str],
    rows: list[dict[str, Any]],
    words: list[str],
    num_objects: int,
    make: Callable[..., DetectionConfig],
) -> None:
    told: list[Event] = []
    task = DetectionTask(make(OBJECTS, categories, rows), told.append)
    texts = [event.text for event in told if isinstance(event, Noted) and "image without" not in event.text]
    assert len(texts) == len(words)
    assert all(word in text for word, text in zip(words, texts, strict=True))
    assert task.num_val_objects == num_objects
    assert (task.class_names, task.category_ids) == (("cat", "dog"), (7, 9))


def test_validation_without_a_class_of_training_is_refused_before_the_first_step(
    make: Callable[..., DetectionConfig],
) -> None:
    config = make(OBJECTS, {7: "car", 9: "bus"}, OBJECTS)
    with pytest.raises(DatasetError, match=r"none of its categories \(car, bus\) is a class of the training split"):
        train(config)
    assert not (config.train.project / "train").exists()
