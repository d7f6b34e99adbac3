"""The contract of activations and their kind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import PartConfig


@dataclass(frozen=True)
class ActivationConfig(PartConfig["Activation"]):
    """The kind `activation`: a function between convolutions, of each element or of a few channels at one place."""

    folders = ("models.activations",)

    @property
    def expansion(self) -> int:
        """Channels it takes for each channel it gives; the convolution before it has that many times more."""
        return 1


class Activation(nn.Module):
    """Base class of activations; one with settings reads them from its config.

    It is no abstract class: `ConvNormAct` asks for its type in every forward pass, and `isinstance` is slower on those.
    """

    def __init__(self, config: ActivationConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of a tensor of any shape (C channels of `expansion` * C where that is not 1)."""
        raise NotImplementedError
