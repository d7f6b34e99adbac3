"""The canvas that images are fitted to: its size, its channels, its fit and its arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from detector.structures.letterbox import ARITHMETICS, FITS, Image, Letterbox

MAX_CANVAS_PIXELS, MAX_CHANNELS = 2**26, 1024  # more than any network is trained with
LEAST_TILE_PX = 32  # of tiles of large images, in training and in prediction


@dataclass(frozen=True)
class Canvas:
    """Size and channels of a canvas, and how images are fitted to it.

    Attributes:
        canvas_hw: height and width in pixels.
        channels: 3 for RGB, 1 for grey, any other number for images of that many planes.
        fit: a mode of `Letterbox`.
    """

    canvas_hw: tuple[int, int]
    channels: int
    fit: str


@dataclass(frozen=True)
class InputConfig:
    """Canvas of a network: its size, its channels, and how an image is fitted into it.

    Attributes:
        size: side of the square canvas in pixels, or its (height, width); a multiple of the model's largest stride.
        channels: 3 for RGB, 1 for grey, any other number for images of that many planes.
        fit: `letterbox` keeps the aspect ratio and pads, `stretch` does not.
        arithmetic: resizing in evaluation and prediction: `opencv`, or `darknet` or `yolox` for the numbers that these
            compute; `yolox` places the image in the top-left corner. Training images are resized by OpenCV and centred
            in every case.
        multi_scale: how far the canvas of a training batch may be smaller or larger, as a share of the configured size,
            0 <= multi_scale < 1; its sides are multiples of the model's largest stride. Evaluation, prediction and the
            closing part of training use the configured size.
    """

    size: int | tuple[int, int] = 640
    channels: int = 3
    fit: str = "letterbox"
    arithmetic: str = "opencv"
    multi_scale: float = 0.0

    def __post_init__(self) -> None:
        if min(self.canvas_hw) < 1 or self.channels < 1:
            raise ValueError(
                f"expected an input with a size and channels of at least 1, got {self.size} and {self.channels}"
            )
        if math.prod(self.canvas_hw) > MAX_CANVAS_PIXELS or self.channels > MAX_CHANNELS:
            raise ValueError(
                f"expected an input of at most {MAX_CANVAS_PIXELS:,} pixels and {MAX_CHANNELS} channels, got "
                f"{self.size} and {self.channels}; lower input.size or input.channels"
            )
        if self.fit not in FITS:
            raise ValueError(f"expected input.fit to be {' or '.join(FITS)}, got {self.fit!r}")
        if self.arithmetic not in ARITHMETICS:
            raise ValueError(f"expected input.arithmetic to be {' or '.join(ARITHMETICS)}, got {self.arithmetic!r}")
        if not 0 <= self.multi_scale < 1:
            raise ValueError(f"expected input.multi_scale with 0 <= multi_scale < 1, got {self.multi_scale}")

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def letterbox(self, image: Image) -> Letterbox:
        """Return how evaluation and prediction fit an image (H, W, C) into the canvas."""
        return self.letterbox_of((image.shape[0], image.shape[1]))

    def letterbox_of(self, image_hw: tuple[int, int], canvas_hw: tuple[int, int] | None = None) -> Letterbox:
        """Return the same for an image of height and width `image_hw`, on a canvas of another size if one is given."""
        return Letterbox.fit(image_hw, canvas_hw or self.canvas_hw, self.fit, arithmetic=self.arithmetic)
