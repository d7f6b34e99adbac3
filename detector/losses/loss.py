"""The contract of losses, their kinds, and the named parts that a loss returns."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from detector.config.registry import PartConfig
from detector.structures.types import ImageClasses, Targets

Outputs = TypeVar("Outputs", contravariant=True)
GroundTruth = TypeVar("GroundTruth", contravariant=True)


class LossParts(dict[str, Tensor]):
    """Weighted parts of a loss by name, each a scalar float32; training minimises their sum.

    Attributes:
        count: the number that the parts are a mean over, a scalar float32 of at least 0; below 1, the parts are sums.
            The batches of one step, in one process or in several, are averaged with it as weight, so that they give
            the same step as one batch.
    """

    def __init__(self, parts: Mapping[str, Tensor], count: Tensor) -> None:
        super().__init__(parts)
        self.count = count

    def total(self) -> Tensor:
        """Return the sum of the parts, a scalar."""
        return torch.stack(list(self.values())).sum()

    def total_of_batch(self) -> Tensor:
        """Return the same not as a mean but as a sum over the batch, which can be added to that of other batches."""
        return self.total() * divisor_of(self.count)


def divisor_of(count: Tensor) -> Tensor:
    """Return the divisor of sums over a count, at least 1, so that a step with few objects is not enlarged."""
    return count.clamp(min=1.0)


class Loss(abc.ABC, Generic[Outputs, GroundTruth]):
    """The contract of losses: a model's outputs and the ground truth of a batch in, weighted parts out."""

    @abc.abstractmethod
    def __call__(self, outputs: Outputs, targets: GroundTruth, /) -> LossParts:
        """Return the weighted parts, each a scalar float32; training minimises their sum."""

    def set_progress(self, progress: float) -> None:
        """Take note of the share of the run that is done, 0..1, before each step; most losses ignore it."""


@dataclass(frozen=True)
class LossConfig(PartConfig[Loss[tuple[Tensor, ...], Targets]]):
    """The kind `loss`, for detection. A loss is built from its config and the model."""

    folders = ("losses",)


@dataclass(frozen=True)
class ClassificationLossConfig(PartConfig[Loss[Tensor, ImageClasses]]):
    """The kind `classification loss`. A loss is built from its config and the model."""

    folders = ("losses",)
