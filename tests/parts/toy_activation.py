"""Example of an activation: one file in `detector/models/activations/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.config.registry import register
from detector.models.activations.activation import Activation, ActivationConfig


@register("toy")
class Squareplus(Activation):
    """(x + sqrt(x ** 2 + curve)) / 2.

    Derivative: (1 + x / sqrt(x ** 2 + curve)) / 2.
    Source: Barron 2021, "Squareplus: A softplus-like algebraic rectifier", equation 1.
    """

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """Settings of Squareplus.

        Attributes:
            curve: how round the bend at 0 is; 0 gives ReLU.
        """

        curve: float = 4.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.curve = config.curve

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element, any shape."""
        return (x + torch.sqrt(x * x + self.curve)) / 2
