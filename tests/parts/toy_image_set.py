"""Example of a reader of a classification data set: one file in `detector/data/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.config.registry import register
from detector.data.classification_split import ImageSet, ImageSetConfig, LabelledImages, fit_all
from detector.errors import DatasetError
from detector.structures.canvas import Canvas

_COLOURS = {"red": (1.0, 0.2, 0.2), "green": (0.2, 1.0, 0.2)}


@register("toy")
class Gradients(ImageSet):
    """Red and green pictures that are brightest at their top, made in memory."""

    @dataclass(frozen=True)
    class Config(ImageSetConfig):
        """Size of the data set.

        Attributes:
            num_images: images of each split.
        """

        num_images: int = 16

    def __init__(self, config: Config) -> None:
        self.config = config

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, `train` and `val`."""
        return ("train", "val")

    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """Return the images of `train` or `val`, fitted to a canvas.

        Raises:
            DatasetError: there is no such split, or the canvas has neither 3 channels nor 1.
        """
        if name not in self.split_names():
            raise DatasetError(f"data: toy: expected the split train or val, got {name!r}; use one of them")
        num, (height, width) = self.config.num_images, canvas.canvas_hw
        rng = np.random.default_rng(self.split_names().index(name))
        labels = np.arange(num, dtype=np.int64) % len(_COLOURS)
        colours = np.array(list(_COLOURS.values()))[labels]
        shades = np.linspace(1.0, 0.3, height)[:, None, None] * rng.uniform(180, 255, (num, 1, 1, 1))
        images = (shades * colours[:, None, None]).repeat(width, axis=2).astype(np.uint8)
        sources = tuple(f"{name}:{index}" for index in range(num))
        return LabelledImages(fit_all(images, canvas), labels, tuple(_COLOURS), sources, origin=f"toy, {name}")
