"""The recipe of a training image: sources are joined and warped, mixed, pasted onto, and the canvas is then varied.

A training image is a function of its sources and of the generator, which the caller seeds by (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from detector.config import registry
from detector.data.albumentations_chain import AlbumentationsChain
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmentation import Augmentation
from detector.data.augment.colour import ColourShift, Degradation, random_hsv
from detector.data.augment.patches import SMALLEST_CROP, CutOut, crop_to, crop_window, paste_objects, tile_window
from detector.data.augment.warp import (
    blank_canvas,
    mosaic_places,
    nine_places,
    random_affine,
    random_perspective,
    scaling,
    transform_objects,
    translation,
    warp_into,
)
from detector.errors import ConfigError
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Image, Letterbox
from detector.structures.types import ImageObjects

Source: TypeAlias = tuple[Image, ImageObjects]  # an image at full size, and its objects in pixels of that image
Read: TypeAlias = Callable[[int], Source]  # returns the source at an index of the data set


def _canvas_steps(config: AugmentConfig, canvas: Canvas) -> tuple[Augmentation, ...]:
    """Return the steps that act on a joined canvas, in order."""
    listed = config.albumentations
    return (
        *([AlbumentationsChain(listed, canvas.canvas_hw, canvas.channels)] if listed else []),
        *(registry.build(extra) for extra in config.extra),
        ColourShift(config),
        Degradation(config),
        *([CutOut(config.cutout)] if config.cutout else []),
    )


class AugmentationRecipe:
    """Recipe of training images: it makes them on one canvas from the sources of a data set."""

    def __init__(
        self,
        config: AugmentConfig,
        canvas: Canvas,
        num_sources: int,
        factors: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Prepare the steps.

        Args:
            config: which steps act, and how much.
            canvas: the canvas of every image.
            num_sources: number of images in the data set, from which partners are drawn.
            factors: float64 (N,), the repeat factor of each image, in proportion to which it is drawn as a partner;
                None draws all images alike.

        Raises:
            ConfigError: a listed transform cannot be used.
        """
        self._config, self._canvas, self._canvas_hw = config, canvas, canvas.canvas_hw
        self._num_sources = num_sources
        self._upper = None if factors is None else np.cumsum(factors)
        self._steps = _canvas_steps(config, canvas)

    def varied(self, index: int, read: Read, rng: np.random.Generator) -> Source:
        """Return a training image around source `index`: uint8 (H, W, C) of the size of the canvas, and its objects.

        Raises:
            ConfigError: a step changes the shape or the dtype of the canvas.
        """
        config, read = self._config, self._in_tiles(read, rng)
        image, objects = self._warped(index, read, rng)
        if rng.random() < config.mixup:
            other, other_objects = self._warped(self._partner(rng), read, rng)
            share = rng.beta(32.0, 32.0)  # near one half, so that both images stay visible (Zhang et al. 2019)
            image = np.asarray(cv2.addWeighted(image, share, other, 1 - share, 0), np.uint8).reshape(image.shape)
            objects = ImageObjects.joined([objects, other_objects])
        if config.copy_paste:
            objects = paste_objects(image, objects, *read(self._partner(rng)), config, rng)
        for step in self._steps:
            shape = image.shape
            image, objects = step(image, objects, rng)
            if image.shape != shape or image.dtype != np.uint8:
                raise ConfigError(
                    f"augment: {type(step).__qualname__} turns a canvas of uint8 {shape} into {image.dtype} "
                    f"{image.shape}; expected an augmentation that keeps shape and dtype, remove it"
                )
        return image, objects

    def letterboxed(self, index: int, read: Read, rng: np.random.Generator) -> tuple[Image, ImageObjects, Letterbox]:
        """Return source `index`, or a tile of it, fitted as in evaluation, then mirrored and recoloured at random."""
        image, objects = self._in_tiles(read, rng)(index)
        letterbox = Letterbox.fit((image.shape[0], image.shape[1]), self._canvas_hw, self._canvas.fit)
        matrix = letterbox.matrix()
        canvas = letterbox.apply(image)
        height, width = self._canvas_hw
        if rng.random() < self._config.flip_horizontal:
            canvas, matrix = canvas[:, ::-1], translation(width, 0) @ scaling(-1, 1) @ matrix
        if rng.random() < self._config.flip_vertical:
            canvas, matrix = canvas[::-1], translation(0, height) @ scaling(1, -1) @ matrix
        objects = transform_objects(objects, matrix, self._canvas_hw)
        # A letterbox that has nothing to do returns the source itself, which may be cached for the next epoch.
        own = canvas.copy() if np.shares_memory(canvas, image) else np.ascontiguousarray(canvas)
        return random_hsv(own, self._config, rng), objects, letterbox

    def _in_tiles(self, read: Read, rng: np.random.Generator) -> Read:
        """Return a function that reads a random tile of a source, if the recipe shows tiles, else `read` itself."""
        tile = self._config.tile
        if tile is None:
            return read

        def read_tile(index: int) -> Source:
            image, objects = read(index)
            image_hw = (image.shape[0], image.shape[1])
            if max(image_hw) <= tile:  # one view in prediction, too
                return image, objects
            return crop_to(image, objects, tile_window(objects, image_hw, tile, rng))

        return read_tile

    def _partner(self, rng: np.random.Generator) -> int:
        if self._upper is None:
            return int(rng.integers(self._num_sources))
        place = int(np.searchsorted(self._upper, rng.random() * self._upper[-1], side="right"))
        return min(place, self._num_sources - 1)  # the product may round up to the last bound

    def _warped(self, index: int, read: Read, rng: np.random.Generator) -> Source:
        """Return one image or a mosaic, each source warped once from its own pixels onto the canvas."""
        config, (height, width) = self._config, self._canvas_hw
        is_mosaic = rng.random() < config.mosaic
        is_of_nine = is_mosaic and bool(config.mosaic_nine) and rng.random() < config.mosaic_nine
        num_partners = (8 if is_of_nine else 3) if is_mosaic else 0
        sources = [read(i) for i in [index, *(self._partner(rng) for _ in range(num_partners))]]
        if config.crop:
            sources = [self._cropped(image, objects, rng) for image, objects in sources]
        sizes = [(image.shape[0], image.shape[1]) for image, _ in sources]
        if is_mosaic:
            places = (nine_places if is_of_nine else mosaic_places)(sizes, self._canvas_hw, rng)
        else:
            fitted = Letterbox.fit(sizes[0], self._canvas_hw, self._canvas.fit)
            places = [translation(-width / 2, -height / 2) @ fitted.matrix()]
        matrix = random_affine(config, self._canvas_hw, rng)
        if config.perspective:
            matrix = random_perspective(config, self._canvas_hw, rng) @ matrix
        canvas = blank_canvas(self._canvas_hw, self._canvas.channels)
        parts = []
        for (image, objects), place in zip(sources, places, strict=True):
            warp_into(canvas, image, matrix @ place)
            parts.append(transform_objects(objects, matrix @ place, self._canvas_hw))
        return canvas, ImageObjects.joined(parts)

    def _cropped(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> Source:
        if rng.random() >= self._config.crop:
            return image, objects
        window = crop_window(objects, (image.shape[0], image.shape[1]), rng)
        return (image, objects) if window is None else crop_to(image, objects, window)


def greatest_zoom(config: AugmentConfig, canvas_hw: tuple[int, int]) -> float:
    """Return the greatest scale at which a recipe shows a part of a source, relative to its size when fitted.

    It is infinite for tiles, which show every source at the same scale, however large it is.
    """
    if config.tile is not None:
        return math.inf
    zoom = 1 + config.scale
    if config.shear:  # the norm of [[1, a], [b, 1]] is at most 1 + max(a, b)
        zoom *= 1 + math.tan(math.radians(config.shear))
    if config.perspective:
        # The derivative of a tilt t at a point c, measured from the centre of the canvas, is (1 - t.c) (I - c t').
        aspect = canvas_hw[1] / canvas_hw[0]
        zoom *= (1 + config.perspective) * (1 + config.perspective / 2 * (aspect + 1 / aspect))
    return zoom / SMALLEST_CROP if config.crop else zoom
