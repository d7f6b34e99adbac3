"""Example of an augmentation: one file in `detector/data/augment/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detector.config.registry import register
from detector.data.augment.augmentation import Augmentation, AugmentationConfig
from detector.structures.letterbox import Image
from detector.structures.types import ImageObjects


@register("toy")
class HalfTurn(Augmentation):
    """Half turn of the canvas, at random."""

    @dataclass(frozen=True)
    class Config(AugmentationConfig):
        """Settings of the half turn.

        Attributes:
            probability: share of the canvases that are turned.
        """

        probability: float = 0.5

        def __post_init__(self) -> None:
            if not 0 <= self.probability <= 1:
                raise ValueError(f"toy: expected a probability within 0..1, got {self.probability}")

    def __init__(self, config: Config) -> None:
        self._probability = config.probability

    def __call__(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> tuple[Image, ImageObjects]:
        """Return the canvas and its objects after the step, as `Augmentation` says."""
        if rng.random() >= self._probability:
            return image, objects
        height, width = image.shape[:2]
        opposite = np.array([width, height, width, height], np.float32) - objects.xyxy
        turned = np.ascontiguousarray(image[::-1, ::-1])
        return turned, replace(objects, xyxy=opposite[:, [2, 3, 0, 1]])
