"""The loss of anchor-based heads as Darknet has it: the gradient of its `[yolo]` layers and the loss they report.

Darknet hands deltas to the layer below and reports a number that they are not the derivative of. So the loss has a
backward pass of its own: the gradient of a raw map is -delta / B, with B the images of the batch. The trainer averages
over the batches of a step, which makes B what Darknet divides by, `batch` images per update, and SGD without Nesterov's
look-ahead the update of Darknet. Darknet does not clip the gradient's norm: a `train.clip_norm` out of reach, such as
1e9, is what it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detector.config.registry import register
from detector.errors import ConfigError
from detector.losses.anchor_deltas import Deltas, RelativeObjects, deltas_of_level
from detector.losses.loss import Loss, LossConfig, LossParts
from detector.models.anchor_levels import AnchorLevel
from detector.models.contracts import DetectionModel
from detector.structures.types import Targets


class _Taught(torch.autograd.Function):
    """The three parts of a level's loss, with the deltas as their gradient."""

    @staticmethod
    def forward(
        ctx: Any, raw_map: Tensor, parts: Tensor, objectness: Tensor, cell: Tensor, box: Tensor, classes: Tensor
    ) -> Tensor:
        """Parts (3,), box, objectness and classes, of a raw map with the deltas given."""
        ctx.save_for_backward(raw_map, objectness, cell, box, classes)
        return parts.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """-delta / B, each entry scaled by the gradient of its part."""
        raw_map, objectness, cell, box, classes = ctx.saved_tensors
        num_images, _, rows, columns = raw_map.shape
        num_entries = 5 + classes.shape[1]
        scale = -gradient.float() / num_images
        whole = torch.zeros_like(raw_map)
        entries = whole.view(num_images, -1, num_entries, rows, columns)
        places = torch.unravel_index(cell, (num_images, entries.shape[1], rows, columns))
        taught = torch.cat([box * scale[0], (objectness[cell] * scale[1])[:, None], classes * scale[2]], dim=1)
        entries[:, :, 4] = (objectness * scale[1]).view_as(entries[:, :, 4]).to(whole.dtype)
        entries[places[0], places[1], :, places[2], places[3]] = taught.to(whole.dtype)
        return whole, None, None, None, None, None


@register("anchor")
class AnchorLoss(Loss[tuple[Tensor, ...], Targets]):
    """Darknet's loss on the anchor levels of a model; its settings stand at the levels.

    Sources: Redmon and Farhadi 2018 (YOLOv3), Bochkovskiy et al. 2020 (YOLOv4); the rules are those of the program
    Darknet, which differ from both papers. Crowd regions, which Darknet does not know, are an addition: a predicted box
    that lies mostly in one is no background.
    """

    @dataclass(frozen=True)
    class Config(LossConfig):
        """Nothing to set: each level says how it is taught."""

    def __init__(self, config: Config, model: DetectionModel) -> None:
        """Takes up the levels of a model.

        Raises:
            ConfigError: the model has none, or levels that cannot be taught.
        """
        levels = model.anchor_levels
        if not levels:
            raise ConfigError(
                "loss: anchor wants a model with an anchor head, found one without; choose another loss or model.head"
            )
        names = {"gaussian": "[Gaussian_yolo]", "region": "[region]"}
        untaught = sorted({names[level.kind] for level in levels if level.kind in names})
        if untaught:
            raise ConfigError(
                f"loss: anchor teaches heads of [yolo] sections, found {' and '.join(untaught)}, which can be "
                "evaluated, run and converted only; train a network with [yolo] heads"
            )
        self.levels = levels

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        """The parts of the loss that Darknet reports, each a scalar float32 per image, averaged over the levels.

        Args:
            raw_maps: what the model returned, one per level: the input of each head.
            targets: the objects, on the same canvas; of each image the first `max_truths` are taught.
        """
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            levels = zip(raw_maps, self.levels, strict=True)
            parts = torch.stack([self._parts_of_level(raw_map, level, targets) for raw_map, level in levels])
        named = dict(zip(("box", "obj", "cls"), parts.sum(dim=0).unbind(), strict=True))
        return LossParts(named, parts.new_tensor(float(len(raw_maps[0]))))

    def _parts_of_level(self, raw_map: Tensor, level: AnchorLevel, targets: Targets) -> Tensor:
        objects = _objects(targets, level, (raw_map.shape[2], raw_map.shape[3]))
        found = deltas_of_level(raw_map, level, objects)
        # The mean over the levels is of the reported numbers alone: every level's deltas count in full.
        reported = _reported(found, level) / (len(raw_map) * len(self.levels))
        taught: Tensor = _Taught.apply(raw_map, reported, found.objectness, found.cell, found.box, found.classes)
        return taught


def _objects(targets: Targets, level: AnchorLevel, grid_hw: tuple[int, int]) -> RelativeObjects:
    """The objects relative to the canvas of a level."""
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


def _reported(found: Deltas, level: AnchorLevel) -> Tensor:
    """Box, objectness and class part (3,) of what Darknet reports of a level, summed over the images."""
    training = level.training
    box, objectness, classes = (delta.square().sum() for delta in (found.box, found.objectness, found.classes))
    if training.iou_loss == "mse":
        return torch.stack([box, objectness, classes])
    return torch.stack(
        [
            training.iou_normalizer * found.distance,
            training.obj_normalizer * objectness,
            training.obj_normalizer * classes,
        ]
    )
