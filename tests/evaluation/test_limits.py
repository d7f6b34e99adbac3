"""Limits on the number of detections: COCO's is one for each class, prediction's is one for the image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.data.coco import CocoAnnotations, read_coco
from detector.evaluation import evaluator
from detector.evaluation.evaluator import EvaluateConfig, detect_split, evaluate
from detector.inference.predictor import Predictor
from detector.inference.runtime import TorchRuntime
from detector.media.images import write_image
from detector.models.contracts import DetectionModel
from detector.structures.canvas import InputConfig
from detector.structures.selection import NmsKind, SelectConfig, select_labelled, with_one_limit

NUM_CLASSES, NUM_OF_CLASS, SIDE_PX = 8, 100, 256


class Perfect(DetectionModel):
    """Model that returns every object of the one image, with different scores."""

    max_stride, image_channels, num_classes = 32, 3, NUM_CLASSES

    def __init__(self, annotations: CocoAnnotations) -> None:
        super().__init__()
        self.boxes = torch.from_numpy(annotations.source_xyxy(0))
        self.scores = torch.zeros(len(self.boxes), NUM_CLASSES)
        rows = torch.arange(len(self.boxes))
        self.scores[rows, torch.from_numpy(annotations.labels_of(0))] = torch.linspace(0.1, 0.9, len(rows))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images[:, 0],)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        num = len(raw_maps[0])
        return self.boxes.expand(num, -1, -1), self.scores.expand(num, -1, -1)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> CocoAnnotations:
    """Two images of 8 x 100 objects, which do not overlap."""
    folder = tmp_path_factory.mktemp("crowded")
    places = [[8.0 * (i % 32), 8.0 * (i // 32), 7.0, 7.0] for i in range(NUM_CLASSES * NUM_OF_CLASS)]
    rows = [
        {"image_id": image, "category_id": i % NUM_CLASSES, "bbox": box, "area": 49, "iscrowd": 0}
        for image in (1, 2)
        for i, box in enumerate(places)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIDE_PX, "width": SIDE_PX} for i in (1, 2)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(NUM_CLASSES)],
        "annotations": [{**row, "id": i} for i, row in enumerate(rows, start=1)],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    for i in (1, 2):
        write_image(folder / f"{i}.png", np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))
    return read_coco(folder / "truth.json", folder)


def predictor_of(annotations: CocoAnnotations) -> Predictor:
    runtime = TorchRuntime(Perfect(annotations), torch.device("cpu"))
    return Predictor(runtime, InputConfig(SIDE_PX), annotations.class_names, annotations.category_ids)


@pytest.mark.parametrize("max_detections", [1, 300, 10_000])
def test_perfect_detector_has_ap_1_on_8_times_100_objects(crowded: CocoAnnotations, max_detections: int) -> None:
    found = evaluate(predictor_of(crowded), crowded, EvaluateConfig(max_detections=max_detections))
    assert found.metrics.ap == pytest.approx(1.0, abs=1e-12)
    assert len(found.detections) == 2 * NUM_CLASSES * NUM_OF_CLASS
    assert found.warnings == ()
    assert f"at most {max_detections} per image or 100 per class" in found.conditions.to_text()


def test_limit_of_prediction_is_one_for_the_image(crowded: CocoAnnotations) -> None:
    predictor = predictor_of(crowded)
    image = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    for config in (SelectConfig(max_detections=300), with_one_limit(EvaluateConfig(max_detections=300))):
        assert len(predictor.detect([image], config)[0]) == 300


def test_other_limits_are_kept_too(crowded: CocoAnnotations) -> None:
    assert EvaluateConfig(other_limits=(50, 700)).min_per_class == 700
    assert EvaluateConfig(other_limits=(50,)).min_per_class == 100
    assert SelectConfig().min_per_class == 0


def test_more_detections_than_memory_is_planned_for_are_cut_and_announced(
    crowded: CocoAnnotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "MAX_SCORED", 901)
    found = detect_split(predictor_of(crowded), crowded, EvaluateConfig(max_detections=300))
    counts = np.bincount(found.detections.image_ranks)
    assert counts.tolist() == [450, 450]
    assert (np.diff(found.detections.scores[:450]) <= 0).all()  # the best ones
    assert found.detections.scores[:450].min() == pytest.approx(np.sort(np.linspace(0.1, 0.9, 800))[-450], abs=1e-6)
    (warning,) = found.warnings
    assert warning.startswith("1,600 detections are more than the 901 that memory is planned for: only the best 450 of")
    assert "fewer than 100 of each class in 2 images" in warning


def test_limit_given_by_the_user_is_not_cut_further(crowded: CocoAnnotations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "MAX_SCORED", 10)
    found = detect_split(predictor_of(crowded), crowded, EvaluateConfig(max_detections=300))
    assert np.bincount(found.detections.image_ranks).tolist() == [300, 300]


@pytest.mark.parametrize("nms", ["plain", "diou", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_best_of_the_image_and_of_each_class_are_kept(nms: NmsKind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = 400
    corners = rng.uniform(0, 1000, (num, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + 3], axis=1).astype(np.float32))
    scores = torch.from_numpy(rng.permutation(num).astype(np.float32) / num)
    labels = torch.from_numpy(rng.choice(6, num, p=[0.5, 0.3, 0.1, 0.05, 0.04, 0.01]))
    config = EvaluateConfig(max_detections=int(rng.integers(1, 200)), nms=nms, iou=1.0)
    unlimited = SelectConfig(max_detections=num, nms=nms, iou=1.0)
    everything = select_labelled(boxes, scores, labels, unlimited).tolist()
    wanted, turns = [], dict.fromkeys(range(6), 0)
    for position, row in enumerate(everything):
        label = int(labels[row])
        if position < config.max_detections or turns[label] < 100:
            wanted.append(row)
        turns[label] += 1
    assert select_labelled(boxes, scores, labels, config).tolist() == wanted
