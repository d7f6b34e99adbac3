"""Box formats by name and the letterbox: the only place where two coordinate frames meet.

Coordinates are continuous pixels: the image of width `w` spans [0, w], pixel column `i` spans [i, i + 1]. Inside the
package boxes are `xyxy`; every other format exists at a named edge only. Functions on boxes take NumPy arrays and torch
tensors alike (any shape ending in 4) and never modify their argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

Boxes = TypeVar("Boxes", bound=Any)  # an array or a tensor; what goes in comes out
Image = npt.NDArray[np.uint8]  # (H, W, C), RGB when C is 3

# The grey that fills what no source pixel covers; the mean of the usual training images, a convention of the field.
PADDING_VALUE = 114


def _like(boxes: Any, columns: list[Any]) -> Any:
    if isinstance(boxes, np.ndarray):
        return np.stack(columns, axis=-1)
    import torch  # only where the caller already holds a tensor

    return torch.stack(columns, dim=-1)


def xywh_to_xyxy(boxes_xywh: Boxes) -> Boxes:
    """Corner and size (COCO's format) to two corners."""
    x, y, w, h = (boxes_xywh[..., i] for i in range(4))
    return _like(boxes_xywh, [x, y, x + w, y + h])  # type: ignore[no-any-return]


def xyxy_to_xywh(boxes_xyxy: Boxes) -> Boxes:
    """Two corners to corner and size (COCO's format)."""
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _like(boxes_xyxy, [x1, y1, x2 - x1, y2 - y1])  # type: ignore[no-any-return]


def cxcywh_to_xyxy(boxes_cxcywh: Boxes) -> Boxes:
    """Centre and size to two corners."""
    cx, cy, w, h = (boxes_cxcywh[..., i] for i in range(4))
    return _like(boxes_cxcywh, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])  # type: ignore[no-any-return]


def xyxy_to_cxcywh(boxes_xyxy: Boxes) -> Boxes:
    """Two corners to centre and size."""
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _like(boxes_xyxy, [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])  # type: ignore[no-any-return]


