"""The embedded data set: a seeded generator that draws shapes on cluttered grounds, so that nothing need be fetched.

Six classes that differ by shape alone: circle, square, triangle, star, cross, crescent. Every shape is stretched along
its own axes by a factor of 0.75 to 1.33 and turned by any angle; every mirror image and every turn keeps its class.
The difficulty, measured over the validation split by `tests/data/test_shapes.py` and fixed for a `GENERATOR_VERSION`,
so that numbers reported on it stay comparable:

- Colour says nothing: it is drawn from the whole RGB cube by the same rule for every class.
- Grounds are gradients, noise of several scales and stripes, with 4 to 16 distractors (bars, ribbons, angles, irregular
  blobs) which belong to no class and are painted exactly as the objects are.
- One image of every ten in a row is empty; the others hold 1 to 8 objects.
- The longer side of a box is 12 to 160 px in an image of 320 px, log-uniform (but for what does not fit), and scales
  with the image; below 320 px the lower end stays at 12 px, the least at which the six shapes can be told apart.
- Three objects of ten are outlines that one looks through, where the longer side is at least 28 px.
- Later objects hide at most 40 % of an earlier one's painted pixels; no two boxes of an image have an IoU above 0.6.
- The border of the image cuts off at most 20 % of an object's painted pixels; its box ends at the border.
- An object is visible: 80 % of the pixels in a rim of 3 px around it differ from its colour by at least 72 (Euclidean
  distance in RGB, of 441 at most) before shading and noise.

A pixel is painted when at least half of it is covered; a box spans the painted pixels of the whole object inside the
image, hidden ones included: [least column, greatest column + 1] and so for rows.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from detector.errors import DatasetError
from detector.geometry import Image, xyxy_to_xywh

Array = npt.NDArray[Any]

GENERATOR = "detector.data.shapes"
# Goes up with every change that alters a pixel or a box: numbers of two versions cannot be compared.
GENERATOR_VERSION = 1
# COCO category ids by label; not contiguous, as COCO's own are not, so that a confusion of label and id shows.
CATEGORY_IDS = {"circle": 3, "square": 7, "triangle": 11, "star": 20, "cross": 42, "crescent": 90}
CLASS_NAMES = tuple(CATEGORY_IDS)

# The stated difficulty; see the module's docstring.
REFERENCE_IMAGE_SIZE = 320
SIDE_RANGE_PX = (12, 160)
NUM_OBJECTS_RANGE = (1, 8)
NUM_DISTRACTORS_RANGE = (4, 16)
IMAGES_PER_EMPTY_IMAGE = 10
MAX_HIDDEN_SHARE = 0.40
MAX_CUT_SHARE = 0.20
MAX_BOX_IOU = 0.6
MAX_STRETCH = 4 / 3
OUTLINED_SHARE = 0.3
MIN_OUTLINED_SIDE_PX = 28
MIN_CONTRAST = 72
MIN_CONTRASTING_SHARE = 0.8
MIN_IMAGE_SIZE = 64  # the largest objects are then 32 px, still well above the smallest

_RIM_PX = 3
_PATCH_MARGIN_PX = _RIM_PX + 1  # the rim and one anti-aliased pixel
_SUBPIXELS = 4  # coverage in sixteenths
_NUM_PLACES_TRIED = 60
_NUM_COLOURS_TRIED = 12
_NEIGHBOUR_SHARE = 0.5  # of the places tried, those at the edge of an earlier object: chance alone overlaps too few
_JPEG_QUALITY = 95


def _circle_points(num_points: int, radius: float = 1.0, first: float = 0.0, last: float = 2 * np.pi) -> Array:
    angles = np.linspace(first, last, num_points, endpoint=last - first < 2 * np.pi)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Array:
    # 0.45: between the pentagram (0.38) and a fatter star, so that the arms survive at 12 px.
    return _circle_points(10) * np.tile([1.0, 0.45], 5)[:, None]


def _cross() -> Array:
    arm, half = 1.0, 0.3
    quarter = np.array([[half, half], [half, arm], [-half, arm]])
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([quarter @ turn.T for turn in turns])


def _crescent() -> Array:
    # The unit disc less a disc of radius 0.8 centred 0.55 to the right; the two circles meet at the horns.
    shift, inner_radius = 0.55, 0.8
    x = (1 + shift**2 - inner_radius**2) / (2 * shift)
    y = float(np.sqrt(1 - x**2))
    outer_angle, inner_angle = np.arctan2(y, x), np.arctan2(y, x - shift)
    outer = _circle_points(40, 1.0, outer_angle, 2 * np.pi - outer_angle)
    inner = _circle_points(30, inner_radius, 2 * np.pi - inner_angle, inner_angle) + [shift, 0]
    return np.concatenate([outer, inner[1:-1]])


# Closed outline of each class, (K, 2) float64 in (x, y), before stretching, turning and scaling.
OUTLINES: dict[str, Array] = {
    "circle": _circle_points(64),
    "square": _circle_points(4, first=np.pi / 4, last=9 * np.pi / 4),
    "triangle": _circle_points(3),
    "star": _star(),
    "cross": _cross(),
    "crescent": _crescent(),
}


@dataclass(frozen=True)
class Scene:
    """One drawn image and all that is known of it. N is the number of objects; a later object lies over an earlier one.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        background: uint8 (H, W, 3) RGB, the same image before any object was painted.
        boxes_xyxy: float64 (N, 4), pixels of the image, whole numbers.
        labels: int64 (N,), index into `CLASS_NAMES`.
        masks: bool (N, H, W), painted pixels of each whole object inside the image, hidden ones included.
        visible_share: float64 (N,), share of these pixels that no later object hides.
        cut_share: float64 (N,), share of the object's pixels that lie outside the image.
    """

    image: Image
    background: Image
    boxes_xyxy: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    visible_share: npt.NDArray[np.float64]
    cut_share: npt.NDArray[np.float64]


def polygon_coverage(polygon_xy: Array, stroke_px: float | None = None) -> npt.NDArray[np.float32]:
    """How much of each pixel a polygon covers.

    Args:
        polygon_xy: float (K, 2) vertices in pixels; the result spans from 0 to the greatest vertex and a margin of 4 px.
        stroke_px: width of the outline, which lies inside the polygon; None fills it.

    Returns:
        float32 (h, w) of 0..1, in steps of 1/16.
    """
    width, height = (np.ceil(polygon_xy.max(axis=0)) + _PATCH_MARGIN_PX).astype(int)
    fine = np.zeros((height * _SUBPIXELS, width * _SUBPIXELS), np.uint8)
    # OpenCV's integer coordinates are centres of (sub)pixels.
    cv2.fillPoly(fine, [np.rint(polygon_xy * _SUBPIXELS - 0.5).astype(np.int32)], (1,))
    if stroke_px is not None:
        depth = cv2.distanceTransform(fine, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        fine[depth > stroke_px * _SUBPIXELS] = 0
    return fine.reshape(height, _SUBPIXELS, width, _SUBPIXELS).mean(axis=(1, 3), dtype=np.float32)


def _generator(seed: int, split_name: str, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*path, *split_name.encode())))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _posed(rng: np.random.Generator, outline: Array, side_px: float) -> Array:
    """The outline stretched, turned and scaled to a longer side of `side_px`, its least corner in the patch's margin."""
    angle, stretch = rng.uniform(0, 2 * np.pi), _log_uniform(rng, 1 / MAX_STRETCH, MAX_STRETCH) ** 0.5
    cosine, sine = np.cos(angle), np.sin(angle)
    points = outline * [stretch, 1 / stretch] @ np.array([[cosine, sine], [-sine, cosine]])
    points = points * (side_px / np.ptp(points, axis=0).max())
    return points - points.min(axis=0) + _PATCH_MARGIN_PX + rng.uniform(0, 1, 2)  # type: ignore[no-any-return]


