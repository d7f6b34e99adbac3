"""Plain stack of convolutions without shortcuts, whose depth makes training hard: a network to compare activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from detector.config.registry import register
from detector.models.backbones import Backbone, BackboneConfig
from detector.models.blocks import ConvNormAct, Scale

_NUM_STAGES = 3


@register("plain")
class Plain(Backbone):
    """Backbone of 3x3 convolutions, each with its activation, in three stages; nothing bypasses a layer.

    The plain networks of He et al. 2015, "Deep residual learning", section 4.2, with or without batch norm. Weights are
    drawn from N(0, 2 / inputs) and biases are 0 (He et al. 2015, "Delving deep into rectifiers", equation 10) for every
    activation, so that compared networks start from the same weights instead of a gain per activation.

    Attributes:
        out_channels: channels of the maps at the end of each stage.
        strides: their strides: `stride`, twice and four times it.
    """

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        """Shape of the stack at width 1.

        Attributes:
            layers: convolutions, 10 to 40 for a study of depth; `depth` of the model does not scale them.
            channels: channels of each stage.
            stride: stride of the first stage's maps: 1, 2, 4 or 8.
            norm: the norm between a convolution and its activation: batch or none.
        """

        layers: int = 20
        channels: tuple[int, int, int] = (64, 128, 256)
        stride: int = 8
        norm: Literal["batch", "none"] = "batch"

        def __post_init__(self) -> None:
            if self.stride not in (1, 2, 4, 8):
                raise ValueError(f"plain: expected a stride of 1, 2, 4 or 8, got {self.stride}")
            # The first stage, which takes the remaining layers, halves the map once in a layer.
            fewest = max(_NUM_STAGES + 2, _NUM_STAGES * (self.stride.bit_length() - 2) + 1)
            if self.layers < fewest:
                raise ValueError(
                    f"plain: expected at least {fewest} layers for a stride of {self.stride}, got {self.layers}"
                )
            if min(self.channels) < 1:
                raise ValueError(f"plain: expected channels of at least 1, got {list(self.channels)}")

    def __init__(self, config: Config, scale: Scale, image_channels: int) -> None:
        super().__init__()
        widths = [scale.channels(c) for c in config.channels]
        narrow, num_strided = image_channels, config.stride.bit_length() - 1
        stages = []
        for index, wide in enumerate(widths):
            # The first stages take the remaining layers.
            num_layers = (config.layers + _NUM_STAGES - 1 - index) // _NUM_STAGES
            strides = [2] * (num_strided if index == 0 else 1)
            strides += [1] * (num_layers - len(strides))
            stages.append(
                nn.Sequential(
                    *(
                        ConvNormAct(
                            narrow if number == 0 else wide,
                            wide,
                            3,
                            scale.activation,
                            stride=stride,
                            norm=config.norm == "batch",
                        )
                        for number, stride in enumerate(strides)
                    )
                )
            )
            narrow = wide
        self.stages = nn.ModuleList(stages)
        self.out_channels = tuple(widths)
        self.strides = tuple(config.stride * factor for factor in (1, 2, 4))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps at the end of each stage of images (B, C, H, W)."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)
