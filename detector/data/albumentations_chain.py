"""Chain of listed transforms of albumentations; the only module that imports the library."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeGuard

import cv2
import numpy as np

from detector.config.name_suggestions import nearest
from detector.data.augment.augmentation import Augmentation
from detector.data.augment.warp import blank_canvas
from detector.errors import ConfigError
from detector.structures.letterbox import Image
from detector.structures.types import ImageObjects

_Transform: TypeAlias = "Callable[..., Mapping[str, Image]]"


class AlbumentationsChain(Augmentation):
    """Transforms of albumentations, built once and seeded before each call."""

    def __init__(
        self, specifications: Sequence[Mapping[str, object]], canvas_hw: tuple[int, int], channels: int
    ) -> None:
        """Build the chain and try each transform on a canvas of height and width `canvas_hw`.

        Raises:
            ConfigError: a transform is unknown (the nearest name is given), refuses its arguments or the canvas, or
                returns another shape or dtype.
        """
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise its import asks a package index for updates
        import albumentations

        transforms = []
        for specification in specifications:
            arguments = dict(specification)
            name = str(arguments.pop("name", None))
            transform = getattr(albumentations, name, None)
            if not _is_transform(transform, albumentations.BasicTransform):
                known = [n for n, c in vars(albumentations).items() if _is_transform(c, albumentations.BasicTransform)]
                raise ConfigError(f"augment.albumentations: no transform is named {name!r}{nearest(name, known)}")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # its only reaction to an unknown argument
                    transforms.append(transform(**arguments))
                always = transform(**{**arguments, "p": 1.0})
            except (TypeError, ValueError, RuntimeError, UserWarning) as error:
                raise ConfigError(f"augment.albumentations: {name} refuses {arguments}: {_one_line(error)}") from error
            crop_error = albumentations.augmentations.crops.transforms.CropSizeError  # derives from Exception directly
            _try(name, always, blank_canvas(canvas_hw, channels), (*_REFUSALS, crop_error))
        boxes = albumentations.BboxParams(
            format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
        )
        self._moves_boxes = any(isinstance(transform, albumentations.DualTransform) for transform in transforms)
        self._compose = albumentations.Compose(transforms, bbox_params=boxes if self._moves_boxes else None)

    def __call__(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> tuple[Image, ImageObjects]:
        """Return the image and the objects that are left; the library is seeded by one draw of the generator."""
        self._compose.set_random_seed(int(rng.integers(2**31)))
        if not self._moves_boxes:
            return _same_format(self._compose(image=image)["image"], image, "the list"), objects
        # Labels would be returned as float32, so row numbers are passed instead, which are exact below 2^24.
        result = self._compose(image=image, bboxes=objects.xyxy, rows=np.arange(len(objects.labels)))
        rows = np.asarray(result["rows"], dtype=np.int64)
        boxes = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
        image = _same_format(result["image"], image, "the list")
        return image, ImageObjects(boxes, objects.labels[rows], objects.ignore[rows])


def _is_transform(candidate: object, base: type) -> TypeGuard[Callable[..., _Transform]]:
    return isinstance(candidate, type) and issubclass(candidate, base)


def _same_format(changed: Image, image: Image, who: str) -> Image:
    if changed.shape != image.shape or changed.dtype != image.dtype:
        raise ConfigError(
            f"augment.albumentations: {who} turns {image.dtype} {image.shape} into {changed.dtype} "
            f"{tuple(changed.shape)}; expected transforms that keep shape and dtype, remove it"
        )
    return np.ascontiguousarray(changed)


# Errors that transforms are known to raise on an image, or on missing boxes, that they do not support.
_REFUSALS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, cv2.error)


def _one_line(error: Exception | Warning) -> str:
    return " ".join(str(error).split())


def _try(name: str, transform: _Transform, canvas: Image, refusals: tuple[type[Exception], ...]) -> None:
    """Apply a transform that always acts, so that one that fails is refused before training, not during it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # warnings about this canvas, which is never shown
            changed = transform(image=canvas, bboxes=np.zeros((0, 4), np.float32))["image"]
    except refusals as error:
        raise ConfigError(
            f"augment.albumentations: {name} does not take images of shape {canvas.shape}: "
            f"{_one_line(error)}; remove it"
        ) from error
    _same_format(changed, canvas, name)