def _ribbon(centre_line: Array, width: float) -> Array:
    tangent = np.gradient(centre_line, axis=0)
    normal = tangent[:, ::-1] * [-1, 1] / np.linalg.norm(tangent, axis=1, keepdims=True)
    return np.concatenate([centre_line + normal * width / 2, (centre_line - normal * width / 2)[::-1]])


def _distractor(rng: np.random.Generator) -> Array:
    """The outline of something that is of no class."""
    kind = rng.integers(4)
    if kind == 0:  # bar: far longer than a stretched square
        return np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [1, 1 / rng.uniform(6, 14)]
    if kind == 1:  # bent ribbon, of even width where a crescent tapers
        t = np.linspace(0, 1, 24)[:, None]
        middle = np.array([0.5, rng.uniform(0.3, 1.2)])
        return _ribbon(2 * t * (1 - t) * middle + t**2 * [1.0, 0.0], rng.uniform(0.05, 0.12))
    if kind == 2:  # open angle of two strokes
        opening = rng.uniform(np.pi / 4, 3 * np.pi / 4)
        ends = np.array([[1.0, 0.0], [0.0, 0.0], [np.cos(opening), np.sin(opening)]]) * [
            [1],
            [1],
            [rng.uniform(0.6, 1)],
        ]
        return _ribbon(ends, rng.uniform(0.08, 0.16))
    # Blob: two lobes above all, so that it is too uneven for a circle and has neither three corners nor five arms.
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = [a * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k, a in ((1, 0.15), (2, 0.4), (3, 0.15))]
    return _circle_points(72) * (1 + np.sum(waves, axis=0))[:, None]


