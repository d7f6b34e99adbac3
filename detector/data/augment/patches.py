"""Parts of images: windows that cut no object, objects pasted from another image, rectangles that hide parts."""

from __future__ import annotations

import math

import cv2
import numpy as np

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmentation import Augmentation
from detector.data.augment.warp import MIN_SIDE_PX, Float64s, transform_objects, translation
from detector.structures.boxes import area_xyxy, clip_xyxy
from detector.structures.letterbox import PADDING_VALUE, Image
from detector.structures.types import ImageObjects

SMALLEST_CROP = 0.3  # least side of a window as a share of the side of the image; objects may make it larger
MAX_PASTED_OVER = 0.3  # share of an object that all pasted objects together may hide
MAX_CUT_OUT = 0.5  # share of an object that all grey rectangles together may hide
TILES_WITH_OBJECT = 0.75  # share of the tiles that are placed on an object; the others show the background, too
NUM_PLACES_TRIED = 4
NUM_RECTANGLES_TRIED = 24
# Sides of a grey rectangle as shares of those of the canvas (Zhong et al. 2020 use one rectangle of 2 to 40 % of the
# area and an aspect ratio of 0.3 to 3.3; several smaller ones leave more of each object visible).
RECTANGLE_SIDES = (1 / 32, 1 / 4)


def _intersections(box_xyxy: Float64s, others_xyxy: Float64s) -> Float64s:
    """Return the area that one box shares with each of the others (N, 4)."""
    sides = np.minimum(box_xyxy[2:], others_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    return np.asarray(np.clip(sides, 0, None).prod(axis=1))


def _hidden_shares(covered_xyxy: Float64s, boxes_xyxy: Float64s) -> Float64s:
    """Return the share of each box (N, 4) under a rectangle; a box below one square pixel counts as one."""
    return np.asarray(_intersections(covered_xyxy, boxes_xyxy) / np.maximum(area_xyxy(boxes_xyxy), 1.0))


# --- windows -------------------------------------------------------------------------------------------------------


def crop_window(
    objects: ImageObjects, image_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Return a random window (left, top, right, bottom) in whole pixels that holds an object and cuts none.

    It is drawn around one object and grows until every other object is wholly inside or wholly outside. Ignored regions
    may be cut. The result is None where there is no object to keep.
    """
    height, width = image_hw
    # One more pixel on each side, because the warp leaves out pixels at the border that it cannot interpolate.
    boxes = clip_xyxy(objects.xyxy[~objects.ignore].astype(np.float64) + np.array([-1, -1, 1, 1]), image_hw)
    if not len(boxes):
        return None
    kept = boxes[rng.integers(len(boxes))]
    window = np.empty(4)
    for axis, side in ((0, width), (1, height)):
        length = max(rng.uniform(SMALLEST_CROP, 1) * side, kept[axis + 2] - kept[axis])
        window[axis] = rng.uniform(max(0.0, kept[axis + 2] - length), min(kept[axis], side - length))
        window[axis + 2] = window[axis] + length
    while True:
        window = np.concatenate([np.floor(window[:2]), np.ceil(window[2:])])
        touched = boxes[_intersections(window, boxes) > 0]
        grown = np.concatenate([np.minimum(window[:2], touched[:, :2].min(axis=0, initial=math.inf)), window[2:]])
        grown[2:] = np.maximum(window[2:], touched[:, 2:].max(axis=0, initial=-math.inf))
        if (grown == window).all():
            left, top, right, bottom = clip_xyxy(window, image_hw).astype(int).tolist()
            return left, top, right, bottom
        window = grown


def tile_window(
    objects: ImageObjects, image_hw: tuple[int, int], tile: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return a random tile (left, top, right, bottom) of an image in whole pixels, as large as tiles of prediction.

    A share `TILES_WITH_OBJECT` of the tiles holds the centre of an object, each object alike, if there is one.

    Args:
        objects: the objects of the image; ignored regions attract no tile.
        image_hw: height and width of the image; a side shorter than the tile is kept whole.
        tile: side of the tile in pixels.
        rng: the source of every random number.
    """
    boxes = objects.xyxy[~objects.ignore].astype(np.float64)
    is_placed = rng.random() < TILES_WITH_OBJECT and len(boxes) > 0
    placed_xyxy = boxes[rng.integers(len(boxes))] if is_placed else None
    starts, ends = [], []
    for axis, side in enumerate(image_hw[::-1]):
        length = min(tile, side)
        first, last = 0, side - length
        if placed_xyxy is not None:
            centre = min(max((placed_xyxy[axis] + placed_xyxy[axis + 2]) / 2, 0.5), side - 0.5)
            first, last = max(first, math.ceil(centre - length)), min(last, math.floor(centre))
        starts.append(int(rng.integers(first, last, endpoint=True)))
        ends.append(starts[-1] + length)
    return starts[0], starts[1], ends[0], ends[1]


def crop_to(image: Image, objects: ImageObjects, window: tuple[int, int, int, int]) -> tuple[Image, ImageObjects]:
    """Return a window of an image, as a view, and the objects in it."""
    left, top, right, bottom = window
    return image[top:bottom, left:right], transform_objects(
        objects, translation(-left, -top), (bottom - top, right - left)
    )


# --- pasting -------------------------------------------------------------------------------------------------------


def paste_objects(
    canvas: Image,
    objects: ImageObjects,
    image: Image,
    others: ImageObjects,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> ImageObjects:
    """Paste objects of another image onto a canvas, each as the rectangle of its box, where they hide little.

    Each object of the other image is used with a probability of `copy_paste`, fitted as its whole image would be,
    zoomed and mirrored at random. An object without a suitable place is left out.

    Args:
        canvas: uint8 (H, W, C), changed in place.
        objects: the objects on the canvas.
        image: the other image, uint8 (h, w, C).
        others: the objects of the other image; ignored regions are never pasted.
        config: `copy_paste`, `scale` and `flip_horizontal` are read.
        rng: the source of every random number.

    Returns:
        The objects of the canvas and the pasted ones, which may be partly hidden; their boxes are never cut.
    """
    canvas_hw = (canvas.shape[0], canvas.shape[1])
    fit = min(canvas_hw[0] / image.shape[0], canvas_hw[1] / image.shape[1])
    present = objects.xyxy.astype(np.float64)
    hidden = np.zeros(len(present))
    labels: list[int] = []
    for box, label, ignore in zip(others.xyxy.astype(np.float64), others.labels.tolist(), others.ignore, strict=True):
        if ignore or rng.random() >= config.copy_paste:
            continue
        zoom = fit * rng.uniform(1 - config.scale, 1 + config.scale)
        patch, patch_xyxy = _patch(image, box, zoom, mirrored=bool(rng.random() < config.flip_horizontal))
        room_h, room_w = canvas_hw[0] - patch.shape[0], canvas_hw[1] - patch.shape[1]
        if min(room_h, room_w) < 0 or (patch_xyxy[2:] - patch_xyxy[:2] < MIN_SIDE_PX).any():
            continue
        for _ in range(NUM_PLACES_TRIED):
            top, left = int(rng.integers(room_h + 1)), int(rng.integers(room_w + 1))
            covered = np.array([left, top, left + patch.shape[1], top + patch.shape[0]], np.float64)
            more = _hidden_shares(covered, present)
            if ((hidden + more) > MAX_PASTED_OVER).any():
                continue
            canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
            present = np.concatenate([present, (patch_xyxy + covered[[0, 1, 0, 1]])[None]])
            hidden = np.concatenate([hidden + more, [0.0]])
            labels.append(label)
            break
    num = len(labels)
    pasted = ImageObjects(
        present[len(present) - num :].astype(np.float32), np.array(labels, np.int64), np.zeros(num, bool)
    )
    return ImageObjects.joined([objects, pasted])


def _patch(image: Image, box: Float64s, zoom: float, *, mirrored: bool) -> tuple[Image, Float64s]:
    """Return the pixels under a box at another size, and the box in pixels of this patch."""
    outer = clip_xyxy(np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]), (image.shape[0], image.shape[1]))
    left, top, right, bottom = outer.astype(int).tolist()
    pixels = np.ascontiguousarray(image[top:bottom, left:right])
    width, height = max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom))
    patch = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    patch = patch.reshape(height, width, image.shape[2])  # OpenCV drops a last axis of 1
    scale = np.array([width / (right - left), height / (bottom - top)] * 2)
    inner = clip_xyxy((box - [left, top, left, top]) * scale, (height, width))
    if mirrored:
        patch, inner = patch[:, ::-1], np.array([width - inner[2], inner[1], width - inner[0], inner[3]])
    return patch, inner


