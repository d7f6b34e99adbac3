"""Example of a backbone: one file in `detector/models/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import build, register
from detector.models.attention import AttentionConfig
from detector.models.backbones import Backbone, BackboneConfig
from detector.models.blocks import ConvNormAct, Scale


@register("toy")
class StridedBackbone(Backbone):
    """Backbone of four 3x3 convolutions of stride 2, which returns the maps of the last two.

    Attributes:
        out_channels: channels of the returned maps.
        strides: their strides, (8, 16).
    """

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        """Shape of the backbone.

        Attributes:
            channels: channels of every map at width 1.
            attention: attention on the first returned map, or null for none.
        """

        channels: int = 64
        attention: AttentionConfig | None = None

    def __init__(self, config: Config, scale: Scale, image_channels: int) -> None:
        super().__init__()
        width, activation = scale.channels(config.channels), scale.activation
        self.stem = nn.Sequential(
            ConvNormAct(image_channels, width, 3, activation, stride=2),
            ConvNormAct(width, width, 3, activation, stride=2),
            ConvNormAct(width, width, 3, activation, stride=2),
        )
        self.attention = nn.Identity() if config.attention is None else build(config.attention, width)
        self.last = ConvNormAct(width, width, 3, activation, stride=2)
        self.out_channels = (width, width)
        self.strides = (8, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of strides 8 and 16 of images (B, C, H, W)."""
        fine: Tensor = self.attention(self.stem(x))
        return fine, self.last(fine)