def _paint(rng: np.random.Generator, canvas: Array, coverage: Array, colour: Array) -> None:
    """Blend a lightly shaded colour into a part of the canvas, in place."""
    rows, columns = (np.linspace(-1, 1, length, dtype=np.float32) for length in coverage.shape)
    slope_y, slope_x = rng.uniform(-10, 10, 2).astype(np.float32)
    shade = (rows[:, None] * slope_y + columns[None] * slope_x)[..., None]
    canvas += coverage[..., None] * (np.clip(colour.astype(np.float32) + shade, 0, 255) - canvas)


def _place(origin_xy: Array, patch_hw: tuple[int, int], image_size: int) -> tuple[tuple[slice, slice], ...]:
    """Where a patch lies: its slices of the image, and the slices of itself that are inside."""
    inside, own = [], []
    for start, length in zip(origin_xy[::-1], patch_hw, strict=True):
        first, last = max(int(start), 0), min(int(start) + length, image_size)
        inside.append(slice(first, max(last, first)))
        own.append(slice(first - int(start), max(last, first) - int(start)))
    return (inside[0], inside[1]), (own[0], own[1])


def _draw_ground(rng: np.random.Generator, image_size: int) -> npt.NDArray[np.float32]:
    across = np.linspace(-0.5, 0.5, image_size, dtype=np.float32)
    y, x = across[:, None, None], across[None, :, None]

    def random_colour() -> Array:
        return rng.uniform(0, 255, 3).astype(np.float32)

    angle = np.float32(rng.uniform(0, 2 * np.pi))
    share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)
    first, last = random_colour(), random_colour()
    canvas = first + (last - first) * share
    for num_cells in (4, 12, 48):
        cells = rng.standard_normal((num_cells, num_cells, 3), dtype=np.float32) * np.float32(rng.uniform(3, 18))
        canvas += cv2.resize(cells, (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4:
        angle, num_waves = np.float32(rng.uniform(0, 2 * np.pi)), np.float32(rng.uniform(8, 50))
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * num_waves * np.float32(2 * np.pi))
        canvas += wave * rng.uniform(-20, 20, 3).astype(np.float32)
    np.clip(canvas, 0, 255, out=canvas)
    smallest, largest = _side_range(image_size)
    for _ in range(rng.integers(NUM_DISTRACTORS_RANGE[0], NUM_DISTRACTORS_RANGE[1], endpoint=True)):
        outline, side = _distractor(rng), _log_uniform(rng, smallest, 1.25 * largest)
        stroke = max(2.5, 0.1 * side) if rng.random() < OUTLINED_SHARE and side >= MIN_OUTLINED_SIDE_PX else None
        coverage = polygon_coverage(_posed(rng, outline, side), stroke)
        origin = rng.integers(-coverage.shape[0] // 2, image_size - coverage.shape[0] // 2, 2)
        inside, own = _place(origin, coverage.shape, image_size)
        _paint(rng, canvas[inside], coverage[own] * np.float32(rng.uniform(0.4, 1)), random_colour())
    return canvas


def _side_range(image_size: int) -> tuple[float, float]:
    scale = image_size / REFERENCE_IMAGE_SIZE
    return SIDE_RANGE_PX[0] * max(scale, 1.0), SIDE_RANGE_PX[1] * scale


def _is_empty(seed: int, split_name: str, index: int) -> bool:
    block, position = divmod(index, IMAGES_PER_EMPTY_IMAGE)
    return int(_generator(seed, split_name, 1, block).integers(IMAGES_PER_EMPTY_IMAGE)) == position


def _box_iou(box_xyxy: Array, others_xyxy: Array) -> Array:
    shared = np.minimum(box_xyxy[2:], others_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    intersection = np.clip(shared, 0, None).prod(axis=1)
    areas = (others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(axis=1) + (box_xyxy[2:] - box_xyxy[:2]).prod()
    return intersection / (areas - intersection)  # type: ignore[no-any-return]


class _SceneBuilder:
    """The canvas and the objects painted so far; `add` keeps every promise of the module's docstring or refuses."""

    def __init__(self, rng: np.random.Generator, canvas: npt.NDArray[np.float32]) -> None:
        self.rng, self.canvas, self.image_size = rng, canvas, len(canvas)
        self.boxes_xyxy = np.zeros((0, 4))
        self.labels: list[int] = []
        self.masks: list[npt.NDArray[np.bool_]] = []
        self.visible: list[npt.NDArray[np.bool_]] = []
        self.cut_share: list[float] = []

    def visible_share(self) -> list[float]:
        return [seen.sum() / mask.sum() for seen, mask in zip(self.visible, self.masks, strict=True)]

    def add(self) -> None:
        """Draw one object; leaves it out where none of the places tried is allowed."""
        rng, (smallest, largest) = self.rng, _side_range(self.image_size)
        label = int(rng.integers(len(CLASS_NAMES)))
        side = _log_uniform(rng, smallest, largest)
        is_outlined = rng.random() < OUTLINED_SHARE and side >= MIN_OUTLINED_SIDE_PX
        stroke = max(2.5, side * rng.uniform(0.08, 0.12)) if is_outlined else None
        coverage = polygon_coverage(_posed(rng, OUTLINES[CLASS_NAMES[label]], side), stroke)
        painted = coverage >= 0.5
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _RIM_PX + 1, 2 * _RIM_PX + 1))
        rim = (cv2.dilate(painted.astype(np.uint8), disc) > 0) & (coverage == 0)
        for _ in range(_NUM_PLACES_TRIED):
            inside, own = _place(self._origin(coverage.shape), coverage.shape, self.image_size)
            box = self._allowed_box(inside, painted[own], int(painted.sum()), (smallest, largest))
            colour = None if box is None else self._contrasting_colour(self.canvas[inside][rim[own]])
            if box is None or colour is None:
                continue
            _paint(rng, self.canvas[inside], coverage[own], colour)
            for earlier in self.visible:
                earlier[inside] &= ~painted[own]
            mask = np.zeros((self.image_size, self.image_size), np.bool_)
            mask[inside] = painted[own]
            self.boxes_xyxy = np.concatenate([self.boxes_xyxy, box[None]])
            self.labels.append(label)
            self.masks.append(mask)
            self.visible.append(mask.copy())
            self.cut_share.append(1 - mask.sum() / painted.sum())
            return

    def _origin(self, patch_hw: tuple[int, int]) -> Array:
        size_xy = np.array(patch_hw[::-1])
        if len(self.boxes_xyxy) and self.rng.random() < _NEIGHBOUR_SHARE:
            near = self.boxes_xyxy[self.rng.integers(len(self.boxes_xyxy))]
            reach = (near[2:] - near[:2] + size_xy) / 2
            centre = (near[:2] + near[2:]) / 2 + reach * self.rng.uniform(-1, 1, 2)
        else:  # a shape whose centre is this near to the border is cut by about a fifth
            centre = self.rng.uniform(0.25 * size_xy, self.image_size - 0.25 * size_xy)
        return np.floor(centre - size_xy / 2).astype(np.int64)  # type: ignore[no-any-return]

    def _allowed_box(
        self, inside: tuple[slice, slice], painted: Array, num_painted: int, side_range: tuple[float, float]
    ) -> npt.NDArray[np.float64] | None:
        if painted.sum() < (1 - MAX_CUT_SHARE) * num_painted:
            return None
        rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
        x, y = inside[1].start, inside[0].start
        box = np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], np.float64)
        if not side_range[0] <= (box[2:] - box[:2]).max() <= side_range[1]:
            return None
        if (_box_iou(box, self.boxes_xyxy) > MAX_BOX_IOU).any():
            return None
        for mask, seen in zip(self.masks, self.visible, strict=True):
            num_seen = seen.sum() - (seen[inside] & painted).sum()
            if num_seen < (1 - MAX_HIDDEN_SHARE) * mask.sum():
                return None
        return box

    def _contrasting_colour(self, rim_pixels: Array) -> Array | None:
        colours = self.rng.uniform(0, 255, (_NUM_COLOURS_TRIED, 3)).astype(np.float32)
        distances = np.sqrt(((colours[:, None] - rim_pixels[None]) ** 2).sum(axis=2))
        enough = np.flatnonzero((distances >= MIN_CONTRAST).mean(axis=1) >= MIN_CONTRASTING_SHARE)
        return colours[enough[0]] if len(enough) else None


