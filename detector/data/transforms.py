"""Augmentation: where each source pixel goes, as one warp per source image, and what happens to its colour.

Everything random is drawn from the generator that is passed in, which the caller seeds by (seed, epoch, index).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from detector.errors import ConfigError
from detector.geometry import PADDING_VALUE, Image, area_xyxy, clip_xyxy
from detector.registry import nearest

Matrix = npt.NDArray[np.float64]  # 3x3, on continuous coordinates (x, y, 1)

# An object is kept where this share of its area and this many pixels of each side stay on the canvas.
MIN_VISIBLE_SHARE = 0.10
MIN_SIDE_PX = 2.0


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied. A probability of 0 or a range of 0 switches a part off.

    Attributes:
        mosaic: probability of joining four images around a point.
        mixup: probability of blending two such canvases.
        scale: zoom is drawn from 1 - scale .. 1 + scale.
        translate: shift, as a share of the canvas, from -translate .. translate.
        degrees: rotation from -degrees .. degrees.
        shear: shear angle in degrees from -shear .. shear.
        flip_horizontal: probability of mirroring left and right; 0 where classes tell left from right.
        flip_vertical: probability of mirroring top and bottom.
        hue: hue shift, as a share of the circle, from -hue .. hue.
        saturation: saturation gain from 1 - saturation .. 1 + saturation.
        value: brightness gain from 1 - value .. 1 + value.
        albumentations: transforms of that library, each `{name: ..., argument: value}`, applied in order.
        closing_share: the last share of training, which sees plain letterboxed images, mirrored and recoloured only.
    """

    mosaic: float = 1.0
    mixup: float = 0.0
    scale: float = 0.5
    translate: float = 0.1
    degrees: float = 0.0
    shear: float = 0.0
    flip_horizontal: float = 0.5
    flip_vertical: float = 0.0
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    albumentations: tuple[dict[str, Any], ...] = ()
    closing_share: float = 0.15

    def __post_init__(self) -> None:
        for name in ("mosaic", "mixup", "flip_horizontal", "flip_vertical", "saturation", "value", "closing_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} wants to be within 0..1, found {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale wants to be within 0 <= scale < 1, found {self.scale}")
        if min(self.translate, self.degrees, self.shear, self.hue) < 0:
            raise ValueError("translate, degrees, shear and hue want to be at least 0")


@dataclass(frozen=True)
class Objects:
    """Boxes with their labels and ignore flags, in one frame: float32 (N, 4), int64 (N,), bool (N,)."""

    xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]

    def __getitem__(self, keep: npt.NDArray[Any]) -> Objects:
        return Objects(self.xyxy[keep], self.labels[keep], self.ignore[keep])

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Objects:
        """The objects of several images that share a frame."""
        return cls(
            np.concatenate([p.xyxy for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.ignore for p in parts]),
        )


# --- geometry ------------------------------------------------------------------------------------------------------


