"""The anchor head on the default backbone and neck: its maps, its settings, and its training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.ops import box_iou

from detector.config.schema import config_from_plain
from detector.data.coco import read_coco
from detector.errors import ConfigError
from detector.losses.anchor_loss import AnchorLoss
from detector.models.heads import AnchorHead
from detector.models.yolo import Yolo
from detector.structures.selection import SelectConfig, select
from detector.structures.types import Batch, Sample
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection
from detector.training.optimizers import Muon, build_optimizer

SMALL = replace(Yolo.Config(), depth=0.33, width=0.125)


def model_with(num_classes: int = 3, **settings: Any) -> Yolo:
    torch.manual_seed(0)
    return Yolo(replace(SMALL, head=AnchorHead.Config(**settings)), num_classes)


def rgb(path: Path) -> npt.NDArray[np.uint8]:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return np.asarray(pixels[..., ::-1], np.uint8)


def test_levels_divide_the_anchors_from_the_finest_and_keep_the_training_settings() -> None:
    training = replace(AnchorHead.Config().training, iou_loss="giou")
    levels = model_with(training=training).anchor_levels
    assert [level.mask for level in levels] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert [level.stride_hw for level in levels] == [(8.0, 8.0), (16.0, 16.0), (32.0, 32.0)]
    assert {level.anchors_wh[8] for level in levels} == {(459.0, 401.0)}
    assert {level.training.iou_loss for level in levels} == {"giou"}


@pytest.mark.parametrize("new_coords", [True, False])
def test_maps_have_the_channels_of_their_levels_and_can_be_decoded(new_coords: bool) -> None:
    model = model_with(num_classes=4, new_coords=new_coords)
    raw_maps = model(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert [tuple(m.shape) for m in raw_maps] == [(2, 27, 8, 12), (2, 27, 4, 6), (2, 27, 2, 3)]
    assert all(bool(((m >= 0) & (m <= 1)).all()) for m in raw_maps) == new_coords
    boxes, scores = model.decode(raw_maps)
    assert (boxes.shape, scores.shape) == ((2, 3 * 126, 4), (2, 3 * 126, 4))


def test_activated_maps_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw_maps = model_with()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert {m.dtype for m in raw_maps} == {torch.float32}


def test_anchors_that_the_levels_cannot_divide_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many anchors for each of the 3 levels, got 4 anchors"):
        model_with(anchors=((1.0, 1.0),) * 4)


def test_a_scale_of_the_offset_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="scale_x_y >= 1"):
        AnchorHead.Config(scale_x_y=0.5)


def test_class_rows_follow_five_other_rows_for_each_anchor() -> None:
    model = model_with(num_classes=2)
    state = model.state_dict()
    rows = model.class_rows()
    assert len(rows) == 6
    assert all(len(state[name]) == row.num_rows(2) == 21 for name, row in rows.items())


def test_the_preset_is_an_anchor_experiment() -> None:
    config = load_detection("yolov4-csp-mish.yaml", ["model.head.training.objectness_smooth=true"])
    assert isinstance(config.model, Yolo.Config)
    assert isinstance(config.loss, AnchorLoss.Config)
    head = config.model.head
    assert isinstance(head, AnchorHead.Config)
    assert head.anchors == AnchorHead.Config().anchors
    assert head.training == replace(AnchorHead.Config().training, objectness_smooth=True)
    assert (config.evaluate.nms, config.predict.nms) == ("diou", "diou")


def test_a_mistake_in_the_training_of_a_head_names_its_key() -> None:
    plain = {"model": {"name": "yolo", "head": {"name": "anchor", "training": {"iou_los": "ciou"}}}}
    with pytest.raises(ConfigError, match=r"model\.head\.training\.iou_los.*iou_loss"):
        config_from_plain(DetectionConfig, plain, "test.yaml")


def test_eight_images_are_overfitted(tiny_shapes: Path) -> None:
    """A network of 100,000 weights, a few seconds; the second half of the steps has a fifth of the learning rate."""
    annotations = read_coco(tiny_shapes / "annotations" / "train.json", tiny_shapes / "images" / "train")
    batch = Batch.of(
        [
            Sample(
                rgb(annotations.path(index)),
                annotations.source_xyxy(index),
                annotations.labels_of(index),
                annotations.is_crowd_of(index),
                index,
            )
            for index in range(8)
        ]
    )
    sides = (6.0, 9.0, 12.0, 15.0, 19.0, 24.0, 30.0, 38.0, 48.0)
    model = model_with(len(annotations.class_names), anchors=tuple((side, side) for side in sides))
    loss, optimizer = AnchorLoss(AnchorLoss.Config(), model), build_optimizer(Muon.Config(lr=0.01), model)
    model.train()
    for step in range(100):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01 if step < 50 else 0.002
        parts = loss(model(batch.images), batch.targets)
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        canvas_xyxy, scores = model.decode(model(batch.images))
    num_found = num_detections = 0
    for image in range(8):
        boxes, _, labels = select(canvas_xyxy[image], scores[image], SelectConfig(confidence=0.3, iou=0.5))
        own = batch.targets.image_index == image
        overlap = box_iou(batch.targets.canvas_xyxy[own], boxes)
        same_class = batch.targets.labels[own][:, None] == labels
        num_found += int(((overlap > 0.5) & same_class).any(dim=1).sum())
        num_detections += len(boxes)
    num_objects = len(batch.targets.labels)
    assert num_objects > 10
    assert (num_found, num_detections) == (pytest.approx(num_objects, rel=0.15), pytest.approx(num_objects, rel=0.3))
