"""Loss of YOLOX: overlap, objectness and classification on cells that SimOTA assigns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.registry import register
from detector.errors import ConfigError
from detector.losses.loss import Loss, LossConfig, LossParts, divisor_of
from detector.losses.simota_assignment import Candidates, assign_simota
from detector.losses.task_aligned_assignment import PaddedObjects, cells_in_crowds, pairwise_iou
from detector.models.contracts import DetectionModel
from detector.models.yolox import CellPredictions, YoloxHead
from detector.structures import transfer
from detector.structures.boxes import xyxy_to_cxcywh
from detector.structures.types import Targets

_SIZE_EPSILON = 1e-8  # of the logarithm of a box side in strides
_IMPOSSIBLE = -1e4  # logit of a class whose entropy and gradient are 0


@register("simota")
class SimOTALoss(Loss[tuple[Tensor, ...], Targets]):
    """Squared-IoU, objectness and classification loss on SimOTA's cells, and an L1 loss at the end of a run.

    Source: Ge et al. 2021, "YOLOX", section 2. Every part is divided by the number of assigned cells of the batch.
    """

    @dataclass(frozen=True)
    class Config(LossConfig):
        """Weights of the parts and settings of the assignment.

        Attributes:
            box: weight of the part 1 - IoU^2.
            objectness: weight of the objectness part.
            classes: weight of the classification part.
            l1: weight of the L1 part on the raw box numbers.
            l1_share: share of the run, at its end, in which the L1 part counts; 15 of 300 epochs by default.
            radius: largest distance of a candidate's centre from the object's centre on each axis, in strides.
            num_overlaps: overlaps whose sum is the number of cells of an object.
        """

        box: float = 5.0
        objectness: float = 1.0
        classes: float = 1.0
        l1: float = 1.0
        l1_share: float = 0.05
        radius: float = 1.5
        num_overlaps: int = 10

        def __post_init__(self) -> None:
            weights = (self.box, self.objectness, self.classes, self.l1)
            if min(weights) < 0 or not 0 <= self.l1_share <= 1 or self.radius <= 0 or self.num_overlaps < 1:
                raise ValueError(
                    "the simota loss: expected weights >= 0, l1_share within 0..1, radius > 0 and num_overlaps >= 1, "
                    f"got {dataclasses.asdict(self)}"
                )

    def __init__(self, config: Config, model: DetectionModel) -> None:
        """Take the head of a model.

        Raises:
            ConfigError: it is not a YOLOX head.
        """
        head = model.detection_head()
        if not isinstance(head, YoloxHead):
            raise ConfigError(
                "loss: simota: expected a model with the head yolox, got another one; choose model.head=yolox, or "
                "leave the loss out"
            )
        self.config, self.head, self._has_l1 = config, head, config.l1_share >= 1

    def set_progress(self, progress: float) -> None:
        """Switch the L1 part on in the last part of the run."""
        self._has_l1 = progress >= 1 - self.config.l1_share

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        """Return the weighted parts, each a scalar float32; training minimises their sum.

        Args:
            raw_maps: the output of the model.
            targets: the objects, on the same canvas.
        """
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            return self._parts(self.head.cells(raw_maps), targets)

    def _parts(self, cells: CellPredictions, targets: Targets) -> LossParts:
        config = self.config
        objects = PaddedObjects(*targets.padded(ignore=False))
        positive = assign_simota(cells, objects, Candidates(config.radius, config.num_overlaps))
        image, cell, counts = positive.image_index, positive.cell_index, positive.counts
        boxes = objects.canvas_xyxy[image, positive.object_index]
        count = counts.sum().to(cells.strides.dtype)
        normaliser = divisor_of(count)

        is_object = torch.zeros_like(cells.objectness_logits)
        is_object.index_put_((image, cell), counts.to(is_object.dtype), accumulate=True)
        objectness = F.binary_cross_entropy_with_logits(cells.objectness_logits, is_object, reduction="none")
        crowd_xyxy, _, crowd_valid = targets.padded(ignore=True)
        if crowd_xyxy.shape[1]:
            points_xy = (cells.corners_xy + 0.5) * cells.strides[:, None]
            in_crowd = cells_in_crowds(points_xy, cells.strides, crowd_xyxy, crowd_valid)
            in_crowd &= is_object == 0  # a cell assigned to an object is not background
            objectness = objectness.masked_fill(in_crowd, 0.0)

        class_logits, box_numbers = cells.class_logits[image, cell], cells.box_numbers[image, cell]
        if transfer.runs_ahead(counts):  # entries that do not count have the probability 0 and finite boxes
            class_logits = class_logits.where(counts[:, None], _IMPOSSIBLE)
            box_numbers = box_numbers.where(counts[:, None], 0.0)
        class_target = torch.zeros_like(class_logits)
        labels = objects.labels[image, positive.object_index]
        class_target.scatter_(1, labels[:, None], positive.quality.where(counts, 0.0)[:, None])
        classes = F.binary_cross_entropy_with_logits(class_logits, class_target, reduction="sum")

        chosen = CellPredictions(
            box_numbers,
            cells.objectness_logits[image, cell],
            class_logits,
            cells.corners_xy[cell],
            cells.strides[cell],
        )
        box = (1 - pairwise_iou(chosen.canvas_xyxy(), boxes).square()).where(counts, 0.0).sum()
        l1 = _l1(chosen, boxes, counts) if self._has_l1 else box.new_zeros(())
        parts = {
            "box": config.box * box / normaliser,
            "obj": config.objectness * objectness.sum() / normaliser,
            "cls": config.classes * classes / normaliser,
            "l1": config.l1 * l1 / normaliser,
        }
        return LossParts(parts, count)


def _l1(chosen: CellPredictions, canvas_xyxy: Tensor, counts: Tensor) -> Tensor:
    """Return the summed distance of the raw box numbers from those of the objects that count, a scalar."""
    in_cells = xyxy_to_cxcywh(canvas_xyxy) / chosen.strides[:, None]
    wanted = torch.cat([in_cells[:, :2] - chosen.corners_xy, (in_cells[:, 2:] + _SIZE_EPSILON).log()], dim=1)
    return (chosen.box_numbers - wanted).abs().where(counts[:, None], 0.0).sum()
