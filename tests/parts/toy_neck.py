"""Example of a neck: one file in `detector/models/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import register
from detector.models.blocks import ConvNormAct, Scale
from detector.models.necks import Neck, NeckConfig


@register("toy")
class TopDownNeck(Neck):
    """Neck that adds each coarse map to the next finer one (Lin et al. 2017, "Feature pyramid networks", section 3).

    Attributes:
        out_channels: channels of the returned maps.
    """

    @dataclass(frozen=True)
    class Config(NeckConfig):
        """Shape of the neck.

        Attributes:
            channels: channels of every returned map at width 1.
        """

        channels: int = 64

    def __init__(self, config: Config, scale: Scale, in_channels: tuple[int, ...]) -> None:
        super().__init__()
        width = scale.channels(config.channels)
        self.laterals = nn.ModuleList(ConvNormAct(channels, width, 1, scale.activation) for channels in in_channels)
        self.out_channels = (width,) * len(in_channels)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return maps of the same sizes for maps of ascending stride."""
        merged: list[Tensor] = []
        for x, lateral in zip(reversed(maps), reversed(self.laterals), strict=True):
            fine: Tensor = lateral(x)
            if merged:
                fine = fine + F.interpolate(merged[0], size=fine.shape[-2:], mode="nearest")
            merged.insert(0, fine)
        return tuple(merged)
