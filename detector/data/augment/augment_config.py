"""Settings of augmentation: one flat key for each built-in step, and a list of registered parts."""

from __future__ import annotations

from dataclasses import dataclass

from detector.data.augment.augmentation import AugmentationConfig
from detector.structures.canvas import LEAST_TILE_PX

# At 0.5 one corner of the canvas is shown three times as large as the opposite one; at 1 it would lie on the horizon.
MAX_PERSPECTIVE = 0.5


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of augmentation; a probability of 0 or a range of 0 switches a step off.

    The steps act in the order of the attributes, except that all geometry up to `perspective` is composed into one warp
    of each source image. Boxes follow the pixels exactly. An object is dropped only where the border of the canvas
    leaves less than a tenth of it, or less than 2 pixels of a side; a crowd region stays while any of it is visible.

    Attributes:
        tile: side in source pixels of the square that is cut from a larger image each time it is shown, at a random
            place that holds an object three times of four; None shows whole images. Give `views.tile` the same value:
            evaluation and prediction then see objects at the scale of training.
        mosaic: probability of joining four images around a point.
        mosaic_nine: share of the mosaics that join nine smaller images instead of four.
        crop: probability, for each source image, of keeping only a window that holds an object and cuts none.
        scale: zoom is drawn from 1 - scale .. 1 + scale.
        translate: shift, as a share of the canvas, from -translate .. translate.
        degrees: rotation from -degrees .. degrees.
        shear: shear angle in degrees from -shear .. shear.
        flip_horizontal: probability of mirroring left and right; use 0 where classes differ by left and right.
        flip_vertical: probability of mirroring top and bottom.
        perspective: tilt in any direction: objects in one corner of the canvas are enlarged by up to 1 + perspective,
            those in the opposite corner are reduced to no less than 1 - perspective.
        mixup: probability of blending two such canvases.
        copy_paste: probability, for each object of another image, of being pasted where it hides little.
        albumentations: transforms of that library, each `{name: ..., argument: value}`, applied in order.
        extra: registered augmentations, each a name or `{name: ..., setting: value}`, applied in order after the
            transforms of albumentations and before the colour is changed; not applied in the closing share.
        hue: hue shift, as a share of the circle, from -hue .. hue.
        saturation: saturation gain from 1 - saturation .. 1 + saturation.
        value: brightness gain from 1 - value .. 1 + value.
        grayscale: probability of removing the colour.
        blur: standard deviation in pixels of a Gaussian blur, from 0 .. blur.
        noise: standard deviation in grey levels of Gaussian noise, from 0 .. noise.
        jpeg: loss of JPEG quality, from 0 .. jpeg: 60 compresses with qualities from 100 down to 40.
        degraded_share: share of the images to which each of blur, noise and jpeg is applied.
        cutout: share of the canvas that grey rectangles hide, from 0 .. cutout; at most half of any object.
        closing_share: the last share of training, in which images are only letterboxed, mirrored and recoloured.
    """

    tile: int | None = None
    mosaic: float = 1.0
    mosaic_nine: float = 0.0
    crop: float = 0.0
    scale: float = 0.5
    translate: float = 0.1
    degrees: float = 0.0
    shear: float = 0.0
    flip_horizontal: float = 0.5
    flip_vertical: float = 0.0
    perspective: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    albumentations: tuple[dict[str, object], ...] = ()
    extra: tuple[AugmentationConfig, ...] = ()
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    grayscale: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    degraded_share: float = 0.1
    cutout: float = 0.0
    closing_share: float = 0.15

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < LEAST_TILE_PX:
            raise ValueError(f"expected a tile of at least {LEAST_TILE_PX} pixels, got {self.tile}")
        for names, greatest in (
            ("mosaic mosaic_nine crop flip_horizontal flip_vertical mixup copy_paste saturation value grayscale", 1),
            ("degraded_share closing_share", 1),
            ("perspective", MAX_PERSPECTIVE),
            ("cutout", 0.5),
            ("blur", 50),
            ("noise", 128),
            ("jpeg", 99),
        ):
            for name in names.split():
                if not 0 <= getattr(self, name) <= greatest:
                    raise ValueError(f"expected {name} within 0..{greatest}, got {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"expected 0 <= scale < 1, got {self.scale}")
        if min(self.translate, self.degrees, self.shear, self.hue) < 0:
            raise ValueError(
                "expected translate, degrees, shear and hue of at least 0, got "
                f"{self.translate}, {self.degrees}, {self.shear} and {self.hue}"
            )
        if self.shear >= 90:
            raise ValueError(f"expected shear below 90 degrees, got {self.shear}")
