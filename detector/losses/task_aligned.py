"""Loss of anchor-free heads: overlap, distance distribution and classification on task-aligned cells."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.registry import register
from detector.errors import ConfigError
from detector.losses.loss import Loss, LossConfig, LossParts, divisor_of
from detector.losses.task_aligned_assignment import Alignment, PaddedObjects, assign_task_aligned, cells_in_crowds
from detector.models.contracts import DetectionModel
from detector.models.heads import DenseHead, DensePredictions, boxes_of_distributions
from detector.structures import transfer
from detector.structures.types import Targets


@register("task_aligned")
class TaskAlignedLoss(Loss[tuple[Tensor, ...], Targets]):
    """Complete-IoU, distribution focal and binary cross-entropy loss on task-aligned cells.

    Sources: CIoU Zheng et al. 2020, equation 10; distribution focal loss Li et al. 2020, equation 6; task-aligned
    assignment Feng et al. 2021. Every part is a sum weighted by the quality of a cell and divided by the batch's total
    quality, so that the number of objects does not change the step. The head `dual` has a second branch, whose parts
    are those of one cell for each object, assigned by the same alignment (Wang et al. 2024, section 3.1), and divided
    by the total quality of the first.
    """

    @dataclass(frozen=True)
    class Config(LossConfig):
        """Weights of the parts and settings of the assignment.

        Attributes:
            box: weight of the CIoU part.
            classes: weight of the classification part.
            distribution: weight of the distance-distribution part.
            num_candidates: cells an object may take.
            alpha: exponent of the class score in the alignment.
            beta: exponent of the overlap in the alignment.
            enlarge_small: whether an object smaller than the second stride of the model takes cells as if it had that
                size, so that more cells are trained on it.
            one_to_one: weight of the parts of the one-to-one branch, for the head `dual`; 5 makes them about as large
                as if they were divided by its own total quality.
        """

        box: float = 7.5
        classes: float = 0.5
        distribution: float = 1.5
        num_candidates: int = 10
        alpha: float = 0.5
        beta: float = 6.0
        enlarge_small: bool = False
        one_to_one: float = 5.0  # mish-n on BCCD: the total qualities differ by 6 at the start, by 4.6 when trained

        def __post_init__(self) -> None:
            weights = (self.box, self.classes, self.distribution, self.one_to_one)
            if min(*weights, self.alpha, self.beta) < 0 or self.num_candidates < 1:
                raise ValueError(
                    "the task_aligned loss: expected weights and exponents >= 0 and num_candidates >= 1, got "
                    f"{dataclasses.asdict(self)}"
                )

    def __init__(self, config: Config, model: DetectionModel) -> None:
        """Take the head of a model.

        Raises:
            ConfigError: it is not an anchor-free head.
        """
        head = model.detection_head()
        if not isinstance(head, DenseHead):
            raise ConfigError(
                "loss: task_aligned: expected a model with an anchor-free head, got one without; use loss: anchor for "
                "a model with anchors"
            )
        self.config, self.head = config, head

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        """Return the weighted parts, each a scalar float32; training minimises their sum.

        Args:
            raw_maps: the output of the model.
            targets: the objects, on the same canvas.
        """
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            sums, count = self._sums(self.head.dense(raw_maps), targets)
            single = self.head.dense_one_to_one(raw_maps)
            if single is not None:  # over the same count, because the batches of a step have one
                own = self._sums(single, targets, one_to_one=True)[0]
                sums |= {f"one_{name}": self.config.one_to_one * value for name, value in own.items()}
        normaliser = divisor_of(count)
        return LossParts({name: value / normaliser for name, value in sums.items()}, count)

    def _sums(
        self, dense: DensePredictions, targets: Targets, *, one_to_one: bool = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the weighted parts of a branch as sums over the batch, and its total quality."""
        config = self.config
        objects = PaddedObjects(*targets.padded(ignore=False))
        with torch.no_grad():  # the assignment has no gradient, and few of the boxes are assigned
            canvas_xyxy = dense.canvas_xyxy()
        positive = assign_task_aligned(
            dense.class_logits.detach().sigmoid(),
            canvas_xyxy,
            dense.points_xy,
            dense.strides,
            objects,
            Alignment(config.num_candidates, config.alpha, config.beta, config.enlarge_small, one_to_one),
        )
        image, cell, quality = positive.image_index, positive.cell_index, positive.quality
        boxes = objects.canvas_xyxy[image, positive.object_index]

        class_target = torch.zeros_like(dense.class_logits)
        labels = objects.labels[image, positive.object_index]
        class_target.index_put_((image, cell, labels), quality, accumulate=True)  # adds 0 for entries that do not count
        entropy = F.binary_cross_entropy_with_logits(dense.class_logits, class_target, reduction="none")
        crowd_xyxy, _, crowd_valid = targets.padded(ignore=True)
        if crowd_xyxy.shape[1]:
            in_crowd = cells_in_crowds(dense.points_xy, dense.strides, crowd_xyxy, crowd_valid)
            in_crowd &= (class_target == 0).all(dim=2)  # a cell assigned to an object is not background
            entropy = entropy.masked_fill(in_crowd[..., None], 0.0)

        logits, points_xy, strides = dense.distribution_logits[image, cell], dense.points_xy[cell], dense.strides[cell]
        if transfer.runs_ahead(logits):  # entries that do not count must not be NaN
            logits = logits.where(positive.counts[:, None, None], 0.0)
        predicted_xyxy = boxes_of_distributions(logits, points_xy, strides)
        if transfer.runs_ahead(logits):
            boxes = boxes.where(positive.counts[:, None], predicted_xyxy.detach())
        box = (complete_iou_loss(predicted_xyxy, boxes) * quality).sum()
        distances = torch.cat([points_xy - boxes[:, :2], boxes[:, 2:] - points_xy], dim=1) / strides[:, None]
        distribution = distribution_focal_loss(logits, distances).mean(1) * quality
        parts = {
            "box": config.box * box,
            "cls": config.classes * entropy.sum(),
            "dfl": config.distribution * distribution.sum(),
        }
        return parts, quality.sum()


