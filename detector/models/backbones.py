"""Backbones: images in, feature maps of several strides out."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import PartConfig, build, register
from detector.errors import ConfigError
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
    """The kind `backbone`. A backbone is built from its config, a `Scale` and the number of image channels.

    A backbone that can return maps of other strides reads `Scale.levels`; the model refuses one that does not.
    """

    folders = ("models",)


_STAGE_STRIDES = (4, 8, 16, 32, 64)
DEFAULT_LEVELS = (8, 16, 32)


def chosen_levels(part: str, levels: tuple[int, ...] | None, known: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of the maps that a backbone returns: those it is asked for, or 8, 16 and 32.

    Args:
        part: name of the backbone, for the message.
        levels: the strides it is asked for, or None.
        known: the strides that it can have, ascending, each twice the one before.

    Raises:
        ConfigError: the strides do not follow each other in `known`.
    """
    if levels is None:
        return DEFAULT_LEVELS
    first = known.index(levels[0]) if levels and levels[0] in known else 0
    if not levels or levels != known[first : first + len(levels)]:
        raise ConfigError(
            f"model.levels: {part}: expected strides that follow each other in {list(known)}, such as [4, 8, 16, 32], "
            f"got {list(levels)}"
        )
    return levels


@register("csp_darknet")
class CSPDarknet(Backbone):
    """Backbone of a stem, CSP stages that each begin with a strided convolution, and spatial pyramid pooling.

    It ends with the stage of the largest stride that it is asked for, four stages by default. A fifth one, for stride
    64, has the channels and bottlenecks of the fourth.

    Attributes:
        out_channels: channels of the returned maps.
        strides: their strides: `Scale.levels`, by default (8, 16, 32).
    """

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        """Shape of the backbone at width and depth 1.

        Attributes:
            channels: channels after the stem and after each of the four stages.
            bottlenecks: bottlenecks in each stage.
            attention: attention at the end of a stage, or null for none.
            attention_strides: strides of the stages that have it, out of 4, 8, 16, 32 and 64.
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
        self.strides = chosen_levels("csp_darknet", scale.levels, _STAGE_STRIDES)
        num_stages = _STAGE_STRIDES.index(self.strides[-1]) + 1
        widths = [scale.channels(c) for c in (*config.channels, config.channels[-1])][: num_stages + 1]
        bottlenecks = (*config.bottlenecks, config.bottlenecks[-1])
        self.stem = ConvNormAct(image_channels, widths[0], 3, activation, stride=2)
        stages = [
            nn.Sequential(
                ConvNormAct(narrow, wide, 3, activation, stride=2),
                CSPStage(wide, wide, scale.repeats(num), activation),
            )
            for narrow, wide, num in zip(widths, widths[1:], bottlenecks, strict=False)
        ]
        if config.attention is not None:
            if max(config.attention_strides) > self.strides[-1]:
                raise ConfigError(
                    f"model.backbone.attention_strides: expected strides of up to {self.strides[-1]}, the largest of "
                    f"model.levels, got {list(config.attention_strides)}; lower them"
                )
            for stage, stride, wide in zip(stages, _STAGE_STRIDES, widths[1:], strict=False):
                if stride in config.attention_strides:
                    stage.append(build(config.attention, wide))
        self.stages = nn.ModuleList(stages)
        self.spp = SPP(widths[-1], widths[-1], activation)
        self.out_channels = tuple(widths[-len(self.strides) :])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of `strides` of images (B, C, H, W), the finest first."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return (*maps[len(maps) - len(self.strides) : -1], self.spp(maps[-1]))
