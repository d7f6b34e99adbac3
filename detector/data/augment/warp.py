"""Geometry of augmentation: matrices, the warp of pixels, and the boxes that follow them.

Matrices act on continuous coordinates (x, y, 1): an image of width w spans [0, w]. All random numbers come from the
generator that is passed in, which the caller seeds by (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from detector.data.augment.augment_config import AugmentConfig
from detector.structures.boxes import area_xyxy, clip_xyxy
from detector.structures.letterbox import PADDING_VALUE, Image
from detector.structures.types import ImageObjects

Matrix = npt.NDArray[np.float64]  # 3x3, on continuous coordinates (x, y, 1)
Float64s = npt.NDArray[np.float64]

# An object that the border cuts is kept if this share of its area and this many pixels of each side stay visible. A
# whole object is kept however small it is, because evaluation counts it too.
MIN_VISIBLE_SHARE = 0.10
MIN_SIDE_PX = 2.0
_ROUNDING_PX = 1e-3  # by which a box that touches the border may exceed it


def blank_canvas(canvas_hw: tuple[int, int], channels: int) -> Image:
    """Return a canvas filled with the grey of the padding."""
    return np.full((*canvas_hw, channels), PADDING_VALUE, dtype=np.uint8)


# --- matrices ------------------------------------------------------------------------------------------------------


def translation(x: float, y: float) -> Matrix:
    """Return the matrix of a shift by (x, y) pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def scaling(x: float, y: float) -> Matrix:
    """Return the matrix of a zoom about the origin."""
    return np.diag([x, y, 1.0])


def random_affine(config: AugmentConfig, canvas_hw: tuple[int, int], rng: np.random.Generator) -> Matrix:
    """Return a matrix of zoom, rotation, shear, mirroring and shift; the origin moves near the centre of the canvas."""
    height, width = canvas_hw
    zoom = rng.uniform(1 - config.scale, 1 + config.scale)
    angle = math.radians(rng.uniform(-config.degrees, config.degrees))
    shear_x, shear_y = (math.tan(math.radians(rng.uniform(-config.shear, config.shear))) for _ in range(2))
    shift_x, shift_y = (0.5 + rng.uniform(-config.translate, config.translate) for _ in range(2))
    mirror_x = -1.0 if rng.random() < config.flip_horizontal else 1.0
    mirror_y = -1.0 if rng.random() < config.flip_vertical else 1.0
    rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    matrix = scaling(mirror_x * zoom, mirror_y * zoom) @ rotation @ shear
    return np.asarray(translation(shift_x * width, shift_y * height) @ matrix)


def random_perspective(config: AugmentConfig, canvas_hw: tuple[int, int], rng: np.random.Generator) -> Matrix:
    """Return the matrix of a tilt about the centre of the canvas, which stays in place."""
    height, width = canvas_hw
    tilt_x, tilt_y = rng.uniform(-config.perspective, config.perspective, 2) / 2  # together at most `perspective`
    tilt = np.eye(3)
    tilt[2, :2] = tilt_x / (width / 2), tilt_y / (height / 2)
    return np.asarray(translation(width / 2, height / 2) @ tilt @ translation(-width / 2, -height / 2))


def mosaic_places(
    sources_hw: Sequence[tuple[int, int]], canvas_hw: tuple[int, int], rng: np.random.Generator
) -> list[Matrix]:
    """Return the matrices of four images, each fitted to the canvas, with one corner at a random point near the origin.

    The images lie in the four quadrants about that point, so they never overlap.
    """
    height, width = canvas_hw
    centre_x, centre_y = rng.uniform(-0.5, 0.5) * width, rng.uniform(-0.5, 0.5) * height
    places = []
    for quadrant, (source_h, source_w) in enumerate(sources_hw):
        fit = min(height / source_h, width / source_w)
        left = centre_x - (source_w * fit if quadrant % 2 == 0 else 0)
        top = centre_y - (source_h * fit if quadrant < 2 else 0)
        places.append(translation(left, top) @ scaling(fit, fit))
    return places


