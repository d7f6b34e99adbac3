"""Backbones: images in, feature maps of several strides out."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import PartConfig, build, register
from detector.models.attention import AttentionConfig
from detector.models.blocks import SPP, ConvNormAct, CSPStage, Scale


class Backbone(nn.Module, abc.ABC):
    """The contract of backbones: images in, feature maps of ascending stride out.

    Attributes:
        out_channels: channels of the returned maps.
        strides: their strides, image pixels per cell, ascending.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return one feature map for each of `strides`, of images (B, C, H, W) in 0..1."""


@dataclass(frozen=True)
class BackboneConfig(PartConfig[Backbone]):
    """The kind `backbone`. A backbone is built from its config, a `Scale` and the number of image channels."""

    folders = ("models",)


_STAGE_STRIDES = (4, 8, 16, 32)


@register("csp_darknet")
class CSPDarknet(Backbone):
    """Backbone of a stem, four CSP stages that each begin with a strided convolution, and spatial pyramid pooling.

    Attributes:
        out_channels: channels of the returned maps.
        strides: their strides, (8, 16, 32).
    """

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        """Shape of the backbone at width and depth 1.

        Attributes:
            channels: channels after the stem and after each of the four stages.
            bottlenecks: bottlenecks in each stage.
            attention: attention at the end of a stage, or null for none.
            attention_strides: strides of the stages that have it, out of 4, 8, 16 and 32.
        """

        channels: tuple[int, int, int, int, int] = (64, 128, 256, 512, 1024)
        bottlenecks: tuple[int, int, int, int] = (3, 6, 6, 3)
        attention: AttentionConfig | None = None
        attention_strides: tuple[int, ...] = (32,)

        def __post_init__(self) -> None:
            if not self.attention_strides or not set(self.attention_strides) <= set(_STAGE_STRIDES):
                raise ValueError(
                    f"csp_darknet: expected attention_strides out of {_STAGE_STRIDES}, got {self.attention_strides}; "
                    "set attention: null to switch attention off"
                )

    def __init__(self, config: Config, scale: Scale, image_channels: int) -> None:
        super().__init__()
        activation = scale.activation
        widths = [scale.channels(c) for c in config.channels]
        self.stem = ConvNormAct(image_channels, widths[0], 3, activation, stride=2)
        stages = [
            nn.Sequential(
                ConvNormAct(narrow, wide, 3, activation, stride=2),
                CSPStage(wide, wide, scale.repeats(num), activation),
            )
            for narrow, wide, num in zip(widths, widths[1:], config.bottlenecks, strict=False)
        ]
        if config.attention is not None:
            for stage, stride, wide in zip(stages, _STAGE_STRIDES, widths[1:], strict=True):
                if stride in config.attention_strides:
                    stage.append(build(config.attention, wide))
        self.stages = nn.ModuleList(stages)
        self.spp = SPP(widths[-1], widths[-1], activation)
        self.out_channels = (widths[2], widths[3], widths[4])
        self.strides = (8, 16, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps of strides 8, 16 and 32 of images (B, C, H, W)."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1], maps[2], self.spp(maps[3])
