"""Drawing of boxes: detections on an image, the samples of a batch side by side."""

from __future__ import annotations

import functools
import math
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from detector.media.captions import RGB, caption, lay, place_captions
from detector.structures.letterbox import PADDING_VALUE, Image
from detector.structures.types import Detections, Sample

IGNORED_RGB = (150, 150, 150)
GROUND_RGB = (PADDING_VALUE // 2,) * 3  # background of sheets
_TITLE_PX, _TITLE_TEXT_PX = 24, 13
# More captions than this on a small picture, or on more than this share of a larger one, hide the objects.
_MAX_CAPTIONS, _CAPTION_SHARE = 12, 0.1
# Sizes as shares of the side of a square with the picture's area, and of a box's sides.
_LINE_SHARE, _TEXT_SHARE, _MIN_TEXT_PX = 1 / 300, 1 / 50, 11
_LINE_SHARE_OF_BOX, _TEXT_SHARE_OF_BOX = 1 / 12, 1 / 3
# Chosen from a grid of saturated colours so that the least CIEDE2000 difference of two of them is greatest (19.1).
_COLOURS: tuple[RGB, ...] = (
    (255, 72, 120), (168, 48, 72), (255, 168, 144), (255, 48, 0), (144, 48, 0), (255, 144, 0), (96, 72, 0),
    (168, 144, 72), (255, 216, 0), (96, 144, 0), (192, 216, 144), (48, 255, 0), (0, 96, 48), (24, 255, 192),
    (48, 168, 144), (0, 240, 255), (24, 168, 216), (48, 120, 255), (0, 72, 168), (168, 168, 240), (120, 0, 255),
    (255, 144, 255), (120, 48, 120), (216, 48, 192),
)  # fmt: skip
_UNTRACKED = (160, 160, 160)  # detections without a track
_STEP = 5  # to the next colour if one is taken: a clearly different one, and coprime to their number to reach all


@functools.lru_cache(maxsize=64)
def class_colours(class_names: tuple[str, ...]) -> tuple[RGB, ...]:
    """Return an RGB colour for each class.

    The colour follows from the name, so a class has the same colour in every run and model, unless a class earlier in
    the alphabet has taken it. Up to 24 classes have different colours.
    """
    colour_of: dict[str, RGB] = {}
    num, taken = len(_COLOURS), set[int]()
    plain = [unicodedata.normalize("NFC", name).casefold() for name in class_names]
    for name in sorted(set(plain)):
        place = zlib.crc32(name.encode("utf-8", "surrogatepass")) % num
        while place in taken and len(taken) < num:
            place = (place + _STEP) % num
        taken.add(place)
        colour_of[name] = _COLOURS[place]
    return tuple(colour_of[name] for name in plain)


def as_rgb(image: Image) -> Image:
    """Return a copy with three channels: grey is repeated, channels beyond the third are dropped."""
    if image.shape[2] < 3:
        return np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3]).copy()


def draw_boxes(
    image: Image, boxes_xyxy: npt.NDArray[np.float32], captions: Sequence[str], colours: Sequence[RGB]
) -> Image:
    """Return a copy of an image, RGB, with boxes and captions, whose size follows the image and each box.

    A crowded picture gets captions for the boxes on top only: at least 12, and as many as cover a tenth of it.

    Args:
        image: uint8 (H, W, C).
        boxes_xyxy: (N, 4), pixels; later boxes are on top, and their captions are placed first.
        captions: one text per box, which may be empty.
        colours: RGB, one per box.
    """
    picture = as_rgb(image)
    height, width = picture.shape[:2]
    side = math.sqrt(height * width)
    # Corners this far away are outside the picture, so clipping them changes nothing visible.
    corners = np.rint(np.asarray(boxes_xyxy).clip(-2 * side, 3 * side)).astype(np.int64).reshape(-1, 4)
    patches = []
    for (x1, y1, x2, y2), text, colour in zip(corners.tolist(), captions, colours, strict=True):
        short, long = sorted((x2 - x1, y2 - y1))
        line_px = max(1, round(min(_LINE_SHARE * side, _LINE_SHARE_OF_BOX * short)))
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line_px, cv2.LINE_AA)
        text_px = round(max(_MIN_TEXT_PX, min(_TEXT_SHARE * side, _TEXT_SHARE_OF_BOX * long)))
        patches.append(caption(text, text_px, colour) if text else None)
    rows = [row for row, patch in enumerate(patches) if patch is not None][::-1]
    shown = [patch for patch in patches if patch is not None][::-1]
    covered_px = np.cumsum([patch[..., 0].size for patch in shown])
    num_shown = max(_MAX_CAPTIONS, int((covered_px <= _CAPTION_SHARE * side**2).sum()))
    rows, shown = rows[:num_shown], shown[:num_shown]
    sizes_wh = np.array([patch.shape[1::-1] for patch in shown], np.int64).reshape(-1, 2)
    places = place_captions(corners[rows], sizes_wh, (height, width))
    for patch, left_top in zip(shown[::-1], places[::-1].tolist(), strict=True):
        lay(picture, patch, left_top)
    return picture


