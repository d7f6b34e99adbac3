"""The letterbox: the only conversion between the pixels of a source image and those of a canvas.

Coordinates are continuous pixels: the image of width `w` spans [0, w], pixel column `i` spans [i, i + 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from detector.structures.boxes import Boxes

Image = npt.NDArray[np.uint8]  # (H, W, C), RGB when C is 3
UnitImage = npt.NDArray[np.float32]  # (H, W, C), 0..1

# The grey of pixels outside the source image: about the mean of the usual training images, a convention of the field.
PADDING_VALUE = 114
DARKNET_PADDING_VALUE = 0.5  # Darknet's padding, of 0..1


def _fit_letterbox(source_hw: tuple[int, int], canvas_hw: tuple[int, int], upscale: bool) -> tuple[int, int]:
    scale = min(canvas_hw[0] / source_hw[0], canvas_hw[1] / source_hw[1])
    if not upscale:
        scale = min(scale, 1.0)
    height, width = (min(max(round(s * scale), 1), c) for s, c in zip(source_hw, canvas_hw, strict=True))
    return height, width


def _fit_darknet_letterbox(source_hw: tuple[int, int], canvas_hw: tuple[int, int], upscale: bool) -> tuple[int, int]:
    """Fit as Darknet does: scales compared in float32, sizes by integer division; a side of 0 becomes 1."""
    (height, width), (canvas_h, canvas_w) = source_hw, canvas_hw
    if not upscale and height <= canvas_h and width <= canvas_w:
        return source_hw
    if np.float32(canvas_w) / np.float32(width) < np.float32(canvas_h) / np.float32(height):
        return max(height * canvas_w // width, 1), canvas_w
    return canvas_h, max(width * canvas_h // height, 1)


def _fit_yolox(source_hw: tuple[int, int], canvas_hw: tuple[int, int], upscale: bool) -> tuple[int, int]:
    """Fit as YOLOX does: sizes are cut to whole pixels, not rounded; a side of 0 becomes 1."""
    scale = _scale_yolox(source_hw, canvas_hw)
    if not upscale and scale >= 1:
        return source_hw
    height, width = (max(int(side * scale), 1) for side in source_hw)
    return height, width


def _scale_yolox(source_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> float:
    return min(canvas_hw[0] / source_hw[0], canvas_hw[1] / source_hw[1])


def _fit_stretch(source_hw: tuple[int, int], canvas_hw: tuple[int, int], upscale: bool) -> tuple[int, int]:
    return canvas_hw


def _resize_opencv(image: Image, resized_hw: tuple[int, int]) -> Image:
    """Resize bilinearly on pixel centres, rounded to whole levels."""
    height, width = resized_hw
    shape = (height, width, image.shape[2])  # OpenCV drops a last axis of 1
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8).reshape(shape)


_UNIT_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)


def resize_darknet(image: Image | UnitImage, resized_hw: tuple[int, int]) -> UnitImage:
    """Resize an image as Darknet does, to the last bit: corner-aligned bilinear in float32, columns before rows.

    Output column `x` lies at `x * (W - 1) / (w - 1)` of the source, the last one on the last column of the source. Rows
    lie likewise, but the last row takes no share of the row below its position. This is a defect of Darknet that is
    kept because Darknet's numbers depend on it: if rounding puts the last row just above the last row of the source
    (121 rows to 416, 240 to 416, ...; 4 % of usual pairs), the last row is nearly black.

    Args:
        image: uint8 (H, W, C), or float32 (H, W, C) in 0..1.
        resized_hw: height `h` and width `w` of the result. Darknet leaves a single row undefined (here it is the first
            row of the source) and takes a single column from the last one.

    Returns:
        float32 (h, w, C) in 0..1.
    """
    (height, width), num_channels = resized_hw, image.shape[2]
    rows, row_shares = _corner_aligned(image.shape[0], height)
    columns, column_shares = _corner_aligned(image.shape[1], width)
    columns[-1], column_shares[-1] = image.shape[1] - 1, 0
    next_rows = np.minimum(rows + 1, image.shape[0] - 1)
    next_columns = np.minimum(columns + 1, image.shape[1] - 1)
    needed, positions = np.unique(np.concatenate([rows, next_rows]), return_inverse=True)
    source = image if len(needed) == image.shape[0] else image[needed]

    def taken(indices: npt.NDArray[np.intp]) -> UnitImage:
        pixels = np.take(source, indices, axis=1).reshape(len(needed), width * num_channels)
        return np.asarray(cv2.LUT(pixels, _UNIT_LEVELS) if pixels.dtype == np.uint8 else pixels, np.float32)

    share = np.repeat(column_shares, num_channels)
    lines, right = taken(columns), taken(next_columns)
    lines *= 1 - share
    right *= share
    lines += right
    resized = lines[positions[:height]]
    resized *= (1 - row_shares)[:, None]
    below = lines[positions[height : 2 * height - 1]]
    below *= row_shares[:-1, None]
    resized[:-1] += below
    return resized.reshape(height, width, num_channels)


def _corner_aligned(num_source: int, num_resized: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the source line above (or left of) each resized one and the share of the next: intp, float32 (n,)."""
    step = np.float32(num_source - 1) / np.float32(max(num_resized - 1, 1))
    positions = np.arange(num_resized, dtype=np.float32) * step
    lines = positions.astype(np.intp)
    return lines, positions - lines.astype(np.float32)


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of the pixels when an image is fitted into a canvas.

    Attributes:
        fits: by name, functions of the resized size: (source_hw, canvas_hw, upscale) -> resized_hw.
        resize: function of the resized image, in the dtype of the canvas.
        dtype: of the canvas: uint8 in 0..255, or float32 in 0..1.
        padding_value: value of the canvas outside the image.
        has_half_pixels: whether boxes are shifted by the exact half of an odd padding, which pixels cannot be.
        is_top_left: whether the image lies in the top-left corner, not in the centre, and its boxes are scaled by the
            same exact factor on both axes.
    """

    fits: dict[str, Callable[[tuple[int, int], tuple[int, int], bool], tuple[int, int]]]
    resize: Callable[[Image, tuple[int, int]], Image | UnitImage]
    dtype: type[np.uint8] | type[np.float32]
    padding_value: float
    has_half_pixels: bool
    is_top_left: bool = False


ARITHMETICS = {
    "opencv": Arithmetic(
        {"letterbox": _fit_letterbox, "stretch": _fit_stretch}, _resize_opencv, np.uint8, PADDING_VALUE, False
    ),
    "darknet": Arithmetic(
        {"letterbox": _fit_darknet_letterbox, "stretch": _fit_stretch},
        resize_darknet,
        np.float32,
        DARKNET_PADDING_VALUE,
        True,
    ),
    "yolox": Arithmetic(
        {"letterbox": _fit_yolox, "stretch": _fit_stretch}, _resize_opencv, np.uint8, PADDING_VALUE, False, True
    ),
}
FITS = tuple(ARITHMETICS["opencv"].fits)  # the ways to fit an image into a canvas, the same in every arithmetic


@dataclass(frozen=True)
class Letterbox:
    """Fit of one image into one canvas, with the size and padding that were used.

    The resized image is centred; an odd padding puts the extra pixel at the bottom or right. Because the resized size
    is a whole number of pixels, the two axes may scale by slightly different factors: both are kept, both are inverted.
    In YOLOX's arithmetic the image lies in the top-left corner, and boxes have one factor for both axes.

    Attributes:
        source_hw: height and width of the source image.
        canvas_hw: height and width of the canvas.
        resized_hw: height and width of the image on the canvas.
        arithmetic: a key of `ARITHMETICS`.
    """

    source_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    arithmetic: str = "opencv"

    @classmethod
    def fit(
        cls,
        source_hw: tuple[int, int],
        canvas_hw: tuple[int, int],
        mode: str = "letterbox",
        upscale: bool = True,
        arithmetic: str = "opencv",
    ) -> Letterbox:
        """Fit a source into a canvas.

        Args:
            source_hw: height and width of the source, both at least 1.
            canvas_hw: height and width of the canvas, both at least 1.
            mode: one of `FITS`: `letterbox` keeps the aspect ratio and pads, `stretch` fills the canvas.
            upscale: whether a source smaller than the canvas is enlarged (letterbox mode only).
            arithmetic: `opencv`, or `darknet` or `yolox` for the numbers that these compute.

        Raises:
            ValueError: a side below 1, an unknown mode or an unknown arithmetic.
        """
        if min(*source_hw, *canvas_hw) < 1:
            raise ValueError(f"Letterbox.fit: expected sides of at least 1 pixel, got {source_hw} into {canvas_hw}")
        if mode not in FITS:
            raise ValueError(f"Letterbox.fit: expected a mode of {sorted(FITS)}, got {mode!r}")
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"Letterbox.fit: expected an arithmetic of {sorted(ARITHMETICS)}, got {arithmetic!r}")
        resized_hw = ARITHMETICS[arithmetic].fits[mode](source_hw, canvas_hw, upscale)
        return cls(source_hw, canvas_hw, resized_hw, arithmetic)

    @property
    def padding_top_left(self) -> tuple[int, int]:
        """Padding in pixels above and to the left of the image."""
        if ARITHMETICS[self.arithmetic].is_top_left:
            return 0, 0
        return (self.canvas_hw[0] - self.resized_hw[0]) // 2, (self.canvas_hw[1] - self.resized_hw[1]) // 2

    @property
    def offset_top_left(self) -> tuple[float, float]:
        """Corner of the image for boxes; in Darknet's arithmetic the exact half of the padding, unlike for pixels."""
        if not ARITHMETICS[self.arithmetic].has_half_pixels:
            return self.padding_top_left
        return (self.canvas_hw[0] - self.resized_hw[0]) / 2, (self.canvas_hw[1] - self.resized_hw[1]) / 2

    @property
    def scale_hw(self) -> tuple[float, float]:
        """Canvas pixels per source pixel, vertically and horizontally."""
        if ARITHMETICS[self.arithmetic].is_top_left and self.resized_hw == _fit_yolox(
            self.source_hw, self.canvas_hw, True
        ):
            scale = _scale_yolox(self.source_hw, self.canvas_hw)
            return scale, scale
        return self.resized_hw[0] / self.source_hw[0], self.resized_hw[1] / self.source_hw[1]

    def apply(self, image: Image) -> npt.NDArray[Any]:
        """Place an image on its canvas, resized bilinearly and padded in the arithmetic of the letterbox.

        Args:
            image: uint8 (H, W, C) of size `source_hw`.

        Returns:
            (canvas H, canvas W, C), contiguous: uint8, padded with `PADDING_VALUE`; in Darknet's arithmetic float32 in
            0..1, padded with `DARKNET_PADDING_VALUE`.

        Raises:
            ValueError: the image has another size.
        """
        if image.shape[:2] != self.source_hw:
            raise ValueError(f"Letterbox.apply: expected an image of {self.source_hw}, got {image.shape[:2]}")
        arithmetic = ARITHMETICS[self.arithmetic]
        (height, width), (top, left) = self.resized_hw, self.padding_top_left
        resized: Image | UnitImage = image
        if arithmetic.dtype != image.dtype or image.shape[:2] != self.resized_hw:
            resized = arithmetic.resize(image, self.resized_hw)
        if self.resized_hw == self.canvas_hw:
            return np.ascontiguousarray(resized)
        canvas = np.full((*self.canvas_hw, image.shape[2]), arithmetic.padding_value, dtype=arithmetic.dtype)
        canvas[top : top + height, left : left + width] = resized
        return canvas

    def _scale_and_offset(self, boxes: Boxes) -> tuple[Any, Any]:
        (scale_y, scale_x), (top, left) = self.scale_hw, self.offset_top_left
        scale, offset = (scale_x, scale_y, scale_x, scale_y), (left, top, left, top)
        if isinstance(boxes, np.ndarray):
            return np.asarray(scale, boxes.dtype), np.asarray(offset, boxes.dtype)
        return boxes.new_tensor(scale), boxes.new_tensor(offset)

    def boxes_to_canvas(self, source_xyxy: Boxes) -> Boxes:
        """Convert boxes from pixels of the source image to pixels of the canvas."""
        scale, offset = self._scale_and_offset(source_xyxy)
        canvas_xyxy: Boxes = source_xyxy * scale + offset
        return canvas_xyxy

    def boxes_to_source(self, canvas_xyxy: Boxes) -> Boxes:
        """Convert boxes from pixels of the canvas to pixels of the source image; they are not clipped."""
        scale, offset = self._scale_and_offset(canvas_xyxy)
        source_xyxy: Boxes = (canvas_xyxy - offset) / scale
        return source_xyxy

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the map of `boxes_to_canvas` as a 3x3 matrix on continuous source coordinates (x, y, 1)."""
        (scale_y, scale_x), (top, left) = self.scale_hw, self.offset_top_left
        return np.array([[scale_x, 0, left], [0, scale_y, top], [0, 0, 1]], dtype=np.float64)
