from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.export.array_selection import select_arrays
from detector.structures.selection import SelectConfig, select


def crowded(seed: int, num: int = 400, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes that overlap much, with equal scores, equal boxes, boxes without an area and infinite values."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, 60, (num, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 30, (num, 2))]).astype(np.float32)
    boxes[10:20] = boxes[0]
    boxes[20:24, 2:] = boxes[20:24, :2]
    scores = np.round(rng.uniform(0, 1, (num, num_classes)), 2).astype(np.float32)
    boxes[30, 1], scores[31, 0], scores[32, 1] = np.inf, np.nan, np.inf
    return boxes, scores


@pytest.mark.parametrize(
    "config",
    [
        SelectConfig(),
        SelectConfig(confidence=0.3, iou=0.5, max_detections=20),
        SelectConfig(class_agnostic=True, iou=0.45),
        SelectConfig(classes=(0, 2), best_class=True),
        SelectConfig(class_confidence=(0.9, 0.1, 0.5), nms="none"),
        SelectConfig(confidence=0.01, iou=0.6, nms="greedy"),
        SelectConfig(confidence=0.01, iou=0.4, nms="diou", nms_beta=0.9, class_agnostic=True),
    ],
    ids=lambda config: f"{config.nms}-{config.iou}",
)
def test_arrays_are_selected_as_tensors(config: SelectConfig) -> None:
    for seed in range(5):
        boxes, scores = crowded(seed)
        expected = select(torch.from_numpy(boxes), torch.from_numpy(scores), config, (48, 64))
        found = select_arrays(boxes, scores, config, (48, 64))
        assert len(found[1]) > 10
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one.numpy(), other, strict=True)


def test_overlap_that_equals_the_threshold_is_kept() -> None:
    """The overlap 1/3 in float32 is above 1/3 in float64: torchvision compares in float64."""
    boxes = np.array([[0, 0, 2, 1], [1, 0, 3, 1]], np.float32)
    scores = np.array([[0.9], [0.8]], np.float32)
    for iou in (1 / 3, float(np.float32(1 / 3)), 0.5):
        config = SelectConfig(iou=iou)
        expected = select(torch.from_numpy(boxes), torch.from_numpy(scores), config)
        assert len(select_arrays(boxes, scores, config)[1]) == len(expected[1]), iou


def test_no_candidate_gives_empty_arrays() -> None:
    boxes, scores, labels = select_arrays(np.zeros((4, 4), np.float32), np.zeros((4, 2), np.float32), SelectConfig())
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
