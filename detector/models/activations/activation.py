"""What every activation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from detector.config.registry import PartConfig


@dataclass(frozen=True)
class ActivationConfig(PartConfig[Any]):
    """The kind `activation`: a function between convolutions, of each element or of a few channels at one place."""

    folders = ("models.activations",)

    @property
    def expansion(self) -> int:
        """Channels it takes for each channel it gives; the convolution before it has that many times more."""
        return 1


class Activation(nn.Module):
    """An activation without settings; those with settings read them from their config."""

    def __init__(self, config: ActivationConfig) -> None:
        super().__init__()
