"""Activations of the form x times a gate that opens from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import register
from detector.models.activations.activation import Activation, ActivationConfig
from detector.ops.mish import mish


@register("mish")
class Mish(Activation):
    """x * tanh(softplus(x)).

    Derivative: tanh(softplus(x)) + x * sigmoid(x) * (1 - tanh(softplus(x)) ** 2).
    Its minimum is -0.30884 at x = -1.19243.
    Source: Misra 2019, "Mish: A self regularized non-monotonic activation function", equation 1.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Mish has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return mish(x)


@register("hard_mish")
class HardMish(Activation):
    """x if x > 0 else x ** 2 / 2 + x if x > -2 else 0.

    Derivative: 1 if x > 0 else x + 1 if x > -2 else 0.
    Its minimum is -0.50000 at x = -1.00000.
    Source: Misra's H-Mish, x / 2 * min(2, max(0, x + 2)); Darknet's `hard_mish`.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Hard Mish has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        # The factor is bounded so that -inf gives 0; hardtanh has slope 0 at both of its ends, like the formula.
        return x.clamp(min=-2) * F.hardtanh(x / 2 + 1, 0, 1)


@register("silu")
class SiLU(Activation):
    """x * sigmoid(x).

    Derivative: sigmoid(x) * (1 + x * (1 - sigmoid(x))).
    Its minimum is -0.27846 at x = -1.27846.
    Source: Elfwing, Uchibe and Doya 2017, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", equation 5.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """SiLU has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.silu(x)


@register("swish")
class Swish(Activation):
    """x * sigmoid(beta * x).

    Derivative: sigmoid(beta * x) * (1 + beta * x * (1 - sigmoid(beta * x))).
    Its minimum is -0.27846 / beta at x = -1.27846 / beta; with beta it goes from x / 2 at 0 towards max(x, 0).
    Source: Ramachandran, Zoph and Le 2017, "Searching for activation functions", section 4.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of Swish.

        Attributes:
            beta: sharpness of the gate; 1 is SiLU.
            learned: whether each layer learns its own beta, starting from this value.
        """

        beta: float = 1.0
        learned: bool = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.beta = nn.Parameter(torch.tensor([config.beta])) if config.learned else config.beta

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        if isinstance(self.beta, Tensor):
            return x * torch.sigmoid(
                self.beta.to(x.dtype) * x
            )  # otherwise the parameter makes it float32 under autocast
        return F.silu(x) if self.beta == 1 else x * torch.sigmoid(self.beta * x)


@register("hard_swish")
class HardSwish(Activation):
    """x * min(max(x + 3, 0), 6) / 6.

    Derivative: 0 if x <= -3 else 1 if x >= 3 else x / 3 + 0.5.
    Its minimum is -0.37500 at x = -1.50000.
    Source: Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Hard Swish has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.hardswish(x)


@register("gelu")
class GELU(Activation):
    """x * (1 + erf(x / sqrt(2))) / 2.

    Derivative: (1 + erf(x / sqrt(2))) / 2 + x * exp(-x ** 2 / 2) / sqrt(2 * pi).
    Its minimum is -0.16997 at x = -0.75179.
    Source: Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of GELU.

        Attributes:
            approximate: `none`, or `tanh` for x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))), the source's
                approximation, which Darknet calls gelu.
        """

        approximate: Literal["none", "tanh"] = "none"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.approximate = config.approximate

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.gelu(x, approximate=self.approximate)
