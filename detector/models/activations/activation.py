"""The contract of activations and their kind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import PartConfig


@dataclass(frozen=True)
class ActivationConfig(PartConfig["Activation"]):
    """The kind `activation`: a function of each element, or of a few channels at one place, between convolutions."""

    folders = ("models.activations",)

    @property
    def expansion(self) -> int:
        """Input channels for each output channel; the convolution before it has that many times as many outputs."""
        return 1


class Activation(nn.Module):
    """Base class of activations; one with settings reads them from its config.

    It is not an abstract class because `ConvNormAct` checks its type in every forward pass, and `isinstance` is slower
    for abstract classes.
    """

    def __init__(self, config: ActivationConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated tensor: any shape to the same; with `expansion` > 1, `expansion` * C channels to C."""
        raise NotImplementedError
