"""What every loss is: a configuration of the kind `loss`, and named parts with the number they are a mean over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detector.config.registry import PartConfig


@dataclass(frozen=True)
class LossConfig(PartConfig[Any]):
    """The kind `loss`. A loss is built from its config and the model; it maps raw maps and targets to `LossParts`."""

    folders = ("losses",)


class LossParts(dict[str, Tensor]):
    """The weighted parts of a loss by name, each a scalar float32; their sum is what training minimises.

    Attributes:
        count: what the parts are a mean over, a scalar float32 of at least 1: the batches of one step, in one process
            or in several, are averaged by it, so that their step is that of one batch.
    """

    def __init__(self, parts: Mapping[str, Tensor], count: Tensor) -> None:
        super().__init__(parts)
        self.count = count