def complete_iou_loss(predicted_xyxy: Tensor, xyxy: Tensor) -> Tensor:
    """Return 1 - CIoU of pairs of boxes (Zheng et al. 2020, equation 10), to the bits of `complete_box_iou_loss`.

    The import of torchvision, which has that function, takes longer than that of torch.

    Args:
        predicted_xyxy: predicted boxes, float32 or float64 (P, 4).
        xyxy: the boxes of their objects, (P, 4).

    Returns:
        (P,), at least 0.
    """
    left, top, right, bottom = xyxy.unbind(-1)
    x0, y0, x1, y1 = predicted_xyxy.unbind(-1)
    inner = torch.max(x0, left), torch.max(y0, top), torch.min(x1, right), torch.min(y1, bottom)
    width, height = inner[2] - inner[0], inner[3] - inner[1]
    intersection = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - intersection
    iou = intersection / (union + 1e-7)

    x0, y0, x1, y1 = predicted_xyxy.unbind(-1)  # again, so that autograd sums each part by itself
    hull = torch.min(x0, left), torch.min(y0, top), torch.max(x1, right), torch.max(y1, bottom)
    diagonal = (hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2 + 1e-7
    x, y = (x1 + x0) / 2, (y1 + y0) / 2
    distance = (x - (left + right) / 2) ** 2 + (y - (top + bottom) / 2) ** 2
    centred = 1 - iou + distance / diagonal

    x0, y0, x1, y1 = predicted_xyxy.unbind(-1)
    angle = torch.atan((right - left) / (bottom - top)) - torch.atan((x1 - x0) / (y1 - y0))
    aspect = 4 / torch.pi**2 * angle**2
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + 1e-7)
    return centred + weight * aspect


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Return the cross-entropy to the two bins around each distance, in linear shares (Li et al. 2020, equation 6).

    Args:
        logits: float32 (..., bins).
        distances: float32 (...), in bins; clipped to the range of the bins.

    Returns:
        float32 (...).
    """
    top = logits.shape[-1] - 1
    clipped = distances.clamp(0, top - 0.01)
    lower = clipped.long()
    share = clipped - lower
    log_probability = logits.log_softmax(-1)
    at_lower = log_probability.gather(-1, lower[..., None]).squeeze(-1)
    at_upper = log_probability.gather(-1, lower[..., None] + 1).squeeze(-1)
    return -(at_lower * (1 - share) + at_upper * share)
