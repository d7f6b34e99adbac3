"""Example of a whole network for detection: one file in `detector/models/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detector.config.registry import build, register
from detector.models.activations import ActivationConfig, Mish
from detector.models.contracts import DetectionModel, ModelConfig

_STRIDE = 8  # canvas pixels per cell


@register("toy")
class PatchDetector(DetectionModel):
    """Network of one hidden layer that predicts one box in each patch of 8 x 8 pixels from that patch alone."""

    @dataclass(frozen=True)
    class Config(ModelConfig):
        """Size of the network.

        Attributes:
            channels: channels of the hidden layer.
            activation: the non-linearity.
        """

        channels: int = 16
        activation: ActivationConfig = Mish.Config()  # noqa: RUF009 (frozen: shared safely)

        def experiment_defaults(self) -> dict[str, Any]:
            """Return the loss that trains the network."""
            return {"loss": {"name": "toy"}}

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        super().__init__()
        self.num_classes, self.image_channels, self.max_stride = num_classes, image_channels, _STRIDE
        hidden = config.channels * config.activation.expansion
        self.patches = nn.Conv2d(image_channels, hidden, _STRIDE, stride=_STRIDE)
        self.activation = build(config.activation)
        self.out = nn.Conv2d(config.channels, 4 + num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one raw map (B, 4 + classes, H / 8, W / 8) of images (B, C, H, W)."""
        return (self.out(self.activation(self.patches(self.in_unit_range(images)))),)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        (raw,) = raw_maps
        y, x = torch.meshgrid(*(torch.arange(side, device=raw.device) + 0.5 for side in raw.shape[-2:]), indexing="ij")
        centres = torch.stack([x, y], dim=2).flatten(0, 1)
        cells = raw.float().flatten(2).transpose(1, 2)
        shifts, sizes = cells[..., :2].tanh(), cells[..., 2:4].exp()
        corners = [centres + shifts - sizes / 2, centres + shifts + sizes / 2]
        return torch.cat(corners, dim=-1) * _STRIDE, cells[..., 4:].sigmoid()
