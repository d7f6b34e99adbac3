"""Activations by their names in Darknet; those that are not specific to Darknet come from the registry."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import build
from detector.models.activations import (
    ELU,
    GELU,
    ActivationConfig,
    HardMish,
    LeakyReLU,
    Linear,
    Mish,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)

# Darknet's name -> the same function in the registry.
_REGISTERED: dict[str, ActivationConfig] = {
    "linear": Linear.Config(),
    "logistic": Sigmoid.Config(),
    "leaky": LeakyReLU.Config(slope=0.1),
    "relu": ReLU.Config(),
    "relu6": ReLU6.Config(),
    "mish": Mish.Config(),
    "swish": SiLU.Config(),
    "hard_mish": HardMish.Config(),
    "tanh": Tanh.Config(),
    "elu": ELU.Config(),
    "gelu": GELU.Config(approximate="tanh"),
}


def _selu(x: Tensor) -> Tensor:
    return 1.0507 * F.elu(x, 1.6732)  # the same digits as in Darknet


def _loggy(x: Tensor) -> Tensor:
    return 2 * x.sigmoid() - 1


def _relie(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


def _ramp(x: Tensor) -> Tensor:
    return F.relu(x) + 0.1 * x


def _plse(x: Tensor) -> Tensor:
    inside = 0.125 * x + 0.5
    return torch.where(x < -4, 0.01 * (x + 4), torch.where(x > 4, 0.01 * (x - 4) + 1, inside))


def _hardtan(x: Tensor) -> Tensor:
    return F.hardtanh(x)


def _lhtan(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.001 * x, torch.where(x > 1, 0.001 * (x - 1) + 1, x))


def _stair(x: Tensor) -> Tensor:
    whole = x.floor()
    return (x / 2).floor() + torch.where(whole.remainder(2) == 0, 0.0, x - whole)


def _normalize_channels(x: Tensor) -> Tensor:
    parts = F.relu(x)
    return parts / (1e-4 + parts.sum(dim=1, keepdim=True))


def _normalize_channels_softmax(x: Tensor) -> Tensor:
    parts = x.exp()
    return parts / (1e-4 + parts.sum(dim=1, keepdim=True))


def _normalize_channels_softmax_maxval(x: Tensor) -> Tensor:
    return _normalize_channels_softmax(x - x.amax(dim=1, keepdim=True))


_OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "selu": _selu,
    "loggy": _loggy,
    "relie": _relie,
    "ramp": _ramp,
    "plse": _plse,
    "hardtan": _hardtan,
    "lhtan": _lhtan,
    "stair": _stair,
    "normalize_channels": _normalize_channels,
    "normalize_channels_softmax": _normalize_channels_softmax,
    "normalize_channels_softmax_maxval": _normalize_channels_softmax_maxval,
}


class DarknetActivation(nn.Module):
    """Activation that only Darknet has; the `normalize_channels` ones normalise over the channels of each cell."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self._function = name, _OWN[name]

    def extra_repr(self) -> str:
        """Return the name, for `print(model)`."""
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a map (B, C, H, W)."""
        return self._function(x)


def activation_named(name: str) -> nn.Module:
    """Build the activation that a .cfg calls `name`, one of `sections.ACTIVATIONS`."""
    if name in _OWN:
        return DarknetActivation(name)
    return build(_REGISTERED[name])
