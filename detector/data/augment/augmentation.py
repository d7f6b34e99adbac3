"""The contract of an augmentation: a step that changes a training canvas and the objects on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.config.registry import PartConfig
from detector.structures.letterbox import Image


@dataclass(frozen=True)
class ImageObjects:
    """Boxes of one image with their labels and ignore flags.

    Attributes:
        xyxy: float32 (N, 4), pixels of the image that they belong to: a source image or the canvas.
        labels: int64 (N,), 0-based class indices.
        ignore: bool (N,), true for crowd regions.
    """

    xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]

    def __getitem__(self, keep: npt.NDArray[Any]) -> ImageObjects:
        return ImageObjects(self.xyxy[keep], self.labels[keep], self.ignore[keep])

    @classmethod
    def joined(cls, parts: Sequence[ImageObjects]) -> ImageObjects:
        """Return the objects of several images that share a frame as those of one image."""
        return cls(
            np.concatenate([p.xyxy for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.ignore for p in parts]),
        )


class Augmentation(ABC):
    """Step that changes a training canvas after its sources have been joined, warped and mixed.

    A registered augmentation is constructed from its config alone and is listed in `augment.extra`. It keeps the size
    and the channels of the canvas, moves boxes together with pixels, and takes every random number from the generator
    that it is given, so that a training image stays a function of seed, epoch and index.
    """

    @abstractmethod
    def __call__(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> tuple[Image, ImageObjects]:
        """Return the canvas and its objects after the step.

        Args:
            image: uint8 (H, W, C), RGB when C is 3; the step may change it in place.
            objects: the objects on the canvas; never changed in place.
            rng: the source of every random number.

        Returns:
            The changed canvas, of the same shape and dtype, and the objects that are left on it.
        """


@dataclass(frozen=True)
class AugmentationConfig(PartConfig[Augmentation]):
    """The kind `augmentation`: base class of the settings of every registered augmentation."""

    folders = ("data.augment",)
