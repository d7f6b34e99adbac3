"""Cross-entropy, the loss of classification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.registry import register
from detector.losses.loss import ClassificationLossConfig, Loss, LossParts
from detector.models.contracts import TrainableModel
from detector.structures.types import ImageClasses


@register("cross_entropy")
class CrossEntropyLoss(Loss[Tensor, ImageClasses]):
    """Mean of -sum_k t_k log softmax(z)_k, t_k = (1 - s) [k is the class] + s / classes.

    Source: Szegedy et al. 2015, "Rethinking the Inception architecture", section 7 (label smoothing s).
    """

    @dataclass(frozen=True)
    class Config(ClassificationLossConfig):
        """Settings of the cross-entropy.

        Attributes:
            label_smoothing: the share s of the target that is spread evenly over all classes.
        """

        label_smoothing: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"cross_entropy: expected 0 <= label_smoothing < 1, got {self.label_smoothing}")

    def __init__(self, config: Config, model: TrainableModel) -> None:
        self.config = config

    def __call__(self, logits: Tensor, targets: ImageClasses) -> LossParts:
        """Return the loss of logits (B, classes), in float32; each class of a mixed image counts by its share."""
        with torch.autocast(logits.device.type, enabled=False):
            scores, smoothing = logits.float(), self.config.label_smoothing
            entropy = F.cross_entropy(scores, targets.labels, reduction="none", label_smoothing=smoothing)
            if targets.mixed_labels is not None:
                mixed = F.cross_entropy(scores, targets.mixed_labels, reduction="none", label_smoothing=smoothing)
                entropy = targets.share * entropy + (1 - targets.share) * mixed
            return LossParts({"entropy": entropy.mean()}, entropy.new_full((), float(len(entropy))))