# --- hiding --------------------------------------------------------------------------------------------------------


def cut_out(canvas: Image, objects: ImageObjects, greatest_share: float, rng: np.random.Generator) -> None:
    """Hide parts of a canvas behind grey rectangles, in place; no object loses more than `MAX_CUT_OUT` of its area.

    Args:
        canvas: uint8 (H, W, C), changed in place.
        objects: the objects on the canvas; their boxes stay as they are.
        greatest_share: upper end of the range from 0 that the hidden share of the canvas is drawn from.
        rng: the source of every random number.
    """
    height, width = canvas.shape[:2]
    target_px = rng.uniform(0, greatest_share) * height * width
    boxes = objects.xyxy[~objects.ignore].astype(np.float64)
    hidden, covered_px = np.zeros(len(boxes)), 0
    for _ in range(NUM_RECTANGLES_TRIED):
        if covered_px >= target_px:
            return
        shares = np.exp(rng.uniform(math.log(RECTANGLE_SIDES[0]), math.log(RECTANGLE_SIDES[1]), 2)).tolist()
        side_h, side_w = max(1, round(height * shares[0])), max(1, round(width * shares[1]))
        top, left = int(rng.integers(height - side_h + 1)), int(rng.integers(width - side_w + 1))
        rectangle = np.array([left, top, left + side_w, top + side_h], np.float64)
        more = _hidden_shares(rectangle, boxes)
        if ((hidden + more) > MAX_CUT_OUT).any():
            continue
        hidden += more
        canvas[top : top + side_h, left : left + side_w] = PADDING_VALUE
        covered_px += side_h * side_w


class CutOut(Augmentation):
    """Grey rectangles that hide up to a share of the canvas."""

    def __init__(self, greatest_share: float) -> None:
        self._greatest_share = greatest_share

    def __call__(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> tuple[Image, ImageObjects]:
        """Hide parts of the canvas as `cut_out` does; boxes stay as they are."""
        cut_out(image, objects, self._greatest_share, rng)
        return image, objects
