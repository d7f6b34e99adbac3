"""The settings of augmentation: one flat key for each way in which a training image is varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# There one corner of the canvas is seen three times as large as the opposite one; at 1 it would touch the horizon.
MAX_PERSPECTIVE = 0.5


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied. A probability of 0 or a range of 0 switches a part off.

    They act in the order in which they stand here, except that all geometry is composed into one warp of each source
    image. Boxes follow the pixels exactly, and a box is dropped only where less than a tenth of it is left.

    Attributes:
        mosaic: probability of joining four images around a point.
        mosaic_nine: share of the mosaics that join nine smaller images instead.
        crop: probability, for each source image, of keeping only a window of it that holds an object and cuts none.
        scale: zoom is drawn from 1 - scale .. 1 + scale.
        translate: shift, as a share of the canvas, from -translate .. translate.
        degrees: rotation from -degrees .. degrees.
        shear: shear angle in degrees from -shear .. shear.
        flip_horizontal: probability of mirroring left and right; 0 where classes tell left from right.
        flip_vertical: probability of mirroring top and bottom.
        perspective: tilt in any direction: in one corner of the canvas things are shown larger by up to
            1 + perspective, in the opposite one smaller by as little as 1 - perspective.
        mixup: probability of blending two such canvases.
        copy_paste: probability, for each object of another image, of being pasted where it hides little.
        albumentations: transforms of that library, each `{name: ..., argument: value}`, applied in order.
        hue: hue shift, as a share of the circle, from -hue .. hue.
        saturation: saturation gain from 1 - saturation .. 1 + saturation.
        value: brightness gain from 1 - value .. 1 + value.
        grayscale: probability of taking the colour away.
        blur: standard deviation in pixels of a Gaussian blur, from 0 .. blur.
        noise: standard deviation in grey levels of Gaussian noise, from 0 .. noise.
        jpeg: loss of JPEG quality, from 0 .. jpeg: 60 compresses with qualities of 100 down to 40.
        degraded_share: share of the images that each of blur, noise and jpeg acts on.
        cutout: share of the canvas that grey rectangles hide, from 0 .. cutout; at most half of any object.
        closing_share: the last share of training, which sees plain letterboxed images, mirrored and recoloured only.
    """

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
    albumentations: tuple[dict[str, Any], ...] = ()
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
                    raise ValueError(f"{name} wants to be within 0..{greatest}, found {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale wants to be within 0 <= scale < 1, found {self.scale}")
        if min(self.translate, self.degrees, self.shear, self.hue) < 0:
            raise ValueError("translate, degrees, shear and hue want to be at least 0")
        if self.shear >= 90:
            raise ValueError(f"shear wants to be below 90 degrees, found {self.shear}")
