"""Distillation: the loss of a model on annotations, and on the boxes and scores of a teacher in the same images."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.losses.loss import Loss, LossParts, divisor_of
from detector.losses.simota import SimOTALoss
from detector.losses.task_aligned import TaskAlignedLoss, complete_iou_loss
from detector.losses.task_aligned_assignment import (
    Alignment,
    Assignment,
    PaddedObjects,
    assign_task_aligned,
    cells_in_boxes,
)
from detector.models.contracts import DetectionModel
from detector.models.dual_head import DualHead
from detector.structures import transfer
from detector.structures.types import Targets, TaughtObjects

DetectionLoss: TypeAlias = "Loss[tuple[Tensor, ...], Targets]"
# The cells that a detection of the teacher takes: the defaults of the loss `task_aligned`.
_ALIGNMENT = Alignment(num_candidates=10, alpha=0.5, beta=6.0)
_LEAST, _STEP = 1e-12, 2.0**-24  # of a score in a logarithm, and of its distance from 1: one step of float32
_MAX_COMPARED = 2**21  # pairs of an object and a cell that are compared at once, which bounds the memory


class DistillationLoss(Loss[tuple[Tensor, ...], Targets]):
    """Loss on annotations joined with one on a teacher's detections, for heads with one prediction per cell.

    The detections take cells of the model as objects do (task-aligned assignment, Feng et al. 2021, section 3.2), so
    that the teacher may have any grid, anchors or format. With p the score of a cell for a class that the teacher has,
    and t its target, the teacher's score times the quality of the cell, or 0 where no detection took it, the parts are

        teacher_cls = w_cls * sum over cells and classes of |t - p| * BCE(p, t)
        teacher_box = w_box * sum over taken cells of (largest t of the cell) * (1 - CIoU of its box and the teacher's)

    the binary classification and the IoU-based localisation distillation of Yang et al. 2023 ("Bridging cross-task
    protocol inconsistency for distillation in dense object detection"; the first has the form of Li et al. 2020,
    equation 2, with exponent 1). A cell inside an annotated object has no part in `teacher_cls` unless a detection took
    it: what the teacher misses is no background. w_cls and w_box are the weights of the model's own loss.

    The detections count as further objects: the sums of both losses are divided once by the count of the model's own
    loss plus `weight` times the sum of the largest t. Where teacher and annotations agree this is the mean of both
    losses with the shares 1 and `weight`, as in Hinton et al. 2015, section 2; in images without annotations it is the
    teacher's loss alone.
    """

    def __init__(self, base: DetectionLoss, model: DetectionModel, is_taught: tuple[bool, ...], weight: float) -> None:
        """Join the loss of a model with that of its teacher.

        Args:
            base: the loss on annotations.
            model: the model in training.
            is_taught: for each class of the model whether the teacher has it.
            weight: weight of a detection of the teacher relative to an object.

        Raises:
            ConfigError: the loss is not `task_aligned` or `simota`, or the model has the head `dual`.
        """
        if any(isinstance(part, DualHead) for part in model.modules()):
            raise ConfigError(
                "train.teacher: expected a model that is trained by one branch, got the head dual, whose second branch "
                "learns one cell of each object; choose the head decoupled, or leave the teacher out"
            )
        if type(base) not in (TaskAlignedLoss, SimOTALoss):
            raise ConfigError(
                "train.teacher: expected a model with the loss task_aligned or simota, got one with another loss; "
                "choose a mish or yolox model, or leave the teacher out"
            )
        assert isinstance(base, TaskAlignedLoss | SimOTALoss)  # for the type checker
        self._base, self._model, self._weight = base, model, weight
        self._box, self._classes = base.config.box, base.config.classes
        self._is_taught = torch.tensor(is_taught)

    def set_progress(self, progress: float) -> None:
        """Pass the share of the run that is done on to the loss on annotations."""
        self._base.set_progress(progress)

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        """Return the weighted parts of both losses, each a scalar float32; training minimises their sum.

        Args:
            raw_maps: the output of the model.
            targets: the objects and the teacher's detections, on the same canvas.
        """
        parts = self._base(raw_maps, replace(targets, taught=None))
        assert targets.taught is not None  # the batches of such a run have it
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            sums, taught_count = self._sums(raw_maps, targets, targets.taught)
        count = parts.count + self._weight * taught_count
        own_share, divisor = divisor_of(parts.count) / divisor_of(count), divisor_of(count)
        own = {name: part * own_share for name, part in parts.items()}
        taught = {name: self._weight * part / divisor for name, part in sums.items()}
        return LossParts({**own, **taught}, count)

    def _sums(
        self, raw_maps: tuple[Tensor, ...], targets: Targets, taught: TaughtObjects
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the teacher as sums over the batch, and the sum of the largest targets."""
        canvas_xyxy, scores = self._model.decode(raw_maps)
        points_xy, strides = _cells(raw_maps, self._model.max_stride)
        largest, labels = taught.scores.max(dim=2)
        objects = PaddedObjects(taught.canvas_xyxy, labels, largest > 0)
        positive = assign_task_aligned(scores.detach(), canvas_xyxy.detach(), points_xy, strides, objects, _ALIGNMENT)
        image, cell, index = positive.image_index, positive.cell_index, positive.object_index
        weight = positive.quality * largest[image, index]

        target = torch.zeros_like(scores)
        rows = positive.quality[:, None] * taught.scores[image, index]
        target.index_put_((image, cell), rows, accumulate=True)  # adds 0 for entries that do not count
        num_taking = torch.zeros_like(scores[..., 0])
        num_taking.index_put_((image, cell), positive.counts.to(num_taking.dtype), accumulate=True)
        has_part = (num_taking > 0) | ~_in_objects(points_xy, strides, targets)
        entropy = soft_entropy(scores, target) * has_part[..., None] * self._is_taught.to(scores.device)

        box = _box_distance(canvas_xyxy, taught.canvas_xyxy[image, index], positive)
        sums = {"teacher_box": self._box * (box * weight).sum(), "teacher_cls": self._classes * entropy.sum()}
        return sums, weight.sum()


def soft_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """Return |t - p| * BCE(p, t) of scores p and targets t, both 0..1: float32 of their shape, NaN where p is NaN.

    The factor has no gradient. The logarithms are bounded where p is 0 or 1 in float32.
    """
    log_p, log_rest = scores.clamp(min=_LEAST).log(), torch.log1p(-scores.clamp(max=1 - _STEP))
    return (target - scores.detach()).abs() * -(target * log_p + (1 - target) * log_rest)


def _box_distance(canvas_xyxy: Tensor, wanted_xyxy: Tensor, positive: Assignment) -> Tensor:
    """Return 1 - CIoU of the boxes of the assigned cells and those of the teacher: float32 (P,)."""
    predicted_xyxy = canvas_xyxy[positive.image_index, positive.cell_index]
    if transfer.runs_ahead(predicted_xyxy):  # entries that do not count must not be NaN
        wanted_xyxy = wanted_xyxy.where(positive.counts[:, None], predicted_xyxy.detach())
    return complete_iou_loss(predicted_xyxy, wanted_xyxy)


def _cells(raw_maps: tuple[Tensor, ...], max_stride: int) -> tuple[Tensor, Tensor]:
    """Return the centres (A, 2) in canvas pixels and the strides (A,) of the cells, in the order of `decode`."""
    points, strides = [], []
    canvas_h = max_stride * min(raw_map.shape[2] for raw_map in raw_maps)
    for raw_map in raw_maps:
        (height, width), device = raw_map.shape[2:], raw_map.device
        stride = canvas_h / height
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * stride
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * stride
        points.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2).flatten(0, 1))
        strides.append(torch.full((height * width,), stride, device=device))
    return torch.cat(points), torch.cat(strides)


def _in_objects(points_xy: Tensor, strides: Tensor, targets: Targets) -> Tensor:
    """Return the cells whose centre is inside an annotated object, crowd regions aside: bool (B, A)."""
    boxes, _, valid = targets.padded(ignore=False)
    image, index = transfer.entries(valid)
    num_inside = torch.zeros(len(valid), len(points_xy), device=points_xy.device)
    num_rows = max(1, _MAX_COMPARED // len(points_xy))
    for images, indices in zip(torch.split(image, num_rows), torch.split(index, num_rows), strict=True):
        inside = cells_in_boxes(points_xy, strides, boxes[images, indices]) & valid[images, indices][:, None]
        num_inside.index_add_(0, images, inside.to(num_inside.dtype))
    return num_inside > 0
