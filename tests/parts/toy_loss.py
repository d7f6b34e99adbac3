"""Example of a loss: one file in `detector/losses/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.registry import register
from detector.losses.loss import Loss, LossConfig, LossParts, divisor_of
from detector.models.contracts import DetectionModel
from detector.structures.types import Targets


@register("toy")
class NearestBoxLoss(Loss[tuple[Tensor, ...], Targets]):
    """Distance of the corners and cross-entropy; each object trains the predicted box that is nearest to it.

    It reads raw maps through `decode`, so it suits every detection model.
    """

    @dataclass(frozen=True)
    class Config(LossConfig):
        """Weights of the parts.

        Attributes:
            box: weight of the distance between corners, in canvas pixels.
        """

        box: float = 0.05

    def __init__(self, config: Config, model: DetectionModel) -> None:
        self.config, self._decode = config, model.decode

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        """Return the weighted parts, each a scalar float32; training minimises their sum.

        Args:
            raw_maps: the output of the model.
            targets: the objects, on the same canvas; crowd regions train nothing.
        """
        with torch.autocast(raw_maps[0].device.type, enabled=False):
            canvas_xyxy, scores = self._decode(raw_maps)
            is_object = ~targets.ignore
            image, label = targets.image_index[is_object], targets.labels[is_object]
            distances = (canvas_xyxy[image] - targets.canvas_xyxy[is_object, None]).abs().mean(dim=-1)
            nearest = distances.argmin(dim=1)
            expected = torch.zeros_like(scores)
            expected[image, nearest, label] = 1.0
            count = is_object.sum().float()
            parts = {
                "box": self.config.box * distances.gather(1, nearest[:, None]).sum() / divisor_of(count),
                "cls": F.binary_cross_entropy(scores, expected, reduction="sum") / divisor_of(count),
            }
            return LossParts(parts, count)
