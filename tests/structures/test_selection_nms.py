"""Darknet's kinds of suppression, against plain Python in float64 and against the counts of Darknet itself."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.models.anchor_levels import AnchorLevel, decode_level
from detector.structures.letterbox import Letterbox
from detector.structures.selection import SelectConfig, select

UNLIMITED = 10**6


def overlap_by_hand(a: list[float], b: list[float], beta: float) -> float:
    """IoU - (d^2 / c^2)^beta: d is the distance of the centres, c the diagonal of the hull."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    if shared == 0 or union == 0:
        return -1.0
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    return shared / union - (distance / diagonal) ** beta


def kept_by_loops(boxes: Any, scores: Any, config: SelectConfig, beta: float) -> tuple[list[tuple[int, int]], float]:
    """Return rows and labels of the kept boxes, best first, and the smallest distance to the threshold."""
    order = [(row, label) for row, label in np.ndindex(*scores.shape) if scores[row, label] >= config.confidence]
    order.sort(key=lambda entry: -float(scores[entry]))
    kept: list[tuple[int, int]] = []
    nearest, sides = math.inf, boxes.double().tolist()
    for row, label in order:
        others = [k for k in kept if config.class_agnostic or k[1] == label]
        overlaps = [overlap_by_hand(sides[row], sides[other], beta) for other, _ in others]
        nearest = min([nearest, *(abs(overlap - config.iou) for overlap in overlaps)])
        if all(overlap <= config.iou for overlap in overlaps):
            kept.append((row, label))
    return kept[: config.max_detections], nearest


def clustered_boxes(rng: np.random.Generator, num: int, spread: float = 12.0) -> torch.Tensor:
    centres = rng.uniform(-50, 690, (max(num // 6, 1), 2))[rng.integers(0, max(num // 6, 1), num)]
    sizes = rng.uniform(20, 150, (num, 2))
    corner = centres + rng.normal(0, spread, (num, 2)) - sizes / 2
    return torch.from_numpy(np.concatenate([corner, corner + sizes], axis=1).astype(np.float32))


@pytest.mark.parametrize(("kind", "nms_beta", "beta"), [("greedy", 1.5, 0.6), ("diou", 0.6, 0.6), ("diou", 1.2, 1.2)])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_suppression_equals_that_of_a_plain_loop(kind: Any, nms_beta: float, beta: float, class_agnostic: bool) -> None:
    rng = np.random.default_rng(1)
    num_compared = num_unlike_plain = 0
    for _ in range(40):
        num, num_classes = int(rng.integers(1, 60)), int(rng.integers(1, 4))
        boxes = clustered_boxes(rng, num)
        scores = torch.from_numpy(rng.uniform(0, 1, (num, num_classes)).astype(np.float32))
        config = SelectConfig(
            confidence=0.1,
            iou=float(rng.uniform(0.1, 0.5)),
            class_agnostic=class_agnostic,
            max_detections=int(rng.choice([5, UNLIMITED])),
            nms=kind,
            nms_beta=nms_beta,
        )
        kept, nearest = kept_by_loops(boxes, scores, config, beta)
        if nearest < 1e-5:  # float32 may decide otherwise
            continue
        num_compared += 1
        found = select(boxes, scores, config)
        assert found[0].tolist() == boxes[[row for row, _ in kept]].tolist()
        assert found[2].tolist() == [label for _, label in kept]
        plain = select(boxes, scores, SelectConfig(**{**vars(config), "nms": "plain"}))
        num_unlike_plain += int(len(plain[0]) != len(found[0]))
    assert num_compared > 25
    assert num_unlike_plain >= 3


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_without_suppression_every_passing_score_is_kept_best_first(class_agnostic: bool) -> None:
    """Against a sort in float64, with overlapping boxes and equal scores, at every bound on the detections."""
    rng = np.random.default_rng(4)
    boxes = clustered_boxes(rng, 50).repeat(2, 1)
    scores = torch.from_numpy((rng.integers(0, 21, (100, 3)) / 20).astype(np.float32))
    entries = [(row, label) for row, label in np.ndindex(100, 3) if scores[row, label].double() >= 0.5]
    entries.sort(key=lambda entry: -float(scores[entry].double()))  # stable: equal scores stay in order
    for most in (1, 40, UNLIMITED):
        config = SelectConfig(0.5, iou=0.0, nms="none", max_detections=most, class_agnostic=class_agnostic)
        found = select(boxes, scores, config)
        assert found[0].tolist() == boxes[[row for row, _ in entries[:most]]].tolist()
        assert found[1].tolist() == [scores[entry].item() for entry in entries[:most]]
        assert found[2].tolist() == [label for _, label in entries[:most]]
    assert len(entries) > 100


@pytest.mark.parametrize("most", [1, 40, UNLIMITED])
def test_many_boxes_of_one_class_give_the_same_result_as_the_reference(most: int) -> None:
    """Several blocks, with long chains in which each box suppresses the next."""
    rng = np.random.default_rng(2)
    chain = torch.arange(300, dtype=torch.float32)[:, None] * 0.9
    chain = torch.cat([chain, torch.zeros_like(chain), chain + 10, torch.full_like(chain, 10)], dim=1)
    boxes = torch.cat([clustered_boxes(rng, 700, 20.0), chain + 1000])
    scores = torch.from_numpy(rng.permutation(1000).astype(np.float32))[:, None] / 1000
    scores[700:, 0] = torch.linspace(0.95, 0.05, 300)  # the chain in its own order
    config = SelectConfig(confidence=0.0, iou=0.45, max_detections=most, nms="greedy")
    kept, nearest = kept_by_loops(boxes, scores, config, 0.6)
    assert nearest > 1e-6
    found = select(boxes, scores, config)
    assert found[0].tolist() == boxes[[row for row, _ in kept]].tolist()
    assert len(found[0]) == min(most, len(kept))


@pytest.mark.parametrize("kind", ["greedy", "diou"])
def test_boxes_without_area_and_absurd_ones_suppress_nothing(kind: Any) -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 3e38, 3e38], [0, 0, 10, 10], [0, 0, 10, 9]])
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    found = select(boxes, scores, SelectConfig(iou=0.5, nms=kind))
    assert found[0].tolist() == boxes[:4].tolist()


