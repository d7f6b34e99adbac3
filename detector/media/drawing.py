"""Pictures for people: detections on an image, the samples of a batch side by side."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from detector.geometry import PADDING_VALUE, Image
from detector.structures import Detections, Sample

_GOLDEN_RATIO = 0.618033988749895  # successive hues by this share of the circle stay far apart
_IGNORED_RGB = (150, 150, 150)
_TITLE_PX = 24
_MAX_CAPTIONS = 12  # on a small picture more hide what they name


def class_colour(label: int) -> tuple[int, int, int]:
    """A lasting RGB colour for a class index."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * _GOLDEN_RATIO) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def as_rgb(image: Image) -> Image:
    """A copy with three channels: grey repeated, planes beyond the third left out."""
    if image.shape[2] < 3:
        return np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3]).copy()


def draw_boxes(
    image: Image,
    boxes_xyxy: npt.NDArray[np.float32],
    captions: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> Image:
    """A copy of an RGB image with boxes and captions; line and text sizes follow the image's size."""
    picture = as_rgb(image)
    height, width = picture.shape[:2]
    thickness = max(1, round(min(height, width) / 300))
    text_scale = max(0.35, min(height, width) / 1100)
    for (x1, y1, x2, y2), caption, colour in zip(np.rint(boxes_xyxy).astype(int), captions, colours, strict=True):
        cv2.rectangle(picture, (int(x1), int(y1)), (int(x2), int(y2)), colour, thickness, cv2.LINE_AA)
        if caption:
            _draw_caption(picture, caption, (int(x1), int(y1)), colour, text_scale)
    return picture


def _draw_caption(
    picture: Image, caption: str, corner_xy: tuple[int, int], colour: tuple[int, int, int], scale: float
) -> None:
    # The built-in font knows ASCII only; a letter it lacks is shown by its code point.
    text = caption.encode("ascii", "backslashreplace").decode("ascii")
    weight = max(1, round(scale * 1.8))
    (text_w, text_h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    x = max(0, min(corner_xy[0], picture.shape[1] - text_w - 2))
    y = corner_xy[1] - 2 if corner_xy[1] >= text_h + below + 2 else corner_xy[1] + text_h + below
    cv2.rectangle(picture, (x, y - text_h - below // 2), (x + text_w + 2, y + below // 2 + 1), colour, cv2.FILLED)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    cv2.putText(picture, text, (x + 1, y), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, weight, cv2.LINE_AA)


def draw_detections(image: Image, detections: Detections) -> Image:
    """A copy of an image, RGB, with its detections."""
    labels = detections.labels.tolist()
    captions = [f"{name} {score:.2f}" for name, score in zip(detections.names, detections.scores.tolist(), strict=True)]
    order = slice(None, None, -1)  # the most certain one is drawn last, on top
    return draw_boxes(
        image,
        detections.source_xyxy.numpy()[order],
        captions[order],
        [class_colour(label) for label in labels][order],
    )


def draw_batch(samples: Sequence[Sample], class_names: Sequence[str]) -> Image:
    """The samples of a batch with their boxes on one sheet, RGB; crowd regions are grey."""
    return _sheet([_draw_sample(sample, class_names) for sample in samples], math.ceil(math.sqrt(len(samples))))


def draw_tiles(
    samples: Sequence[Sample], class_names: Sequence[str], titles: Sequence[str], width_px: int = 320
) -> Image:
    """Samples with their boxes on one sheet, RGB, each as wide as asked and under a title; captions only where few."""
    tiles = []
    for sample, title in zip(samples, titles, strict=True):
        scale = width_px / sample.image.shape[1]
        height_px = max(1, round(sample.image.shape[0] * scale))
        small = cv2.resize(as_rgb(sample.image), (width_px, height_px), interpolation=cv2.INTER_AREA)
        names = class_names if len(sample.labels) <= _MAX_CAPTIONS else [""] * len(class_names)
        resized = replace(sample, image=np.asarray(small, np.uint8), canvas_xyxy=sample.canvas_xyxy * np.float32(scale))
        tile = np.full((height_px + _TITLE_PX, width_px, 3), PADDING_VALUE // 2, np.uint8)
        tile[_TITLE_PX:] = _draw_sample(resized, names)
        text = title.encode("ascii", "backslashreplace").decode("ascii")
        cv2.putText(tile, text, (4, _TITLE_PX - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    return _sheet(tiles, max(1, math.ceil(math.sqrt(len(tiles) * 4 / 3))))  # wider than high, as screens are


def _draw_sample(sample: Sample, class_names: Sequence[str]) -> Image:
    captions = ["ignore" if i else class_names[label] for label, i in zip(sample.labels, sample.ignore, strict=True)]
    colours = [_IGNORED_RGB if i else class_colour(int(c)) for c, i in zip(sample.labels, sample.ignore, strict=True)]
    return draw_boxes(sample.image, sample.canvas_xyxy, captions, colours)


def _sheet(tiles: Sequence[Image], columns: int) -> Image:
    rows = math.ceil(len(tiles) / columns)
    height, width = tiles[0].shape[:2]
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), PADDING_VALUE // 2, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + 4), number % columns * (width + 4)
        sheet[top : top + height, left : left + width] = tile
    return sheet
