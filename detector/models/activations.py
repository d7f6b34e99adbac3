"""Activations by name: the one config key that changes the non-linearity of a whole network."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops.mish import mish
from detector.registry import PartConfig, register


@dataclass(frozen=True)
class ActivationConfig(PartConfig):
    """The kind `activation`: an element-wise function between convolutions."""


@register("mish")
class Mish(nn.Module):
    """x * tanh(softplus(x)) (Misra 2019, equation 1)."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Mish has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, any shape."""
        return mish(x)


@register("silu")
class SiLU(nn.Module):
    """x * sigmoid(x) (Elfwing, Uchibe and Doya 2017, equation 5)."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """SiLU has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, any shape."""
        return F.silu(x)


@register("relu")
class ReLU(nn.Module):
    """max(x, 0)."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """ReLU has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, any shape."""
        return F.relu(x)


@register("leaky")
class LeakyReLU(nn.Module):
    """max(x, slope * x)."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of the leaky rectifier.

        Attributes:
            slope: the factor below zero; 0.1 is Darknet's.
        """

        slope: float = 0.1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.slope = config.slope

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, any shape."""
        return F.leaky_relu(x, self.slope)


@register("linear")
class Linear(nn.Module):
    """The identity."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """The identity has no settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """The tensor itself."""
        return x
