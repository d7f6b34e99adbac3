"""Anchor levels: the meaning of one raw map of an anchor-based head, and its decoding into boxes and scores.

The raw map is the output of the last convolution. Its channels are anchor-major; each anchor has x, y, w, h, objectness
and the classes (the Gaussian kind interleaves four uncertainties: x, sx, y, sy, w, sw, h, sh). Sources: Redmon and
Farhadi 2016 (region), 2018 (yolo); Choi et al. 2019 (gaussian); Bochkovskiy et al. 2020 (scale_x_y); Wang et al. 2020,
"Scaled-YOLOv4" (new_coords).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detector.structures.transfer import constant

LevelKind = Literal["yolo", "gaussian", "region"]
BoxLoss = Literal["mse", "iou", "giou", "diou", "ciou"]
Overlap = Literal["iou", "giou", "diou", "ciou"]
BoxPoint = Literal["center", "left_top", "right_bottom"]


@dataclass(frozen=True)
class AnchorTraining:
    """Training settings of a level; the fields are Darknet's keys of a `[yolo]` section, with its defaults.

    Attributes:
        iou_loss: the loss that the box deltas minimise.
        iou_normalizer: weight of the box deltas.
        obj_normalizer: weight of the objectness deltas.
        cls_normalizer: weight of the class delta of an object's class; has no effect without `counters_per_class`.
        ignore_thresh: overlap with an object above which a free cell does not count as background.
        truth_thresh: overlap above which a free cell is assigned the object too; 1 switches it off.
        iou_thresh: overlap of an anchor's shape with an object above which it is assigned in addition to the best one;
            1 assigns only the best anchor.
        iou_thresh_kind: the overlap that `iou_thresh` compares.
        objectness_smooth: whether the target of objectness is the overlap instead of 1.
        label_smooth_eps: share of a class target spread evenly over yes and no.
        focal_loss: whether class deltas are focal (Lin et al. 2017).
        counters_per_class: objects of each class in the data set; rare classes weigh more. None gives all classes
            the same weight.
        max_delta: bound on each box delta and on the weight of a rare class, or None.
        max_truths: number of objects of an image that count, the first ones (Darknet's key `max`).
    """

    iou_loss: BoxLoss = "mse"
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    iou_thresh: float = 1.0
    iou_thresh_kind: Overlap = "iou"
    objectness_smooth: bool = False
    label_smooth_eps: float = 0.0
    focal_loss: bool = False
    counters_per_class: tuple[float, ...] | None = None
    max_delta: float | None = None
    max_truths: int = 200

    def __post_init__(self) -> None:
        if min(self.iou_normalizer, self.obj_normalizer, self.cls_normalizer) < 0:
            raise ValueError(
                "anchor level training: expected normalizers >= 0, got "
                f"{(self.iou_normalizer, self.obj_normalizer, self.cls_normalizer)}"
            )
        if not 0 <= self.label_smooth_eps < 1:
            raise ValueError(f"label_smooth_eps: expected a number within 0 <= eps < 1, got {self.label_smooth_eps}")
        if self.max_delta is not None and self.max_delta <= 0:
            raise ValueError(f"max_delta: expected a number above 0, got {self.max_delta}")
        if self.max_truths < 1:
            raise ValueError(f"max_truths: expected at least 1, got {self.max_truths}")


@dataclass(frozen=True)
class AnchorLevel:
    """One raw map (B, len(mask) * entries, H, W) of an anchor-based head.

    Attributes:
        num_classes: number of classes.
        anchors_wh: width and height of all anchors of the head, including those of other levels, in canvas pixels (in
            cells for the region kind).
        mask: indices of this level's anchors, in the order of the channels.
        stride_hw: canvas pixels per cell, vertically and horizontally.
        kind: the layout of the channels and their meaning.
        scale_x_y: factor on the offset within a cell about its middle (yolo and gaussian).
        new_coords: whether the raw map is already activated (a logistic convolution) and sizes are squares (yolo).
        softmax: whether the class scores are a softmax over the classes (region).
        yolo_point: the point of the box that x and y give (gaussian).
        training: the training settings of the level.
    """

    num_classes: int
    anchors_wh: tuple[tuple[float, float], ...]
    mask: tuple[int, ...]
    stride_hw: tuple[float, float]
    kind: LevelKind = "yolo"
    scale_x_y: float = 1.0
    new_coords: bool = False
    softmax: bool = False
    yolo_point: BoxPoint = "center"
    training: AnchorTraining = AnchorTraining()

    def __post_init__(self) -> None:
        if self.num_classes < 1 or min(self.stride_hw) <= 0:
            raise ValueError(
                f"anchor level: expected at least 1 class and strides above 0, got {self.num_classes} and "
                f"{self.stride_hw}"
            )
        if not self.mask or not all(0 <= index < len(self.anchors_wh) for index in self.mask):
            raise ValueError(
                f"anchor level: expected a mask of anchor indices 0..{len(self.anchors_wh) - 1}, got {self.mask}"
            )
        if not all(side > 0 for anchor in self.anchors_wh for side in anchor):
            raise ValueError(f"anchor level: expected anchors with sides above 0, got {self.anchors_wh}")
        counters = self.training.counters_per_class
        if counters is not None and len(counters) != self.num_classes:
            raise ValueError(f"counters_per_class: expected {self.num_classes} numbers, got {len(counters)}")

    @property
    def num_entries(self) -> int:
        """Channels per anchor."""
        return (9 if self.kind == "gaussian" else 5) + self.num_classes

    @property
    def num_channels(self) -> int:
        """Channels of the raw map."""
        return len(self.mask) * self.num_entries

    def canvas_hw(self, grid_hw: tuple[int, int]) -> tuple[float, float]:
        """Return height and width of the canvas of a raw map of `grid_hw` cells."""
        return grid_hw[0] * self.stride_hw[0], grid_hw[1] * self.stride_hw[1]

    def own_anchors_wh(self, device: torch.device) -> Tensor:
        """Return the anchors of the mask, float32 (len(mask), 2)."""
        return constant([self.anchors_wh[index] for index in self.mask], device)


def activate(raw_map: Tensor, level: AnchorLevel) -> Tensor:
    """Return a raw map with the head's activations applied, in float32 even under autocast.

    Args:
        raw_map: (B, level.num_channels, H, W).
        level: the meaning of the map.

    Returns:
        float32 (B, len(mask), entries, H, W): x and y in cells from the corner of the cell, w and h as in the map,
        objectness and classes as probabilities; for the gaussian kind the uncertainties in 0..1.

    Raises:
        ValueError: the map has another number of channels.
    """
    if raw_map.shape[1] != level.num_channels:
        raise ValueError(
            f"an anchor level of {len(level.mask)} anchors and {level.num_classes} classes: expected a raw map of "
            f"{level.num_channels} channels, got {raw_map.shape[1]}"
        )
    batch, _, height, width = raw_map.shape
    return activate_entries(raw_map.float().reshape(batch, len(level.mask), level.num_entries, height, width), level)


def activate_entries(raw: Tensor, level: AnchorLevel) -> Tensor:
    """Apply the head's activations to raw values with the entries in dimension 2, float32 (., ., entries, ...).

    The classes may be missing for the kind `yolo`.
    """
    if level.kind == "gaussian":
        xy, wh = raw[:, :, 0:4].sigmoid(), raw[:, :, 4:8]
        xy = torch.stack([_rescaled(xy[:, :, 0], level), xy[:, :, 1], _rescaled(xy[:, :, 2], level), xy[:, :, 3]], 2)
        wh = torch.stack([wh[:, :, 0], wh[:, :, 1].sigmoid(), wh[:, :, 2], wh[:, :, 3].sigmoid()], 2)
        return torch.cat([xy, wh, raw[:, :, 8:].sigmoid()], dim=2)
    xy, wh, rest = raw[:, :, 0:2], raw[:, :, 2:4], raw[:, :, 4:]
    if level.kind == "region":
        classes = rest[:, :, 1:].softmax(dim=2) if level.softmax else rest[:, :, 1:]
        return torch.cat([xy.sigmoid(), wh, rest[:, :, :1].sigmoid(), classes], dim=2)
    if level.new_coords:
        return torch.cat([_rescaled(xy, level), wh, rest], dim=2)
    return torch.cat([_rescaled(xy.sigmoid(), level), wh, rest.sigmoid()], dim=2)


def _rescaled(offset: Tensor, level: AnchorLevel) -> Tensor:
    return offset * level.scale_x_y - (level.scale_x_y - 1) / 2


def boxes_cxcywh(xy: Tensor, wh: Tensor, level: AnchorLevel) -> Tensor:
    """Return boxes in canvas pixels from the activated x, y and the raw w, h.

    Args:
        xy: float32 (B, len(mask), 2, H, W), as `activate` returns them.
        wh: the same for w and h.
        level: the meaning of the map.

    Returns:
        float32 (B, len(mask), 4, H, W): centre and size.
    """
    stride_y, stride_x = level.stride_hw
    height, width = xy.shape[-2:]
    column = torch.arange(width, dtype=torch.float32, device=xy.device)
    row = torch.arange(height, dtype=torch.float32, device=xy.device)[:, None]
    anchors = level.own_anchors_wh(xy.device)[:, :, None, None]
    if level.kind == "region":
        anchors = anchors * constant([stride_x, stride_y], anchors.device)[:, None, None]
    sizes = 4 * wh.square() * anchors if level.new_coords else wh.exp() * anchors
    x, y = (xy[:, :, 0] + column) * stride_x, (xy[:, :, 1] + row) * stride_y
    if level.kind == "gaussian" and level.yolo_point != "center":
        towards = 0.5 if level.yolo_point == "left_top" else -0.5
        x, y = x + towards * sizes[:, :, 0], y + towards * sizes[:, :, 1]
    return torch.cat([torch.stack([x, y], dim=2), sizes], dim=2)


def decode_level(raw_map: Tensor, level: AnchorLevel) -> tuple[Tensor, Tensor]:
    """Return the boxes and scores of one raw map, in float32 even under autocast.

    A score is objectness times class probability; for the gaussian kind also times the mean certainty of the box. The
    order is Darknet's: cells row by row, and the anchors within a cell.

    Args:
        raw_map: (B, level.num_channels, H, W).
        level: the meaning of the map.

    Returns:
        canvas_xyxy float32 (B, H * W * len(mask), 4), not clipped, and scores float32 (B, H * W * len(mask), classes).
    """
    entries = activate(raw_map, level)
    if level.kind == "gaussian":
        boxes = boxes_cxcywh(entries[:, :, 0:4:2], entries[:, :, 4:8:2], level)
        objectness = entries[:, :, 8:9] * (1 - entries[:, :, 1:8:2].mean(dim=2, keepdim=True))
        scores = objectness * entries[:, :, 9:]
    else:
        boxes = boxes_cxcywh(entries[:, :, 0:2], entries[:, :, 2:4], level)
        scores = entries[:, :, 4:5] * entries[:, :, 5:]
    half = boxes[:, :, 2:] / 2
    canvas_xyxy = torch.cat([boxes[:, :, :2] - half, boxes[:, :, :2] + half], dim=2)
    return _by_cell(canvas_xyxy), _by_cell(scores)


def decode_levels(raw_maps: tuple[Tensor, ...], levels: tuple[AnchorLevel, ...]) -> tuple[Tensor, Tensor]:
    """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) of all levels, in order."""
    decoded = [decode_level(raw_map, level) for raw_map, level in zip(raw_maps, levels, strict=True)]
    return torch.cat([boxes for boxes, _ in decoded], dim=1), torch.cat([scores for _, scores in decoded], dim=1)


def _by_cell(values: Tensor) -> Tensor:
    """Return values (B, anchors, E, H, W) as (B, H * W * anchors, E)."""
    batch, anchors, entries, height, width = values.shape
    return values.permute(0, 3, 4, 1, 2).reshape(batch, height * width * anchors, entries)