def translation(x: float, y: float) -> Matrix:
    """A shift by (x, y) pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def scaling(x: float, y: float) -> Matrix:
    """A zoom about the origin."""
    return np.diag([x, y, 1.0])


def random_affine(config: AugmentConfig, canvas_hw: tuple[int, int], rng: np.random.Generator) -> Matrix:
    """Zoom, rotation, shear, mirroring and shift about the origin, which lands near the middle of the canvas."""
    height, width = canvas_hw
    zoom = rng.uniform(1 - config.scale, 1 + config.scale)
    angle = math.radians(rng.uniform(-config.degrees, config.degrees))
    shear_x, shear_y = (math.tan(math.radians(rng.uniform(-config.shear, config.shear))) for _ in range(2))
    shift_x, shift_y = (0.5 + rng.uniform(-config.translate, config.translate) for _ in range(2))
    mirror_x = -1.0 if rng.random() < config.flip_horizontal else 1.0
    mirror_y = -1.0 if rng.random() < config.flip_vertical else 1.0
    rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    matrix = scaling(mirror_x * zoom, mirror_y * zoom) @ rotation @ shear
    return np.asarray(translation(shift_x * width, shift_y * height) @ matrix)


def mosaic_places(
    sources_hw: Sequence[tuple[int, int]], canvas_hw: tuple[int, int], rng: np.random.Generator
) -> list[Matrix]:
    """Where four images go: each fitted to the canvas size, one corner at a random point near the origin.

    The four lie in the four quadrants about that point, so they never overlap.
    """
    height, width = canvas_hw
    centre_x, centre_y = rng.uniform(-0.5, 0.5) * width, rng.uniform(-0.5, 0.5) * height
    places = []
    for quadrant, (source_h, source_w) in enumerate(sources_hw):
        fit = min(height / source_h, width / source_w)
        left = centre_x - (source_w * fit if quadrant % 2 == 0 else 0)
        top = centre_y - (source_h * fit if quadrant < 2 else 0)
        places.append(translation(left, top) @ scaling(fit, fit))
    return places


def warp_into(canvas: Image, image: Image, matrix: Matrix) -> None:
    """Draws an image onto a canvas where the matrix says, bilinear, leaving the rest of the canvas as it is.

    The matrix maps continuous coordinates; OpenCV maps pixel centres, which lie at + 0.5.
    """
    height, width = canvas.shape[:2]
    corners = transform_corners(np.array([[0, 0, image.shape[1], image.shape[0]]], np.float64), matrix)[0]
    left, top = max(0, math.floor(corners[:, 0].min())), max(0, math.floor(corners[:, 1].min()))
    right, bottom = min(width, math.ceil(corners[:, 0].max())), min(height, math.ceil(corners[:, 1].max()))
    if left >= right or top >= bottom:
        return
    centred = translation(-left - 0.5, -top - 0.5) @ matrix @ translation(0.5, 0.5)
    for first in range(0, image.shape[2], 4):  # OpenCV warps at most four channels at a time
        region = np.ascontiguousarray(canvas[top:bottom, left:right, first : first + 4])
        warped = cv2.warpAffine(
            np.ascontiguousarray(image[..., first : first + 4]),
            centred[:2],
            (right - left, bottom - top),
            dst=region,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_TRANSPARENT,
        )
        canvas[top:bottom, left:right, first : first + 4] = warped.reshape(region.shape)


def transform_corners(xyxy: npt.NDArray[Any], matrix: Matrix) -> Matrix:
    """The four corners of boxes (N, 4) after a matrix: float64 (N, 4, 2)."""
    corners = xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    return np.asarray(corners @ matrix[:2, :2].T + matrix[:2, 2])


def transform_objects(objects: Objects, matrix: Matrix, canvas_hw: tuple[int, int]) -> Objects:
    """Objects after a matrix, as upright boxes clipped to the canvas; what is hardly left is dropped."""
    corners = transform_corners(objects.xyxy, matrix)
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    clipped = clip_xyxy(whole, canvas_hw)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = area_xyxy(clipped) > MIN_VISIBLE_SHARE * area_xyxy(whole)
    keep = visible & (sides >= MIN_SIDE_PX).all(axis=1)
    return Objects(clipped.astype(np.float32), objects.labels, objects.ignore)[keep]


# --- colour --------------------------------------------------------------------------------------------------------


def random_hsv(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """An RGB image with hue shifted, saturation and brightness scaled, by lookup tables over the 256 levels."""
    shift, gain_s, gain_v = rng.uniform(-1, 1, 3)
    if image.shape[2] != 3 or not (config.hue or config.saturation or config.value):
        return image
    levels = np.arange(256, dtype=np.float64)
    tables = np.stack(
        [
            (levels + shift * config.hue * 180) % 180,  # OpenCV's 8-bit hue is in units of 2 degrees
            np.clip(levels * (1 + gain_s * config.saturation), 0, 255),
            np.clip(levels * (1 + gain_v * config.value), 0, 255),
        ],
        axis=-1,
    )
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    recoloured = cv2.LUT(hsv, tables.astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(recoloured, cv2.COLOR_HSV2RGB), np.uint8)


class AlbumentationsChain:
    """Transforms of albumentations, built once, seeded before each call; the only place that knows the library."""

    def __init__(self, specifications: Sequence[Mapping[str, Any]], canvas_hw: tuple[int, int], channels: int) -> None:
        """Builds the chain and tries each transform on a canvas of height and width `canvas_hw`.

        Raises:
            ConfigError: an unknown transform, with the nearest name, arguments that it refuses, or one that does not
                take such a canvas or gives back another shape or dtype.
        """
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import asks a package index for news otherwise
        import albumentations

        transforms = []
        for specification in specifications:
            arguments = dict(specification)
            name = str(arguments.pop("name", None))
            transform: Any = getattr(albumentations, name, None)
            if not _is_transform(transform, albumentations.BasicTransform):
                known = [n for n, c in vars(albumentations).items() if _is_transform(c, albumentations.BasicTransform)]
                raise ConfigError(f"augment.albumentations knows no transform {name!r}{nearest(name, known)}")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # all it says of an argument that it does not know
                    transforms.append(transform(**arguments))
                always = transform(**{**arguments, "p": 1.0})
            except (TypeError, ValueError, RuntimeError, UserWarning) as error:
                raise ConfigError(f"augment.albumentations: {name} refuses {arguments}: {_said(error)}") from error
            crop_error = albumentations.augmentations.crops.transforms.CropSizeError  # derived from Exception itself
            _try(name, always, blank_canvas(canvas_hw, channels), (*_REFUSALS, crop_error))
        boxes = albumentations.BboxParams(
            format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
        )
        self._moves_boxes = any(isinstance(transform, albumentations.DualTransform) for transform in transforms)
        self._compose = albumentations.Compose(transforms, bbox_params=boxes if self._moves_boxes else None)

    def __call__(self, image: Image, objects: Objects, seed: int) -> tuple[Image, Objects]:
        """The image and the objects that are left, as a function of the seed alone."""
        self._compose.set_random_seed(seed)
        if not self._moves_boxes:
            return _same_format(self._compose(image=image)["image"], image, "the list"), objects
        # Labels come back as float32, so rows are passed through instead: exact below 2^24.
        result = self._compose(image=image, bboxes=objects.xyxy, rows=np.arange(len(objects.labels)))
        rows = np.asarray(result["rows"], dtype=np.int64)
        boxes = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
        image = _same_format(result["image"], image, "the list")
        return image, Objects(boxes, objects.labels[rows], objects.ignore[rows])


def _is_transform(candidate: object, base: type) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, base)


def _same_format(changed: Any, image: Image, who: str) -> Image:
    if changed.shape != image.shape or changed.dtype != image.dtype:
        raise ConfigError(
            f"augment.albumentations: {who} turns {image.dtype} {image.shape} into {changed.dtype} "
            f"{tuple(changed.shape)}, where transforms that keep shape and dtype are wanted; remove it"
        )
    return np.ascontiguousarray(changed)


# What transforms are known to raise on an image or an absence that they are not made for.
_REFUSALS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, cv2.error)


def _said(error: Exception | Warning) -> str:
    return " ".join(str(error).split())


def _try(name: str, transform: Any, canvas: Image, refusals: tuple[type[Exception], ...]) -> None:
    """Applies a transform that always acts, so that one that cannot is found before training, not during it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # remarks on this canvas, which no one will see
            changed = transform(image=canvas, bboxes=np.zeros((0, 4), np.float32))["image"]
    except refusals as error:
        raise ConfigError(
            f"augment.albumentations: {name} does not take images of shape {canvas.shape}: {_said(error)}; remove it"
        ) from error
    _same_format(changed, canvas, name)


def blank_canvas(canvas_hw: tuple[int, int], channels: int) -> Image:
    """A canvas of the padding grey."""
    return np.full((*canvas_hw, channels), PADDING_VALUE, dtype=np.uint8)
