"""Piecewise activations that are linear above zero, and the identity."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import register
from detector.models.activations.activation import Activation, ActivationConfig


@register("linear")
class Linear(Activation):
    """x.

    Derivative: 1.
    Source: none, the identity.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """The identity has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor itself."""
        return x


@register("relu")
class ReLU(Activation):
    """max(x, 0).

    Derivative: 1 if x > 0 else 0.
    Source: Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines", section 2.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """ReLU has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.relu(x)


@register("relu6")
class ReLU6(Activation):
    """min(max(x, 0), 6).

    Derivative: 1 if 0 < x < 6 else 0.
    Source: Krizhevsky 2010, "Convolutional deep belief networks on CIFAR-10".
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """ReLU6 has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.relu6(x)


@register("leaky")
class LeakyReLU(Activation):
    """x if x > 0 else slope * x.

    Derivative: 1 if x > 0 else slope.
    Source: Maas, Hannun and Ng 2013, "Rectifier nonlinearities improve neural network acoustic models", section 2.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of the leaky rectifier.

        Attributes:
            slope: the factor below zero; 0.1 is Darknet's.
        """

        slope: float = 0.1

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.slope = config.slope

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.leaky_relu(x, self.slope)


@register("prelu")
class PReLU(Activation):
    """x if x > 0 else slope * x.

    Derivative: 1 if x > 0 else slope.
    The slope is learned, one for each layer: the channel-shared variant of the source. As in the source, it has no
    weight decay.
    Source: He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", equation 1.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of the learned rectifier.

        Attributes:
            slope: the factor below zero at the start; 0.25 is the source's.
        """

        slope: float = 0.25

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.slope = nn.Parameter(torch.tensor([config.slope]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.prelu(x, self.slope.to(x.dtype))  # the parameter is float32 under autocast, prelu does not promote


@register("elu")
class ELU(Activation):
    """x if x > 0 else alpha * (exp(x) - 1).

    Derivative: 1 if x > 0 else alpha * exp(x).
    Source: Clevert, Unterthiner and Hochreiter 2015, "Fast and accurate deep network learning by exponential linear
    units", section 3.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of the exponential linear unit.

        Attributes:
            alpha: minus the limit below zero; at 1 the slope is continuous.
        """

        alpha: float = 1.0

        def __post_init__(self) -> None:
            if self.alpha <= 0:
                raise ValueError(f"elu: expected alpha > 0, got {self.alpha}")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.alpha = config.alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.elu(x, self.alpha)


@register("selu")
class SELU(Activation):
    """1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (exp(x) - 1)).

    Derivative: 1.0507009873554805 * (1 if x > 0 else 1.6732632423543772 * exp(x)).
    The two constants keep mean 0 and variance 1 from layer to layer.
    Source: Klambauer, Unterthiner, Mayr and Hochreiter 2017, "Self-normalizing neural networks", equation 2.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """SELU has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.selu(x)


@register("maxout")
class Maxout(Activation):
    """max(pieces).

    Derivative: 1 for the largest piece, 0 for the others; equal ones share.
    Each output channel is the maximum of `pieces` channels from the convolution before it, which therefore costs
    `pieces` times as much. Of C channels out, channel c is the maximum of the channels c, C + c, 2 C + c, ...
    Source: Goodfellow, Warde-Farley, Mirza, Courville and Bengio 2013, "Maxout networks", section 3.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of maxout.

        Attributes:
            pieces: input channels for each output channel.
        """

        pieces: int = 2

        def __post_init__(self) -> None:
            if self.pieces < 2:
                raise ValueError(f"maxout: expected at least 2 pieces, got {self.pieces}")

        @property
        def expansion(self) -> int:
            """Input channels for each output channel."""
            return self.pieces

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pieces = config.pieces

    def forward(self, x: Tensor) -> Tensor:
        """Return the maximum of each output channel's pieces: (B, pieces * C, ...) to (B, C, ...)."""
        return functools.reduce(torch.maximum, x.chunk(self.pieces, dim=1))
