"""Darknet's loss of anchor-based heads: the gradient of its `[yolo]` layers and the loss that they report.

Darknet passes deltas to the layer below and reports a number whose derivative they are not. Therefore the loss has its
own backward pass: the gradient of a raw map is -delta / B, with B the number of images of the batch. The trainer
averages over the batches of a step, so that the divisor is Darknet's, `batch` images per update, and SGD without
Nesterov's look-ahead gives the update of Darknet. Darknet does not clip the norm of the gradient; a large
`train.clip_norm`, such as 1e9, has the same effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from detector.config.registry import register
from detector.errors import ConfigError
from detector.losses.anchor_deltas import Deltas, RelativeObjects, deltas_of_level
from detector.losses.loss import Loss, LossConfig, LossParts
from detector.models.anchor_levels import AnchorLevel
from detector.models.contracts import DetectionModel
from detector.structures.transfer import sent_record, unravelled
from detector.structures.types import Targets


class _Context(Protocol):
    """Context that autograd passes from the forward to the backward function."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _PartsWithDeltas(torch.autograd.Function):
    """Autograd function of the three parts of a level's loss, with the deltas as their gradient."""

    @staticmethod
    def forward(
        ctx: _Context, raw_map: Tensor, parts: Tensor, objectness: Tensor, cell: Tensor, box: Tensor, classes: Tensor
    ) -> Tensor:
        """Return the parts (3,), box, objectness and classes, of a raw map with the given deltas."""
        ctx.save_for_backward(raw_map, objectness, cell, box, classes)
        return parts.clone()

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return -delta / B, each entry scaled by the gradient of its part."""
        raw_map, objectness, cell, box, classes = ctx.saved_tensors
        num_images, _, rows, columns = raw_map.shape
        num_entries = 5 + classes.shape[1]
        scale = -gradient.float() / num_images
        whole = torch.zeros_like(raw_map)
        entries = whole.view(num_images, -1, num_entries, rows, columns)
        places = unravelled(cell, (num_images, entries.shape[1], rows, columns))
        chosen = torch.cat([box * scale[0], (objectness[cell] * scale[1])[:, None], classes * scale[2]], dim=1)
        entries[:, :, 4] = (objectness * scale[1]).view_as(entries[:, :, 4]).to(whole.dtype)
        entries[places[0], places[1], :, places[2], places[3]] = chosen.to(whole.dtype)
        return whole, None, None, None, None, None


@register("anchor")
class AnchorLoss(Loss[tuple[Tensor, ...], Targets]):
    """Darknet's loss on the anchor levels of a model; the levels hold its settings.

    Sources: Redmon and Farhadi 2018 (YOLOv3), Bochkovskiy et al. 2020 (YOLOv4); the rules are those of the program
    Darknet, which differ from both papers. Crowd regions, which Darknet does not have, are an addition: a predicted box
    that lies mostly in one does not count as background.
    """

    @dataclass(frozen=True)
    class Config(LossConfig):
        """The loss has no settings: each level has its training settings."""

    def __init__(self, config: Config, model: DetectionModel) -> None:
        """Take the levels of a model.

        Raises:
            ConfigError: the model has none, or levels that cannot be trained.
        """
        levels = model.anchor_levels
        if not levels:
            raise ConfigError(
                "loss: anchor: expected a model with an anchor head, got one without; choose another loss or model.head"
            )
        names = {"gaussian": "[Gaussian_yolo]", "region": "[region]"}
        untrainable = sorted({names[level.kind] for level in levels if level.kind in names})
        if untrainable:
            raise ConfigError(
                f"loss: anchor: expected heads of [yolo] sections, got {' and '.join(untrainable)}, which can only be "
                "evaluated, run and converted; train a network with [yolo] heads"
            )
        self.levels = levels

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        """Return the parts of the loss that Darknet reports, scalar float32 per image, averaged over the levels.

        Args:
            raw_maps: the output of the model, one map per level.
            targets: the objects, on the same canvas; only the first `max_truths` of each image count.
        """
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            levels = zip(raw_maps, self.levels, strict=True)
            parts = torch.stack([self._parts_of_level(raw_map, level, targets) for raw_map, level in levels])
        named = dict(zip(("box", "obj", "cls"), parts.sum(dim=0).unbind(), strict=True))
        return LossParts(named, parts.new_full((), float(len(raw_maps[0]))))

    def _parts_of_level(self, raw_map: Tensor, level: AnchorLevel, targets: Targets) -> Tensor:
        objects = _objects(targets.host or targets, level, (raw_map.shape[2], raw_map.shape[3]))
        on_device = sent_record(objects, raw_map.device, host=objects)
        deltas = deltas_of_level(raw_map, level, on_device)
        # Only the reported numbers are averaged over the levels: the deltas of every level count in full.
        reported = _reported(deltas, level) / (len(raw_map) * len(self.levels))
        given = deltas.objectness, deltas.cell, deltas.box, deltas.classes
        parts: Tensor = _PartsWithDeltas.apply(raw_map, reported, *given)
        return parts


def _objects(targets: Targets, level: AnchorLevel, grid_hw: tuple[int, int]) -> RelativeObjects:
    """Return the objects relative to the canvas of a level."""
    canvas_h, canvas_w = level.canvas_hw(grid_hw)
    canvas_xyxy, labels, valid = targets.padded(ignore=False)
    most = level.training.max_truths
    relative = canvas_xyxy[:, :most] / canvas_xyxy.new_tensor([canvas_w, canvas_h, canvas_w, canvas_h])
    low, high = relative[..., :2], relative[..., 2:]
    has_area = (high > low).all(dim=2)
    cxcywh = torch.cat([(low + high) / 2, high - low], dim=2)
    crowd_xyxy, _, crowd_valid = targets.padded(ignore=True)
    crowd_xyxy = crowd_xyxy / crowd_xyxy.new_tensor([canvas_w, canvas_h, canvas_w, canvas_h])
    return RelativeObjects(cxcywh, labels[:, :most], valid[:, :most] & has_area, crowd_xyxy, crowd_valid)


def _reported(deltas: Deltas, level: AnchorLevel) -> Tensor:
    """Return the box, objectness and class part (3,) that Darknet reports for a level, summed over the images."""
    training = level.training
    box, objectness, classes = (delta.square().sum() for delta in (deltas.box, deltas.objectness, deltas.classes))
    if training.iou_loss == "mse":
        return torch.stack([box, objectness, classes])
    return torch.stack(
        [
            training.iou_normalizer * deltas.distance,
            training.obj_normalizer * objectness,
            training.obj_normalizer * classes,
        ]
    )