def test_distances_count_relative_to_the_image() -> None:
    """In an image of half the width a horizontal distance counts double, even if the overlap is the same."""
    boxes = torch.tensor([[0.0, 0, 100, 40], [20, 0, 120, 40]])
    scores = torch.tensor([[0.9], [0.8]])
    for image_hw in ((1, 1), (100, 200), (100, 20), (900, 100)):
        height, width = image_hw
        relative = (boxes / torch.tensor([width, height, width, height])).tolist()
        overlap = overlap_by_hand(relative[0], relative[1], 0.6)
        for iou, num in ((overlap + 1e-5, 2), (overlap - 1e-5, 1)):
            assert len(select(boxes, scores, SelectConfig(iou=iou, nms="greedy"), image_hw)[0]) == num


@pytest.mark.parametrize("kind", ["greedy", "diou", "none"])
def test_no_boxes_give_no_detections(kind: Any) -> None:
    assert [len(part) for part in select(torch.zeros(0, 4), torch.zeros(0, 3), SelectConfig(nms=kind))] == [0, 0, 0]


def test_a_beta_that_is_not_above_zero_is_refused() -> None:
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="nms_beta: expected a value above 0"):
            SelectConfig(nms_beta=beta)


def test_selection_of_a_large_network_at_a_low_threshold_is_fast() -> None:
    """All cells of three levels at 608 x 608 and 80 classes; 0.3 s on one core, the bound leaves room for others."""
    rng = np.random.default_rng(3)
    boxes = clustered_boxes(rng, 22_743)
    scores = torch.from_numpy(rng.uniform(0, 1, (22_743, 80)).astype(np.float32)) ** 8
    config = SelectConfig(confidence=0.001, iou=0.6, nms="greedy", max_detections=UNLIMITED)
    started_s = time.process_time()
    found = select(boxes, scores, config)
    assert time.process_time() - started_s < 3
    assert len(found[0]) > 1000


KIND_OF_KEY = {"default": "plain", "greedynms": "greedy", "diounms": "diou"}


def test_number_of_detections_on_twelve_images_equals_that_of_darknet(darknet_folder: Path) -> None:
    """Test resizing, one convolution, decoding and suppression together, with nine settings."""
    runs = json.loads((darknet_folder / "expected.json").read_text())
    values = torch.from_numpy(np.fromfile(darknet_folder / "m.weights", "<f4", offset=20))
    biases, weights = values[:24], values[24:].reshape(24, 3, 3, 3)
    images = [np.asarray(cv2.imread(str(path)))[..., ::-1] for path in sorted(darknet_folder.glob("im*.png"))]
    assert (len(runs), len(images)) == (9, 12)
    for run in runs:
        keys = dict(line.split("=") for line in run["cfg"].split() if "=" in line)
        new_coords = keys["new_coords"] == "1"
        anchors = ((10.0, 14.0), (20.0, 20.0), (30.0, 24.0))
        level = AnchorLevel(
            3, anchors, (0, 1, 2), (8.0, 8.0), scale_x_y=float(keys["scale_x_y"]), new_coords=new_coords
        )
        # Darknet keeps scores above the threshold, `select` also those at it, so the next float32 gives the same.
        config = SelectConfig(
            confidence=float(np.nextafter(np.float32(0.005), np.float32(1))),
            iou=0.45,
            max_detections=UNLIMITED,
            nms=KIND_OF_KEY[keys.get("nms_kind", "default")],  # type: ignore[arg-type]  # one of the kinds
            nms_beta=float(keys.get("beta_nms", "0.6")),
        )
        num_detections = 0
        for image in images:
            fit = "letterbox" if run["letter_box"] else "stretch"
            letterbox = Letterbox.fit((image.shape[0], image.shape[1]), (64, 64), fit, arithmetic="darknet")
            canvas = torch.from_numpy(letterbox.apply(np.ascontiguousarray(image))).permute(2, 0, 1)[None]
            raw = torch.conv2d(canvas, weights, biases, stride=8, padding=1)
            boxes, scores = decode_level(raw.sigmoid() if new_coords else raw, level)
            num_detections += len(select(boxes[0], scores[0], config, letterbox.resized_hw)[0])
        assert num_detections == run["detections"], run["cfg"]


@pytest.fixture
def darknet_folder(data_folder: Path) -> Path:
    folder = data_folder.parent / "darknet-golden" / "map"
    if not folder.is_dir():
        pytest.skip("there is no folder darknet-golden/map beside DETECTOR_TEST_DATA")
    return folder
