"""Activations that saturate on at least one side and are monotonic: sigmoid, tanh, softsign, softplus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config.registry import register
from detector.models.activations.activation import Activation, ActivationConfig

# Above it softplus(x) is x. torch's default of 20 has an error of 2e-9 there; exp(40) still fits every format that is
# used for it, and exp(-40) = 4e-18 is below the resolution of float64.
_SOFTPLUS_THRESHOLD = 40.0


@register("sigmoid")
class Sigmoid(Activation):
    """1 / (1 + exp(-x)).

    Derivative: sigmoid(x) * (1 - sigmoid(x)).
    Source: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", equation 2.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """The sigmoid has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return torch.sigmoid(x)


@register("tanh")
class Tanh(Activation):
    """tanh(x).

    Derivative: 1 - tanh(x) ** 2.
    Source: LeCun, Bottou, Orr and Müller 1998, "Efficient BackProp", section 4.4.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """The hyperbolic tangent has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return torch.tanh(x)


@register("softsign")
class Softsign(Activation):
    """x / (1 + abs(x)).

    Derivative: 1 / (1 + abs(x)) ** 2.
    Source: Bergstra, Desjardins, Lamblin and Bengio 2009, "Quadratic polynomials learn better image features".
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Softsign has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.softsign(x)


@register("softplus")
class Softplus(Activation):
    """log(1 + exp(x)).

    Derivative: sigmoid(x).
    Source: Dugas, Bengio, Bélisle, Nadeau and Garcia 2000, "Incorporating second-order functional knowledge for better
    option pricing".
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Softplus has no settings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return F.softplus(x, threshold=_SOFTPLUS_THRESHOLD)