def nine_places(
    sources_hw: Sequence[tuple[int, int]], canvas_hw: tuple[int, int], rng: np.random.Generator
) -> list[Matrix]:
    """Return the matrices of nine images in a grid of 3 x 3 cells about a random point, the first in the centre cell.

    The point lies near the origin. A cell has two thirds of the height and width of the canvas, so that the grid is as
    large as a mosaic of four. Each image is fitted into its cell and moved towards the centre cell.
    """
    cell_h, cell_w = canvas_hw[0] * 2 / 3, canvas_hw[1] * 2 / 3
    centre_x, centre_y = rng.uniform(-0.5, 0.5) * cell_w, rng.uniform(-0.5, 0.5) * cell_h
    cells = [(0, 0), *((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column)]
    places = []
    for (row, column), (source_h, source_w) in zip(cells, sources_hw, strict=True):
        fit = min(cell_h / source_h, cell_w / source_w)
        room_x, room_y = cell_w - source_w * fit, cell_h - source_h * fit  # free space in the cell
        left = centre_x + (column - 0.5) * cell_w + room_x * (1 - column) / 2
        top = centre_y + (row - 0.5) * cell_h + room_y * (1 - row) / 2
        places.append(translation(left, top) @ scaling(fit, fit))
    return places


# --- pixels --------------------------------------------------------------------------------------------------------


def warp_into(canvas: Image, image: Image, matrix: Matrix) -> None:
    """Draw an image onto a canvas by a matrix, with bilinear interpolation; the rest of the canvas stays as it is.

    The matrix maps continuous coordinates, OpenCV maps pixel centres, which are at + 0.5.
    """
    height, width = canvas.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    is_affine = _is_affine(matrix)
    if is_affine or (_depths(_whole(image), matrix) > 0).all():  # otherwise a corner lies behind the horizon
        first_x, first_y, last_x, last_y = _bounds(image, matrix) if is_affine else _projected_bounds(image, matrix)
        left, top = max(0, math.floor(first_x)), max(0, math.floor(first_y))
        right, bottom = min(width, math.ceil(last_x)), min(height, math.ceil(last_y))
    if left >= right or top >= bottom:
        return
    if is_affine:  # the same as below without matrix products, which is faster
        (a, b, c), (d, e, f) = matrix[:2].tolist()
        x, y = (a * 0.5 + b * 0.5) + (c - left - 0.5), (d * 0.5 + e * 0.5) + (f - top - 0.5)
        centred = np.array([[a, b, x], [d, e, y]])
    else:
        centred = translation(-left - 0.5, -top - 0.5) @ matrix @ translation(0.5, 0.5)
    for first in range(0, image.shape[2], 4):  # OpenCV warps at most four channels at a time
        part = canvas[top:bottom, left:right, first : first + 4]
        # OpenCV can write into a view of rows, but not into a view of channels.
        region = part if image.shape[2] <= 4 else np.ascontiguousarray(part)
        pixels = np.ascontiguousarray(image[..., first : first + 4])
        size_wh = (right - left, bottom - top)
        if is_affine:
            warped = cv2.warpAffine(
                pixels, centred, size_wh, region, cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
            )
        else:
            warped = cv2.warpPerspective(
                pixels, centred, size_wh, region, cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
            )
        if region is not part or not np.shares_memory(warped, canvas):
            part[...] = warped.reshape(part.shape)


def _whole(image: Image) -> Float64s:
    return np.array([[0, 0, image.shape[1], image.shape[0]]], np.float64)


def _bounds(image: Image, matrix: Matrix) -> tuple[float, float, float, float]:
    """Return the upright box around an image after an affine matrix, with plain numbers, which is faster."""
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    height, width = image.shape[:2]
    xs = (c, a * width + c, b * height + c, (a * width + b * height) + c)
    ys = (f, d * width + f, e * height + f, (d * width + e * height) + f)
    return min(xs), min(ys), max(xs), max(ys)


def _projected_bounds(image: Image, matrix: Matrix) -> tuple[float, float, float, float]:
    """Return the upright box around an image after a matrix with perspective."""
    corners = _project_corners(_whole(image), matrix)[0]
    (first_x, first_y), (last_x, last_y) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return first_x, first_y, last_x, last_y


# --- boxes ---------------------------------------------------------------------------------------------------------


def _is_affine(matrix: Matrix) -> bool:
    return bool(matrix[2, 0] == 0 and matrix[2, 1] == 0)


def _is_upright(matrix: Matrix) -> bool:
    return _is_affine(matrix) and bool(matrix[0, 1] == 0 and matrix[1, 0] == 0)


def _corners(xyxy: npt.NDArray[np.float32] | Float64s) -> Float64s:
    return xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)


def transform_corners(xyxy: npt.NDArray[np.float32] | Float64s, matrix: Matrix) -> Float64s:
    """Return the four corners of boxes (N, 4) after an affine matrix: float64 (N, 4, 2)."""
    return np.asarray(_corners(xyxy) @ matrix[:2, :2].T + matrix[:2, 2])


def _depths(xyxy: npt.NDArray[np.float32] | Float64s, matrix: Matrix) -> Float64s:
    """Return the divisor of each corner under a perspective, (N, 4); 0 or less where the corner is not visible."""
    return np.asarray(_corners(xyxy) @ matrix[2, :2] + matrix[2, 2])


