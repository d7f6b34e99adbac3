"""Example of a whole network for classification: one file in `detector/models/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import register
from detector.models.contracts import ClassifierConfig, TrainableModel


@register("toy")
class ThumbnailClassifier(TrainableModel):
    """Linear classifier of an image that is reduced to a few pixels."""

    @dataclass(frozen=True)
    class Config(ClassifierConfig):
        """Size of the network.

        Attributes:
            side: side in pixels of the reduced image.
        """

        side: int = 4

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        super().__init__()
        self.num_classes, self.image_channels, self.max_stride = num_classes, image_channels, 1
        self.side = config.side
        self.linear = nn.Linear(image_channels * config.side**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(self.in_unit_range(images), self.side).flatten(1))
        return logits
