"""Close-ups: a part of an image around some boxes, enlarged or reduced, with the boxes drawn."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from detector.media.drawing import as_rgb, draw_boxes
from detector.structures.letterbox import Image

# A part is this many times as wide as the boxes, and at least this share of the image's shorter side.
_ENLARGED, _LEAST_SHARE = 2.0, 0.12


def draw_closeup(
    image: Image,
    source_xyxy: npt.NDArray[np.float64],
    captions: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    num_meant: int,
    longer_px: int = 360,
) -> Image:
    """Draw a square part of an image around some boxes, with these and other boxes on it.

    Args:
        image: uint8 (H, W, C).
        source_xyxy: float64 (N, 4), pixels of the image; the boxes that the picture is about come last, on top.
        captions: one text per box, which may be empty.
        colours: RGB, one per box.
        num_meant: number of boxes that the picture is about, at least 1.
        longer_px: longer side of the picture.

    Returns:
        uint8 (h, w, 3), RGB.
    """
    least_px = max(_LEAST_SHARE * min(image.shape[:2]), 8.0)
    x1, y1, x2, y2 = part_around(source_xyxy[-num_meant:], image.shape[:2], _ENLARGED, least_px)
    part = as_rgb(image)[y1:y2, x1:x2]
    scale = longer_px / max(part.shape[:2])
    drawn_wh = [max(1, round(side * scale)) for side in (part.shape[1], part.shape[0])]
    drawn = cv2.resize(part, drawn_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    boxes = ((source_xyxy - (x1, y1, x1, y1)) * scale).clip(-longer_px, 2 * longer_px).astype(np.float32)
    return draw_boxes(np.asarray(drawn, np.uint8), boxes, captions, colours)


def part_around(
    source_xyxy: npt.NDArray[np.float64], image_hw: tuple[int, ...], enlarged: float, least_px: float
) -> tuple[int, int, int, int]:
    """Return a square part of an image around some boxes, cut at its border: x1, y1, x2, y2 in whole pixels.

    Args:
        source_xyxy: float64 (N, 4), the boxes, at least one.
        image_hw: height and width of the image.
        enlarged: side of the part, as a multiple of the longer side of the boxes together.
        least_px: least side of the part.
    """
    height, width = image_hw[:2]
    low, high = source_xyxy[:, :2].min(axis=0), source_xyxy[:, 2:].max(axis=0)
    half = max(enlarged * float((high - low).max()), least_px) / 2
    centre = ((low + high) / 2).clip(0, (width, height))
    x1, y1 = np.floor(np.maximum(centre - half, 0)).astype(int).tolist()
    x2, y2 = np.ceil(np.minimum(centre + half, (width, height))).astype(int).tolist()
    return x1, y1, x2, y2


def part_jpeg(part: Image, longer_px: int) -> bytes:
    """Return a part of an image as a JPEG whose longer side has at most the given number of pixels."""
    scale = min(1.0, longer_px / max(part.shape[:2]))
    drawn_wh = [max(1, round(side * scale)) for side in (part.shape[1], part.shape[0])]
    drawn = cv2.resize(as_rgb(part), drawn_wh, interpolation=cv2.INTER_AREA) if scale < 1 else as_rgb(part)
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(drawn[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])[1])
