"""The order in which a training image is made: sources joined and warped, mixed, pasted onto, recoloured, hidden.

A training image is a function of its sources and of the generator, which the caller seeds by (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np

from detector.data.albumentations_chain import AlbumentationsChain
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.colour import degrade, random_hsv
from detector.data.augment.patches import SMALLEST_CROP, crop_to, crop_window, cut_out, paste_objects
from detector.data.augment.warp import (
    Objects,
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
from detector.structures.letterbox import Image, Letterbox

Source: TypeAlias = tuple[Image, Objects]  # an image as it lies on the disk, and its objects in its own pixels
Read: TypeAlias = Callable[[int], Source]  # the source of an index of the data set


class Recipe:
    """Makes training images of one size from the sources of a data set."""

    def __init__(
        self, config: AugmentConfig, canvas_hw: tuple[int, int], channels: int, fit: str, num_sources: int
    ) -> None:
        """A recipe for canvases of height and width `canvas_hw`; `fit` is a mode of `Letterbox`.

        Raises:
            ConfigError: a listed transform cannot be used.
        """
        self._config, self._canvas_hw, self._channels, self._fit = config, canvas_hw, channels, fit
        self._num_sources = num_sources
        self._chain: AlbumentationsChain | None = None
        if config.albumentations:
            self._chain = AlbumentationsChain(config.albumentations, canvas_hw, channels)

    def varied(self, index: int, read: Read, rng: np.random.Generator) -> Source:
        """A training image around source `index`: uint8 (H, W, C) of the canvas's size, with its objects."""
        config = self._config
        image, objects = self._warped(index, read, rng)
        if rng.random() < config.mixup:
            other, other_objects = self._warped(self._partner(rng), read, rng)
            share = rng.beta(32.0, 32.0)  # near one half, so that both images stay visible (Zhang et al. 2019)
            image = np.asarray(cv2.addWeighted(image, share, other, 1 - share, 0), np.uint8).reshape(image.shape)
            objects = Objects.joined([objects, other_objects])
        if config.copy_paste:
            objects = paste_objects(image, objects, *read(self._partner(rng)), config, rng)
        if self._chain is not None:
            image, objects = self._chain(image, objects, int(rng.integers(2**31)))
        image = degrade(random_hsv(image, config, rng), config, rng)
        if config.cutout:
            cut_out(image, objects, config.cutout, rng)
        return image, objects

    def letterboxed(self, index: int, read: Read, rng: np.random.Generator) -> tuple[Image, Objects, Letterbox]:
        """Source `index` as evaluation sees it, mirrored and recoloured at random."""
        image, objects = read(index)
        letterbox = Letterbox.fit((image.shape[0], image.shape[1]), self._canvas_hw, self._fit)
        matrix = letterbox.matrix()
        canvas = letterbox.apply(image)
        height, width = self._canvas_hw
        if rng.random() < self._config.flip_horizontal:
            canvas, matrix = canvas[:, ::-1], translation(width, 0) @ scaling(-1, 1) @ matrix
        if rng.random() < self._config.flip_vertical:
            canvas, matrix = canvas[::-1], translation(0, height) @ scaling(1, -1) @ matrix
        objects = transform_objects(objects, matrix, self._canvas_hw)
        # A letterbox that has nothing to do gives back the source itself, which may be kept for the next epoch.
        own = canvas.copy() if np.shares_memory(canvas, image) else np.ascontiguousarray(canvas)
        return random_hsv(own, self._config, rng), objects, letterbox

    def _partner(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self._num_sources))

    def _warped(self, index: int, read: Read, rng: np.random.Generator) -> Source:
        """One image or a mosaic, each source warped once from its own pixels onto the canvas."""
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
            fitted = Letterbox.fit(sizes[0], self._canvas_hw, self._fit)
            places = [translation(-width / 2, -height / 2) @ fitted.matrix()]
        matrix = random_affine(config, self._canvas_hw, rng)
        if config.perspective:
            matrix = random_perspective(config, self._canvas_hw, rng) @ matrix
        canvas = blank_canvas(self._canvas_hw, self._channels)
        parts = []
        for (image, objects), place in zip(sources, places, strict=True):
            warp_into(canvas, image, matrix @ place)
            parts.append(transform_objects(objects, matrix @ place, self._canvas_hw))
        return canvas, Objects.joined(parts)

    def _cropped(self, image: Image, objects: Objects, rng: np.random.Generator) -> Source:
        if rng.random() >= self._config.crop:
            return image, objects
        window = crop_window(objects, (image.shape[0], image.shape[1]), rng)
        return (image, objects) if window is None else crop_to(image, objects, window)


def greatest_zoom(config: AugmentConfig, canvas_hw: tuple[int, int]) -> float:
    """How much larger than fitted to the canvas a recipe shows any part of a source image, at most."""
    zoom = 1 + config.scale
    if config.shear:  # the norm of [[1, a], [b, 1]] is at most 1 + max(a, b)
        zoom *= 1 + math.tan(math.radians(config.shear))
    if config.perspective:
        # At a point c of the canvas, taken from its middle, a tilt t maps by (1 - t.c) (I - c t'), at most this.
        aspect = canvas_hw[1] / canvas_hw[0]
        zoom *= (1 + config.perspective) * (1 + config.perspective / 2 * (aspect + 1 / aspect))
    return zoom / SMALLEST_CROP if config.crop else zoom