def draw_scene(seed: int, split_name: str, index: int, image_size: int = REFERENCE_IMAGE_SIZE) -> Scene:
    """Draw one image and keep all that is known of it.

    The result depends on the arguments alone, not on what was drawn before.

    Args:
        seed: of the data set, at least 0.
        split_name: such as `train` or `val`.
        index: of the image in its split, from 0.
        image_size: height and width in pixels, at least `MIN_IMAGE_SIZE`.
    """
    rng = _generator(seed, split_name, 0, index)
    canvas = _draw_ground(rng, image_size)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(2, 7))

    def developed() -> Image:
        return np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)

    background = developed()
    builder = _SceneBuilder(rng, canvas)
    if not _is_empty(seed, split_name, index):
        for _ in range(rng.integers(NUM_OBJECTS_RANGE[0], NUM_OBJECTS_RANGE[1], endpoint=True)):
            builder.add()
    return Scene(
        image=developed(),
        background=background,
        boxes_xyxy=builder.boxes_xyxy,
        labels=np.array(builder.labels, np.int64),
        masks=np.array(builder.masks, np.bool_).reshape(-1, image_size, image_size),
        visible_share=np.array(builder.visible_share(), np.float64),
        cut_share=np.array(builder.cut_share, np.float64),
    )


def draw_image(
    seed: int, split_name: str, index: int, image_size: int = REFERENCE_IMAGE_SIZE
) -> tuple[Image, npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draw one image; the arguments are those of `draw_scene`.

    Returns:
        image: uint8 (H, W, 3) RGB.
        boxes_xywh: float64 (N, 4), pixels of the image.
        labels: int64 (N,), index into `CLASS_NAMES`.
        visible_share: float64 (N,), 0.6 to 1: the share of the object inside the image that no other object hides.
    """
    scene = draw_scene(seed, split_name, index, image_size)
    return scene.image, xyxy_to_xywh(scene.boxes_xyxy), scene.labels, scene.visible_share
