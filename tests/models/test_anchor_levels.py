"""Decoding of anchor maps against scalar loops in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from detector.models.anchor_levels import AnchorLevel, AnchorTraining, activate, decode_level, decode_levels

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0))
KINDS: dict[str, dict[str, Any]] = {
    "classic": {"scale_x_y": 1.1},
    "plain": {},
    "new_coords": {"scale_x_y": 2.0, "new_coords": True},
    "gaussian": {"kind": "gaussian", "scale_x_y": 1.05},
    "gaussian left_top": {"kind": "gaussian", "yolo_point": "left_top"},
    "gaussian right_bottom": {"kind": "gaussian", "yolo_point": "right_bottom"},
    "region": {"kind": "region", "softmax": True, "anchors_wh": ((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (1, 2))},
    "region of raw classes": {"kind": "region", "anchors_wh": ((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (1, 2))},
}


def level_of(**settings: Any) -> AnchorLevel:
    return AnchorLevel(
        **{"num_classes": 3, "anchors_wh": ANCHORS, "mask": (2, 0), "stride_hw": (8.0, 16.0), **settings}
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cell_by_hand(v: list[float], level: AnchorLevel, row: int, column: int, anchor: int) -> tuple[list[float], ...]:
    """Return centre, size and scores of one anchor of one cell, from the channels `v` of that anchor."""
    s = level.scale_x_y
    anchor_w, anchor_h = level.anchors_wh[level.mask[anchor]]
    stride_y, stride_x = level.stride_hw
    if level.kind == "gaussian":
        x, y, w, h = v[0], v[2], v[4], v[6]
        certainty = 1 - sum(sigmoid(v[i]) for i in (1, 3, 5, 7)) / 4
        objectness, classes = sigmoid(v[8]) * certainty, [sigmoid(c) for c in v[9:]]
    else:
        x, y, w, h, objectness = v[:5]
        objectness = objectness if level.new_coords else sigmoid(objectness)
        if level.kind == "region":
            anchor_w, anchor_h = anchor_w * stride_x, anchor_h * stride_y
            classes = [math.exp(c) / sum(math.exp(o) for o in v[5:]) for c in v[5:]] if level.softmax else v[5:]
        else:
            classes = v[5:] if level.new_coords else [sigmoid(c) for c in v[5:]]
    if not level.new_coords:
        x, y = sigmoid(x), sigmoid(y)
    x, y = s * x - (s - 1) / 2, s * y - (s - 1) / 2
    w, h = (4 * w * w, 4 * h * h) if level.new_coords else (math.exp(w), math.exp(h))
    w, h = w * anchor_w, h * anchor_h
    cx, cy = (column + x) * stride_x, (row + y) * stride_y
    shift = {"center": 0.0, "left_top": 0.5, "right_bottom": -0.5}[level.yolo_point]
    cx, cy = cx + shift * w, cy + shift * h
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], [objectness * c for c in classes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_is_decoded_cell_by_cell_then_anchor_by_anchor(kind: str) -> None:
    level = level_of(**KINDS[kind])
    rng = np.random.default_rng(1)
    raw = rng.normal(0, 1.5, (2, level.num_channels, 3, 4))
    if level.new_coords:
        raw = 1 / (1 + np.exp(-raw))
    canvas_xyxy, scores = decode_level(torch.from_numpy(raw).float(), level)
    assert (canvas_xyxy.dtype, canvas_xyxy.shape) == (torch.float32, (2, 24, 4))
    assert (scores.dtype, scores.shape) == (torch.float32, (2, 24, 3))
    position = 0
    for row in range(3):
        for column in range(4):
            for anchor in range(2):
                channels = slice(anchor * level.num_entries, (anchor + 1) * level.num_entries)
                for image in range(2):
                    box, score = cell_by_hand(raw[image, channels, row, column].tolist(), level, row, column, anchor)
                    assert canvas_xyxy[image, position].tolist() == pytest.approx(box, rel=3e-6, abs=1e-4)
                    assert scores[image, position].tolist() == pytest.approx(score, rel=3e-6, abs=1e-6)
                position += 1


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_stays_in_float32_under_autocast(kind: str) -> None:
    level = level_of(**KINDS[kind])
    raw = torch.rand(1, level.num_channels, 2, 2, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decode_level(raw, level)
    for part, wanted in zip(found, decode_level(raw, level), strict=True):
        assert part.dtype == torch.float32
        assert torch.equal(part, wanted)
    assert decode_level(raw.bfloat16(), level)[0].dtype == torch.float32


def test_boxes_of_several_levels_are_in_the_order_of_the_levels() -> None:
    fine, coarse = level_of(), level_of(stride_hw=(32.0, 32.0), mask=(3,))
    maps = (torch.randn(1, fine.num_channels, 4, 4), torch.randn(1, coarse.num_channels, 2, 1))
    boxes, scores = decode_levels(maps, (fine, coarse))
    assert torch.equal(boxes[:, :32], decode_level(maps[0], fine)[0])
    assert torch.equal(scores[:, 32:], decode_level(maps[1], coarse)[1])
    assert boxes.shape == (1, 34, 4)


def test_a_map_with_another_number_of_channels_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 anchors and 3 classes: expected a raw map of 16 channels, got 17"):
        activate(torch.zeros(1, 17, 2, 2), level_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "at least 1 class"),
        ({"stride_hw": (0.0, 8.0)}, "strides above 0"),
        ({"mask": ()}, r"a mask of anchor indices 0\.\.3"),
        ({"mask": (0, 4)}, r"a mask of anchor indices 0\.\.3, got \(0, 4\)"),
        ({"mask": (-1,)}, r"a mask of anchor indices 0\.\.3"),
        ({"anchors_wh": ((1.0, 0.0),), "mask": (0,)}, "anchors with sides above 0"),
        ({"training": AnchorTraining(counters_per_class=(1.0, 2.0))}, "expected 3 numbers, got 2"),
    ],
)
def test_invalid_levels_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        level_of(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"obj_normalizer": -0.1}, "normalizers >= 0"),
        ({"label_smooth_eps": 1.0}, "label_smooth_eps"),
        ({"max_delta": 0.0}, "max_delta"),
        ({"max_truths": 0}, "max_truths"),
    ],
)
def test_invalid_training_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorTraining(**settings)
