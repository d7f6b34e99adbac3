"""Example of a loss of classification: one file in `detector/losses/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.registry import register
from detector.losses.loss import ClassificationLossConfig, Loss, LossParts
from detector.models.contracts import TrainableModel
from detector.structures.types import ImageClasses


@register("toy")
class BrierLoss(Loss[Tensor, ImageClasses]):
    """Mean squared distance between probabilities and classes (Brier 1950)."""

    @dataclass(frozen=True)
    class Config(ClassificationLossConfig):
        """No settings."""

    def __init__(self, config: Config, model: TrainableModel) -> None:
        self._num_classes = model.num_classes

    def __call__(self, logits: Tensor, targets: ImageClasses) -> LossParts:
        """Return the loss of logits (B, classes), in float32; each class of a mixed image counts by its share."""
        with torch.autocast(logits.device.type, enabled=False):
            expected = F.one_hot(targets.labels, self._num_classes).float()
            if targets.mixed_labels is not None:
                mixed = F.one_hot(targets.mixed_labels, self._num_classes)
                expected = targets.share * expected + (1 - targets.share) * mixed
            distances = (logits.float().softmax(dim=1) - expected).square().sum(dim=1)
            return LossParts({"brier": distances.mean()}, distances.new_tensor(float(len(distances))))