def _project(points: Float64s, matrix: Matrix) -> Float64s:
    """Return points (..., 2) after any matrix."""
    return np.asarray(
        (points @ matrix[:2, :2].T + matrix[:2, 2]) / (points @ matrix[2, :2] + matrix[2, 2])[..., None], np.float64
    )


def _project_corners(xyxy: npt.NDArray[np.float32] | Float64s, matrix: Matrix) -> Float64s:
    return _project(_corners(xyxy), matrix)


def transform_objects(objects: ImageObjects, matrix: Matrix, canvas_hw: tuple[int, int]) -> ImageObjects:
    """Return objects after a matrix, as upright boxes of their visible parts.

    Objects that are mostly outside are dropped, ignored regions only without a visible part: the rest of them would
    count as background.
    """
    if not _is_upright(matrix):
        return _transform_turned(objects, matrix, canvas_hw)
    scale, shift = matrix[[0, 1, 0, 1], [0, 1, 0, 1]], matrix[[0, 1, 0, 1], 2]
    moved = objects.xyxy.astype(np.float64) * scale + shift  # mirroring swaps the sides
    first, last = moved[:, :2], moved[:, 2:]
    whole = np.concatenate([np.minimum(first, last), np.maximum(first, last)], axis=1)
    clipped = clip_xyxy(whole, canvas_hw)
    visible = area_xyxy(clipped) > MIN_VISIBLE_SHARE * area_xyxy(whole)
    return _visible_objects(objects, clipped, visible, (np.abs(clipped - whole) < _ROUNDING_PX).all(axis=1))


def _visible_objects(
    objects: ImageObjects, clipped: Float64s, visible: npt.NDArray[np.bool_], whole: npt.NDArray[np.bool_]
) -> ImageObjects:
    """Return the objects to keep, from their visible parts, which of them are large enough and which are uncut."""
    sides = clipped[:, 2:] - clipped[:, :2]
    keep = whole | objects.ignore | (visible & (sides >= MIN_SIDE_PX).all(axis=1))
    keep &= (sides > 0).all(axis=1)
    return ImageObjects(clipped.astype(np.float32), objects.labels, objects.ignore)[keep]


def _transform_turned(objects: ImageObjects, matrix: Matrix, canvas_hw: tuple[int, int]) -> ImageObjects:
    """Return objects after rotation, shear or perspective, where clipping the upright box would leave it too large.

    The border of the canvas is projected back to the source, where every point of it lies in front of the horizon, and
    cuts the boxes there; the bounds of the remaining polygon are taken on the canvas.
    """
    height, width = canvas_hw
    with np.errstate(divide="ignore", invalid="ignore"):  # corners at the horizon, which the depths identify
        corners = _project_corners(objects.xyxy, matrix)
    bounds = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    in_front = (_depths(objects.xyxy, matrix) > 0).all(axis=1)
    limit = np.array([width, height], np.float64)
    whole = np.asarray(in_front & (bounds[:, :2] >= 0).all(axis=1) & (bounds[:, 2:] <= limit).all(axis=1))
    outside = in_front & ((bounds[:, 2:] <= 0).any(axis=1) | (bounds[:, :2] >= limit).any(axis=1))
    visible = np.array(whole)
    border = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    source_border = _project(border, np.asarray(np.linalg.inv(matrix), np.float64))
    for row in np.flatnonzero(~whole & ~outside).tolist():
        box = objects.xyxy[row].astype(np.float64)
        polygon = _cut(source_border, box)
        visible[row] = _area(polygon) > (0 if objects.ignore[row] else MIN_VISIBLE_SHARE * area_xyxy(box))
        if visible[row]:
            points = _project(polygon, matrix)
            bounds[row] = *points.min(axis=0), *points.max(axis=0)
    bounds[~visible] = 0
    return _visible_objects(objects, clip_xyxy(bounds, canvas_hw), visible, whole)


def _cut(polygon: Float64s, box_xyxy: Float64s) -> Float64s:
    """Return the part of a convex polygon (K, 2) inside a box, cut side by side (Sutherland and Hodgman 1974)."""
    for axis, sign, bound in ((0, 1, box_xyxy[0]), (1, 1, box_xyxy[1]), (0, -1, box_xyxy[2]), (1, -1, box_xyxy[3])):
        inside_px = sign * (polygon[:, axis] - bound)
        points: list[Float64s] = []
        for i in range(len(polygon)):
            before, after = inside_px[i - 1], inside_px[i]
            if (before < 0) != (after < 0):
                points.append(polygon[i - 1] + (polygon[i] - polygon[i - 1]) * (before / (before - after)))
            if after >= 0:
                points.append(polygon[i])
        if not points:
            return np.zeros((0, 2))
        polygon = np.array(points)
    return polygon


def _area(polygon: Float64s) -> float:
    following = np.roll(polygon, -1, axis=0)
    return abs(float((polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]).sum())) / 2
