"""Example of an attention: one file in `detector/models/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from detector.config.registry import register
from detector.models.attention import Attention, AttentionConfig


@register("toy")
class MeanAttention(Attention):
    """Attention over places without parameters: x * sigmoid(mean of x over channels)."""

    @dataclass(frozen=True)
    class Config(AttentionConfig):
        """No settings."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted map: (B, C, H, W) to the same shape."""
        return x * x.mean(dim=1, keepdim=True).sigmoid()
