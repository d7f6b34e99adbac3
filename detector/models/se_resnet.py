"""Residual networks with attention in their blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import build, register
from detector.models.activations import Linear
from detector.models.attention import AttentionConfig, SqueezeExcite
from detector.models.backbones import Backbone, BackboneConfig
from detector.models.blocks import ConvNormAct, Scale


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, attention on their output, and the activated sum with the input.

    Source: He et al. 2015, figure 5 left. If the shape changes, the shortcut is a 1x1 convolution with a norm (option B
    there).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, scale: Scale, attention: AttentionConfig | None
    ) -> None:
        super().__init__()
        linear = Linear.Config()
        # An activation with `expansion` takes that many times the channels from the layer before it.
        wide = out_channels * scale.activation.expansion
        self.first = ConvNormAct(in_channels, out_channels, 3, scale.activation, stride=stride)
        self.second = ConvNormAct(out_channels, wide, 3, linear)
        self.attention = nn.Identity() if attention is None else build(attention, wide)
        is_same = stride == 1 and in_channels == wide
        self.shortcut = nn.Identity() if is_same else ConvNormAct(in_channels, wide, 1, linear, stride=stride)
        self.activation: nn.Module = build(scale.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H / stride, W / stride) of (B, in, H, W)."""
        added: Tensor = self.attention(self.second(self.first(x)))
        y: Tensor = self.activation(self.shortcut(x) + added)
        return y


@register("se_resnet18")
class SEResNet18(Backbone):
    """Backbone of four stages of two residual blocks with squeeze and excitation.

    Sources: He, Zhang, Ren and Sun 2015, "Deep residual learning", table 1 (18 layers) and section 4.2 (small images);
    Hu, Shen, Albanie, Sun and Wu 2017, "Squeeze-and-excitation networks", figure 3 and section 6.

    Attributes:
        out_channels: channels of the last three stages.
        strides: their strides: (8, 16, 32) with the large stem, (2, 4, 8) with the small one.
    """

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        """Shape of the network at width and depth 1.

        Attributes:
            stem: large: 7x7 of stride 2, then a maximum of stride 2; small: 3x3 of stride 1, for images of 32 px.
            channels: channels of each stage; the stem has as many as the first.
            blocks: blocks of each stage.
            attention: attention on the map that a block adds, or null for none, which makes it ResNet-18.
        """

        stem: Literal["large", "small"] = "large"
        channels: tuple[int, int, int, int] = (64, 128, 256, 512)
        blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
        attention: AttentionConfig | None = SqueezeExcite.Config()  # noqa: RUF009 (frozen: shared safely)

        def __post_init__(self) -> None:
            if min(*self.channels, *self.blocks) < 1:
                raise ValueError(
                    f"se_resnet18: expected channels and blocks of at least 1, got {list(self.channels)} and "
                    f"{list(self.blocks)}"
                )

    def __init__(self, config: Config, scale: Scale, image_channels: int) -> None:
        super().__init__()
        widths = [scale.channels(c) for c in config.channels]
        self.has_large_stem = config.stem == "large"
        kernel_size, stride = (7, 2) if self.has_large_stem else (3, 1)
        self.stem = ConvNormAct(image_channels, widths[0], kernel_size, scale.activation, stride=stride)
        stages, narrow = [], widths[0]
        for index, (wide, num_blocks) in enumerate(zip(widths, config.blocks, strict=True)):
            blocks = []
            for number in range(scale.repeats(num_blocks)):
                is_entry = number == 0 and index > 0
                blocks.append(ResidualBlock(narrow, wide, 2 if is_entry else 1, scale, config.attention))
                narrow = wide
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.out_channels = tuple(widths[1:])
        first = 4 if self.has_large_stem else 1
        self.strides = (2 * first, 4 * first, 8 * first)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps of the last three stages of images (B, C, H, W)."""
        x = self.stem(x)
        if self.has_large_stem:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1], maps[2], maps[3]