def draw_detections(image: Image, detections: Detections, track_ids: npt.NDArray[np.int64] | None = None) -> Image:
    """Return a copy of an image, RGB, with its detections, or with tracks if track ids, int64 (N,), are given."""
    if track_ids is not None:
        return _draw_tracks(image, detections, track_ids)
    labels = detections.labels.tolist()
    captions = [f"{name} {score:.2f}" for name, score in zip(detections.names, detections.scores.tolist(), strict=True)]
    colours = class_colours(detections.class_names)
    order = slice(None, None, -1)  # the highest score is drawn last, on top
    return draw_boxes(
        image, detections.source_xyxy.numpy()[order], captions[order], [colours[label] for label in labels][order]
    )


def _draw_tracks(image: Image, detections: Detections, track_ids: npt.NDArray[np.int64]) -> Image:
    """Draw tracks; captions and order do not depend on scores, so that they do not flicker from frame to frame."""
    order = np.argsort(-track_ids)  # the first tracks on top
    names, ids = detections.names, track_ids[order].tolist()
    captions = [f"{names[row]} {i}" if i > 0 else names[row] for row, i in zip(order.tolist(), ids, strict=True)]
    colours = [_COLOURS[_STEP * i % len(_COLOURS)] if i > 0 else _UNTRACKED for i in ids]
    return draw_boxes(image, detections.source_xyxy.numpy()[order], captions, colours)


def draw_batch(samples: Sequence[Sample], class_names: Sequence[str]) -> Image:
    """Draw the samples of a batch with their boxes on one sheet, RGB; crowd regions are grey."""
    return _sheet([_draw_sample(sample, class_names) for sample in samples], math.ceil(math.sqrt(len(samples))))


def draw_tiles(
    samples: Sequence[Sample], class_names: Sequence[str], titles: Sequence[str], width_px: int = 320
) -> Image:
    """Draw samples with their boxes on one sheet, RGB, each below its title; only samples of few boxes get captions."""
    tiles = []
    for sample, title in zip(samples, titles, strict=True):
        scale = width_px / sample.image.shape[1]
        height_px = max(1, round(sample.image.shape[0] * scale))
        small = cv2.resize(as_rgb(sample.image), (width_px, height_px), interpolation=cv2.INTER_AREA)
        resized = replace(sample, image=np.asarray(small, np.uint8), canvas_xyxy=sample.canvas_xyxy * np.float32(scale))
        tile = np.full((height_px + _TITLE_PX, width_px, 3), GROUND_RGB, np.uint8)
        tile[_TITLE_PX:] = _draw_sample(resized, class_names, len(sample.labels) <= _MAX_CAPTIONS)
        lay(tile, caption(title, _TITLE_TEXT_PX, GROUND_RGB), (0, 3))
        tiles.append(tile)
    return _sheet(tiles, max(1, math.ceil(math.sqrt(len(tiles) * 4 / 3))))  # wider than high, like screens


def _draw_sample(sample: Sample, class_names: Sequence[str], has_captions: bool = True) -> Image:
    captions = [
        ("ignore" if i else class_names[label]) * has_captions
        for label, i in zip(sample.labels, sample.ignore, strict=True)
    ]
    of_class = class_colours(tuple(class_names))
    colours = [IGNORED_RGB if i else of_class[int(c)] for c, i in zip(sample.labels, sample.ignore, strict=True)]
    return draw_boxes(sample.image, sample.canvas_xyxy, captions, colours)


def _sheet(tiles: Sequence[Image], columns: int) -> Image:
    rows = math.ceil(len(tiles) / columns)
    height, width = tiles[0].shape[:2]
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), PADDING_VALUE // 2, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + 4), number % columns * (width + 4)
        sheet[top : top + height, left : left + width] = tile
    return sheet
