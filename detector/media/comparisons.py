"""Ground truth next to predictions on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from detector.media.captions import caption, lay
from detector.media.drawing import GROUND_RGB, IGNORED_RGB, as_rgb, class_colours, draw_boxes
from detector.structures.letterbox import Image, Letterbox
from detector.structures.types import Detections

_LINE_PX, _GAP_PX, _MARGIN_PX, _TEXT_PX = 24, 4, 10, 13
_MAX_CAPTIONS = 12  # on a small picture, more captions hide the objects; the colours still tell the classes
_MAX_LEGEND = 40  # classes


@dataclass(frozen=True)
class ImageComparison:
    """Image with its ground truth and its detections.

    Attributes:
        name: title of the pair.
        image: uint8 (H, W, C).
        source_xyxy: float32 (N, 4), the boxes of the ground truth in pixels of the image.
        labels: int64 (N,), their 0-based class indices.
        is_crowd: bool (N,), regions that count neither as hit nor as miss.
        detections: the detections.
    """

    name: str
    image: Image
    source_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    detections: Detections


def draw_comparisons(
    compared: Sequence[ImageComparison], class_names: Sequence[str], tile_hw: tuple[int, int], columns: int = 2
) -> Image:
    """Draw a sheet, RGB, of pairs: ground truth on the left, detections on the right, and a legend of classes below.

    Args:
        compared: at least one image.
        class_names: name of each class index.
        tile_hw: height and width of each picture of a pair; images are letterboxed into it.
        columns: number of pairs side by side.
    """
    pairs = [_draw_pair(one, class_names, tile_hw) for one in compared]
    columns = min(columns, len(pairs))
    rows = [np.concatenate(pairs[i : i + columns], axis=1) for i in range(0, len(pairs), columns)]
    width = rows[0].shape[1]
    rows[-1] = np.pad(rows[-1], ((0, 0), (0, width - rows[-1].shape[1]), (0, 0)), constant_values=GROUND_RGB[0])
    shown = sorted({int(label) for one in compared for label in (*one.labels, *one.detections.labels.tolist())})
    return np.concatenate([*rows, _draw_legend(shown[:_MAX_LEGEND], class_names, width)])


def _draw_pair(one: ImageComparison, class_names: Sequence[str], tile_hw: tuple[int, int]) -> Image:
    height, width = tile_hw
    letterbox = Letterbox.fit((one.image.shape[0], one.image.shape[1]), tile_hw)
    canvas = letterbox.apply(as_rgb(one.image))
    crowd = one.is_crowd.tolist()
    colours = class_colours(tuple(class_names))
    has_names = len(one.labels) <= _MAX_CAPTIONS
    truth = draw_boxes(
        canvas,
        letterbox.boxes_to_canvas(one.source_xyxy),
        ["ignore" if c else class_names[k] * has_names for k, c in zip(one.labels, crowd, strict=True)],
        [IGNORED_RGB if c else colours[int(k)] for k, c in zip(one.labels, crowd, strict=True)],
    )
    detections = one.detections[list(range(len(one.detections)))[::-1]]  # the highest score is drawn last, on top
    named = [f"{name} " * (len(detections) <= _MAX_CAPTIONS) for name in detections.names]
    predicted = draw_boxes(
        canvas,
        letterbox.boxes_to_canvas(detections.source_xyxy.numpy()),
        [f"{name}{score:.2f}" for name, score in zip(named, detections.scores.tolist(), strict=True)],
        [colours[label] for label in detections.labels.tolist()],
    )
    pair = np.full((_LINE_PX + height + _MARGIN_PX, 2 * width + _GAP_PX + _MARGIN_PX, 3), GROUND_RGB, np.uint8)
    right = width + _GAP_PX
    pair[_LINE_PX : _LINE_PX + height, :width] = truth
    pair[_LINE_PX : _LINE_PX + height, right : right + width] = predicted
    title = f"{len(one.labels) - sum(crowd)} in {one.name}"
    room = max(8, width // 9)  # in letters
    _write(pair, title if len(title) <= room else f"{title[: room - 3]}...", (0, 3))
    _write(pair, f"{len(detections)} predicted", (right, 3))
    return pair


def _draw_legend(labels: Sequence[int], class_names: Sequence[str], width: int) -> Image:
    entry_px = 30 + 10 * min(24, max((len(class_names[label]) for label in labels), default=0))
    per_row = max(1, width // entry_px)
    legend = np.full((max(1, math.ceil(len(labels) / per_row)) * _LINE_PX, width, 3), GROUND_RGB, np.uint8)
    colours = class_colours(tuple(class_names))
    for number, label in enumerate(labels):
        x, y = number % per_row * entry_px + 4, number // per_row * _LINE_PX + 4
        cv2.rectangle(legend, (x, y), (x + 13, y + 13), colours[label], cv2.FILLED)
        _write(legend, class_names[label][:24], (x + 16, y - 1))
    return legend


def _write(picture: Image, text: str, left_top: tuple[int, int]) -> None:
    lay(picture, caption(text, _TEXT_PX, GROUND_RGB), left_top)
