"""Drawing of lines and zones with their counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from detector.media.captions import RGB, caption, lay
from detector.structures.letterbox import Image

Point = tuple[float, float]

_LINE_RGB: RGB = (255, 255, 255)
_TINT = 0.18  # of a zone
_LINE_SHARE, _TEXT_SHARE, _MIN_TEXT_PX = 1 / 250, 1 / 40, 12  # of the side of a square with the picture's area


def draw_regions(
    picture: Image,
    lines: Sequence[tuple[Point, Point, str, str]],
    zones: Sequence[tuple[Sequence[Point], str]],
) -> Image:
    """Return a copy of a picture with lines and zones.

    Args:
        picture: uint8 (H, W, 3), RGB.
        lines: two points each, and the texts on the left and on the right, seen from the first to the second point.
        zones: the corners of each, and the text in it.
    """
    drawn = picture.copy()
    side = math.sqrt(picture.shape[0] * picture.shape[1])
    line_px, text_px = max(1, round(_LINE_SHARE * side)), round(max(_MIN_TEXT_PX, _TEXT_SHARE * side))
    for corners, text in zones:
        outline = np.rint(np.array(corners)).astype(np.int32).reshape(-1, 1, 2)
        tinted = cv2.fillPoly(drawn.copy(), [outline], _LINE_RGB)
        drawn = np.asarray(cv2.addWeighted(tinted, _TINT, drawn, 1 - _TINT, 0), np.uint8)
        cv2.polylines(drawn, [outline], True, _LINE_RGB, line_px, cv2.LINE_AA)
        _write(drawn, text, text_px, np.array(corners).mean(axis=0))
    for start, end, left, right in lines:
        first, last = np.rint(start).astype(int).tolist(), np.rint(end).astype(int).tolist()
        cv2.line(drawn, first, last, _LINE_RGB, line_px, cv2.LINE_AA)
        along = np.subtract(end, start) / math.dist(start, end)
        to_right = np.array([-along[1], along[0]])  # the y axis points down
        for text, way in ((left, -to_right), (right, to_right)):
            _write(drawn, text, text_px, np.add(start, end) / 2 + 1.5 * text_px * way)
    return drawn


def _write(picture: Image, text: str, text_px: int, middle: npt.NDArray[np.float64]) -> None:
    patch = caption(text, text_px, (0, 0, 0))
    height, width = patch.shape[:2]
    left = max(0, min(round(middle[0] - width / 2), picture.shape[1] - width))
    top = max(0, min(round(middle[1] - height / 2), picture.shape[0] - height))
    lay(picture, patch, (left, top))
