"""Attention modules: each weights the channels or places of a feature map by the map itself and keeps its shape."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import PartConfig, register
from detector.models.activations import Sigmoid
from detector.models.blocks import ConvNormAct


class Attention(nn.Module, abc.ABC):
    """The contract of attention modules: a feature map in, a reweighted feature map of the same shape out."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (B, C, H, W) to the same shape."""


@dataclass(frozen=True)
class AttentionConfig(PartConfig[Attention]):
    """The kind `attention`. An attention is built from its config and the number of channels of its feature map."""

    folders = ("models",)


@register("squeeze_excite")
class SqueezeExcite(Attention):
    """Attention over channels: x * sigmoid(W2 relu(W1 mean(x))), the mean over all places.

    Source: Hu, Shen, Albanie, Sun and Wu 2017, "Squeeze-and-excitation networks", equations 2 to 4.
    """

    @dataclass(frozen=True)
    class Config(AttentionConfig):
        """Settings of squeeze and excitation.

        Attributes:
            reduction: factor by which the channels between the two layers are reduced, to 8 at least.
        """

        reduction: int = 16

        def __post_init__(self) -> None:
            if self.reduction < 1:
                raise ValueError(f"squeeze_excite: expected a reduction of at least 1, got {self.reduction}")

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // config.reduction)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (B, C, H, W) to the same shape."""
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


@register("spatial_attention")
class SpatialAttention(Attention):
    """Attention over every channel at every place: x * sigmoid(norm(W x)).

    The point-wise form of the spatial attention module: nothing is pooled.
    Source: Bochkovskiy, Wang and Liao 2020, "YOLOv4", section 3.4 and figure 5; Darknet's `[sam]`. It modifies Woo,
    Park, Lee and Kweon 2018, "CBAM", section 3.
    """

    @dataclass(frozen=True)
    class Config(AttentionConfig):
        """Spatial attention has no settings."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.gate = ConvNormAct(channels, channels, 1, Sigmoid.Config())

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (B, C, H, W) to the same shape."""
        weights: Tensor = self.gate(x)
        return x * weights


@register("self_attention")
class SelfAttention(Attention):
    """Attention that adds a weighted mean over all places to each: x + gamma * v(sum_i beta_i h(x_i)).

    With 1x1 convolutions f, g, h to C / 8 channels and v back to C, beta_i = softmax over i of f(x_i) . g(x). gamma is
    learned and starts at 0, so that an untrained module is the identity. Its time grows with the square of the number
    of places, so it suits maps of stride 32.
    Source: Zhang, Goodfellow, Metaxas and Odena 2018, "Self-attention generative adversarial networks", equations 1 to
    3.
    """

    @dataclass(frozen=True)
    class Config(AttentionConfig):
        """Settings of self-attention.

        Attributes:
            reduction: factor by which the channels of the three projections are reduced, to 8 at least.
        """

        reduction: int = 8

        def __post_init__(self) -> None:
            if self.reduction < 1:
                raise ValueError(f"self_attention: expected a reduction of at least 1, got {self.reduction}")

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.hidden = max(8, channels // config.reduction)
        self.project = nn.Conv2d(channels, 3 * self.hidden, 1, bias=False)  # f, g and h
        self.restore = nn.Conv2d(self.hidden, channels, 1, bias=False)  # v
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (B, C, H, W) to the same shape."""
        # One head, (B, 1, H * W, hidden) each: in this shape no square matrix over all places is kept in memory.
        places = self.project(x).flatten(2).transpose(1, 2).unsqueeze(1)
        keys, queries, values = (part.contiguous() for part in places.split(self.hidden, dim=3))
        means = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)  # the source does not scale
        means = means.squeeze(1).transpose(1, 2).reshape(x.shape[0], self.hidden, *x.shape[2:])
        added: Tensor = self.gamma.to(x.dtype) * self.restore(means)
        return x + added
