"""Necks: feature maps in, feature maps of the same strides with information from all of them out."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import PartConfig, register
from detector.models.blocks import ConvNormAct, CSPStage, Scale


class Neck(nn.Module, abc.ABC):
    """The contract of necks: feature maps in, as many feature maps of the same strides out.

    Attributes:
        out_channels: channels of the returned maps.
    """

    out_channels: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one map for each map given, of the same height and width."""


@dataclass(frozen=True)
class NeckConfig(PartConfig[Neck]):
    """The kind `neck`. A neck is built from its config, a `Scale` and the channels of the maps that it takes."""

    folders = ("models",)


@register("pan")
class PAN(Neck):
    """Path-aggregation neck: top-down, then bottom-up, merged by CSP stages (Liu et al. 2018, section 3.1).

    Attributes:
        out_channels: channels of the returned maps, the same as those of the given maps.
    """

    @dataclass(frozen=True)
    class Config(NeckConfig):
        """Shape of the neck at depth 1.

        Attributes:
            bottlenecks: bottlenecks in each merging stage.
        """

        bottlenecks: int = 3

    def __init__(self, config: Config, scale: Scale, in_channels: tuple[int, ...]) -> None:
        super().__init__()
        act, num = scale.activation, scale.repeats(config.bottlenecks)
        levels = range(len(in_channels) - 1)
        self.down_merges = nn.ModuleList(
            CSPStage(in_channels[i] + in_channels[i + 1], in_channels[i], num, act, shortcut=False) for i in levels
        )
        self.down_samples = nn.ModuleList(ConvNormAct(in_channels[i], in_channels[i], 3, act, stride=2) for i in levels)
        self.up_merges = nn.ModuleList(
            CSPStage(in_channels[i] + in_channels[i + 1], in_channels[i + 1], num, act, shortcut=False) for i in levels
        )
        self.out_channels = in_channels

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return maps of the same shapes for maps of ascending stride, each half the size of the one before."""
        merged = [maps[-1]]
        for fine, merge in zip(reversed(maps[:-1]), reversed(self.down_merges), strict=True):
            coarse = F.interpolate(merged[0], scale_factor=2.0, mode="nearest")
            merged.insert(0, merge(torch.cat([coarse, fine], dim=1)))
        outputs = merged[:1]
        for coarse, down, merge in zip(merged[1:], self.down_samples, self.up_merges, strict=True):
            outputs.append(merge(torch.cat([down(outputs[-1]), coarse], dim=1)))
        return tuple(outputs)