def clip_xyxy(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> Boxes:
    """Boxes cut at the border of an image of height and width `image_hw`."""
    height, width = image_hw
    clip: Callable[[Any, int], Any] = (
        (lambda v, top: np.clip(v, 0, top)) if isinstance(boxes_xyxy, np.ndarray) else (lambda v, top: v.clamp(0, top))
    )
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _like(boxes_xyxy, [clip(x1, width), clip(y1, height), clip(x2, width), clip(y2, height)])  # type: ignore[no-any-return]


def area_xyxy(boxes_xyxy: Any) -> Any:
    """Area in square pixels, shape (...,); a box of negative width or height counts as it is computed."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _fit_letterbox(source_hw: tuple[int, int], canvas_hw: tuple[int, int], upscale: bool) -> tuple[int, int]:
    scale = min(canvas_hw[0] / source_hw[0], canvas_hw[1] / source_hw[1])
    if not upscale:
        scale = min(scale, 1.0)
    height, width = (min(max(round(s * scale), 1), c) for s, c in zip(source_hw, canvas_hw, strict=True))
    return height, width


def _fit_stretch(source_hw: tuple[int, int], canvas_hw: tuple[int, int], upscale: bool) -> tuple[int, int]:
    return canvas_hw


# How an image is fitted into a canvas: (source_hw, canvas_hw, upscale) -> the size it is resized to.
FITS: dict[str, Callable[[tuple[int, int], tuple[int, int], bool], tuple[int, int]]] = {
    "letterbox": _fit_letterbox,
    "stretch": _fit_stretch,
}


@dataclass(frozen=True)
class Letterbox:
    """How one image was fitted into one canvas, with the size and padding really used.

    The resized image is centred; an odd padding puts the extra pixel at the bottom or right. Because the resized size
    is a whole number of pixels, the two axes may scale by slightly different factors: both are kept, both are inverted.

    Attributes:
        source_hw: height and width of the source image.
        canvas_hw: height and width of the canvas.
        resized_hw: height and width of the image on the canvas.
    """

    source_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    resized_hw: tuple[int, int]

    @classmethod
    def fit(
        cls, source_hw: tuple[int, int], canvas_hw: tuple[int, int], mode: str = "letterbox", upscale: bool = True
    ) -> Letterbox:
        """The letterbox of a source in a canvas.

        Args:
            source_hw: height and width of the source, both at least 1.
            canvas_hw: height and width of the canvas, both at least 1.
            mode: a key of `FITS`: `letterbox` keeps the aspect ratio and pads, `stretch` fills the canvas.
            upscale: whether a source smaller than the canvas is enlarged (letterbox mode only).

        Raises:
            ValueError: a side below 1 or an unknown mode.
        """
        if min(*source_hw, *canvas_hw) < 1:
            raise ValueError(f"Letterbox.fit wants sides of at least 1 pixel, found {source_hw} into {canvas_hw}")
        if mode not in FITS:
            raise ValueError(f"Letterbox.fit wants a mode of {sorted(FITS)}, found {mode!r}")
        return cls(source_hw, canvas_hw, FITS[mode](source_hw, canvas_hw, upscale))

    @property
    def padding_top_left(self) -> tuple[int, int]:
        """Padding in pixels above and to the left of the image."""
        return (self.canvas_hw[0] - self.resized_hw[0]) // 2, (self.canvas_hw[1] - self.resized_hw[1]) // 2

    @property
    def scale_hw(self) -> tuple[float, float]:
        """Canvas pixels per source pixel, vertically and horizontally."""
        return self.resized_hw[0] / self.source_hw[0], self.resized_hw[1] / self.source_hw[1]

    def apply(self, image: Image) -> Image:
        """The image on its canvas: bilinear (OpenCV's arithmetic), padded with `PADDING_VALUE`.

        Args:
            image: uint8 (H, W, C) of size `source_hw`.

        Returns:
            uint8 (canvas H, canvas W, C), contiguous.
        """
        if image.shape[:2] != self.source_hw:
            raise ValueError(f"Letterbox.apply wants an image of {self.source_hw}, found {image.shape[:2]}")
        height, width = self.resized_hw
        if image.shape[:2] != self.resized_hw:
            shape = (height, width, image.shape[2])  # OpenCV drops a last axis of 1
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8).reshape(
                shape
            )
        if self.resized_hw == self.canvas_hw:
            return np.ascontiguousarray(image)
        top, left = self.padding_top_left
        canvas = np.full((*self.canvas_hw, image.shape[2]), PADDING_VALUE, dtype=np.uint8)
        canvas[top : top + height, left : left + width] = image
        return canvas

    def _scale_and_offset(self, boxes: Any) -> tuple[Any, Any]:
        (scale_y, scale_x), (top, left) = self.scale_hw, self.padding_top_left
        scale, offset = (scale_x, scale_y, scale_x, scale_y), (left, top, left, top)
        if isinstance(boxes, np.ndarray):
            return np.asarray(scale, boxes.dtype), np.asarray(offset, boxes.dtype)
        return boxes.new_tensor(scale), boxes.new_tensor(offset)

    def boxes_to_canvas(self, source_xyxy: Boxes) -> Boxes:
        """Boxes of the source image, in pixels of the canvas."""
        scale, offset = self._scale_and_offset(source_xyxy)
        return source_xyxy * scale + offset  # type: ignore[no-any-return]

    def boxes_to_source(self, canvas_xyxy: Boxes) -> Boxes:
        """Boxes on the canvas, in pixels of the source image; not clipped."""
        scale, offset = self._scale_and_offset(canvas_xyxy)
        return (canvas_xyxy - offset) / scale  # type: ignore[no-any-return]

    def matrix(self) -> npt.NDArray[np.float64]:
        """The same map as a 3x3 matrix on continuous source coordinates (x, y, 1)."""
        (scale_y, scale_x), (top, left) = self.scale_hw, self.padding_top_left
        return np.array([[scale_x, 0, left], [0, scale_y, top], [0, 0, 1]], dtype=np.float64)
