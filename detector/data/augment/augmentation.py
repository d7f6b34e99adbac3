"""The contract of an augmentation: a step that changes a training canvas and the objects on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from detector.config.registry import PartConfig
from detector.structures.letterbox import Image
from detector.structures.types import ImageObjects


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
