"""Embedded data set of detection: a seeded generator that draws shapes on cluttered backgrounds, without a download.

Six classes that differ by shape alone: circle, square, triangle, star, cross, crescent. Every shape is stretched along
its own axes by a factor of 0.75 to 1.33 and turned by any angle; every mirror image and every turn keeps its class.
The difficulty is measured on the validation split by `tests/data/test_synthetic_detection.py` and fixed for a
`GENERATOR_VERSION`, so that reported results stay comparable:

- Colour carries no information: it is drawn from the whole RGB cube by the same rule for every class.
- Backgrounds are gradients, noise of several scales and stripes, with 4 to 16 distractors (bars, ribbons, angles,
  irregular blobs), which belong to no class and are painted exactly as the objects are.
- One image of every ten in a row is empty; the others hold 1 to 8 objects.
- The longer side of a box is 12 to 160 px in an image of 320 px, log-uniform (except for objects that do not fit), and
  scales with the image; below 320 px the lower end stays at 12 px, the least at which the six shapes can be told apart.
- Three objects of ten are transparent outlines, if their longer side is at least 28 px.
- Later objects hide at most 40 % of the painted pixels of an earlier one; no two boxes of an image have an IoU above
  0.6; the border of the image cuts off at most 20 % of an object's pixels, and its box ends there.
- An object stands out: 80 % of the pixels in a rim of 3 px around it differ from its colour by at least 72 (Euclidean
  distance in RGB, of 441 at most) before shading and noise.

A pixel is painted when at least half of it is covered; a box spans the painted pixels of the whole object inside the
image, hidden ones included: [least column, greatest column + 1], and likewise for rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from detector.data.drawn_folder import DrawnFolder, DrawnImage, split_generator
from detector.structures.boxes import area_xyxy, xyxy_to_xywh
from detector.structures.letterbox import Image

Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Increased with every change that alters a pixel or a box; results on different versions cannot be compared.
GENERATOR_VERSION = 1
# The name in the file of a drawn data set; it stays when the module moves, so that data sets on disk are recognised.
GENERATOR_NAME = "detector.data.shapes"
# COCO category ids by label; not contiguous, like those of COCO, so that confusing label and id causes an error.
CATEGORY_IDS = {"circle": 3, "square": 7, "triangle": 11, "star": 20, "cross": 42, "crescent": 90}
CLASS_NAMES = tuple(CATEGORY_IDS)

# The stated difficulty; see the docstring of the module.
SIDE_RANGE_PX, REFERENCE_IMAGE_SIZE = (12, 160), 320
MIN_IMAGE_SIZE = 64  # the largest objects are then 32 px, still well above the smallest
NUM_OBJECTS_RANGE, NUM_DISTRACTORS_RANGE, IMAGES_PER_EMPTY_IMAGE = (1, 8), (4, 16), 10
MAX_HIDDEN_SHARE, MAX_CUT_SHARE, MAX_BOX_IOU, MAX_STRETCH = 0.40, 0.20, 0.6, 4 / 3
OUTLINED_SHARE, MIN_OUTLINED_SIDE_PX = 0.3, 28
MIN_CONTRAST, MIN_CONTRASTING_SHARE, RIM_PX = 72, 0.8, 3

_MARGIN_PX = RIM_PX + 1  # around a patch: the rim and one anti-aliased pixel
_SUBPIXELS = 4  # along each axis: coverage in sixteenths
_NUM_PLACES_TRIED, _NUM_COLOURS_TRIED = 60, 12
_NEIGHBOUR_SHARE = 0.5  # share of places at the edge of an earlier object; uniform places would overlap too rarely


def _circle_points(num_points: int, first: float = 0.0, last: float = 2 * np.pi) -> Float64s:
    angles = np.linspace(first, last, num_points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outlines() -> dict[str, Float64s]:
    # 0.45: between the pentagram (0.38) and a fatter star, so that the arms survive at 12 px.
    star = _circle_points(10) * np.tile([1.0, 0.45], 5)[:, None]
    arm_end = np.array([[0.3, 0.3], [0.3, 1.0], [-0.3, 1.0]])
    cross = np.concatenate([arm_end @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    # The unit disc less a disc of radius 0.8 centred 0.55 to the right; the two circles meet at the horns.
    horn_x = (1 + 0.55**2 - 0.8**2) / (2 * 0.55)
    horn_y = np.sqrt(1 - horn_x**2)
    outer_angle, inner_angle = np.arctan2(horn_y, horn_x), np.arctan2(horn_y, horn_x - 0.55)
    outer = _circle_points(40, outer_angle, 2 * np.pi - outer_angle)
    inner = _circle_points(30, 2 * np.pi - inner_angle, inner_angle) * 0.8 + np.array([0.55, 0])
    square = _circle_points(4, np.pi / 4, 9 * np.pi / 4)
    shapes = (_circle_points(64), square, _circle_points(3), star, cross, np.concatenate([outer, inner]))
    return dict(zip(CLASS_NAMES, shapes, strict=True))


# Closed outline of each class, (K, 2) float64 in (x, y), before stretching, turning and scaling.
OUTLINES = _outlines()


@dataclass(frozen=True)
class PaintedObject:
    """Object of a scene; its mask holds the painted pixels inside the image, hidden ones included."""

    label: int  # index into CLASS_NAMES
    box_xyxy: Float64s  # (4,), pixels of the image, whole numbers
    mask: npt.NDArray[np.bool_]  # (H, W)
    cut_share: float  # share of the object's pixels that lie outside the image


@dataclass(frozen=True)
class Scene:
    """Drawn image and its ground truth."""

    image: Image  # uint8 (H, W, 3) RGB
    background: Image  # the same before any object was painted
    objects: tuple[PaintedObject, ...]  # a later one lies over an earlier one
    visible_share: Float64s  # (N,), share of each object's mask that no later object hides


def _coverage(polygon_xy: Float64s, stroke_px: float | None = None) -> Float32s:
    """Return the share of each pixel, 0..1, that a polygon (K, 2) covers: filled, or stroked inside; with a margin."""
    width, height = (int(np.ceil(greatest)) + _MARGIN_PX for greatest in polygon_xy.max(axis=0))
    fine = np.zeros((height * _SUBPIXELS, width * _SUBPIXELS), np.uint8)
    # OpenCV's integer coordinates are centres of (sub)pixels.
    cv2.fillPoly(fine, [np.rint(polygon_xy * _SUBPIXELS - 0.5).astype(np.int32)], (1,))
    if stroke_px is not None:
        fine[cv2.distanceTransform(fine, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > stroke_px * _SUBPIXELS] = 0
    coverage: Float32s = fine.reshape(height, _SUBPIXELS, width, _SUBPIXELS).mean(axis=(1, 3), dtype=np.float32)
    return coverage


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _side_range(image_size: int) -> tuple[float, float]:
    scale = image_size / REFERENCE_IMAGE_SIZE
    return SIDE_RANGE_PX[0] * max(scale, 1.0), SIDE_RANGE_PX[1] * scale


def _patch(rng: np.random.Generator, outline: Float64s, side_px: float) -> Float32s:
    """Return the outline stretched, turned, scaled to a longer side of `side_px`, filled or stroked, with a margin."""
    cosine, sine = _circle_points(1, rng.uniform(0, 2 * np.pi))[0]
    stretch = np.sqrt(_log_uniform(rng, 1 / MAX_STRETCH, MAX_STRETCH))
    points = (outline * np.array([stretch, 1 / stretch])) @ np.array([[cosine, sine], [-sine, cosine]])
    points = points * (side_px / np.ptp(points, axis=0).max())
    points = points - points.min(axis=0) + _MARGIN_PX + rng.uniform(0, 1, 2)
    is_outlined = rng.random() < OUTLINED_SHARE and side_px >= MIN_OUTLINED_SIDE_PX
    return _coverage(points, max(2.5, side_px * rng.uniform(0.08, 0.12)) if is_outlined else None)


def _distractor(rng: np.random.Generator) -> Float64s:
    """Return the outline of a distractor, which belongs to no class."""
    kind = rng.choice(["bar", "ribbon", "angle", "blob"])
    if kind == "bar":  # far longer than a stretched square
        height = 1 / rng.uniform(6, 14)
        return np.array([[0, 0], [1, 0], [1, height], [0, height]], np.float64)
    if kind == "blob":  # mostly two lobes: too uneven for a circle, and without three corners or five arms
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        waves = [a * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k, a in ((1, 0.1), (2, 0.4), (3, 0.25))]
        radius: Float64s = 1 + np.sum(waves, axis=0)
        return _circle_points(72) * radius[:, None]
    # A bent stroke of constant width, while a crescent tapers; with three points it is an open angle.
    t = np.linspace(0, 1, 3 if kind == "angle" else 24)[:, None]
    line = 2 * t * (1 - t) * np.array([rng.uniform(0.2, 0.8), rng.uniform(0.3, 1.2)]) + t**2 * np.array([1.0, 0.0])
    tangent = np.gradient(line, axis=0)
    normal = tangent[:, ::-1] * np.array([-1, 1]) / np.linalg.norm(tangent, axis=1, keepdims=True)
    offset = normal * rng.uniform(0.025, 0.06)
    return np.concatenate([line + offset, (line - offset)[::-1]])


def _place(centre_xy: Float64s, patch_hw: tuple[int, ...], image_size: int) -> tuple[tuple[slice, slice], ...]:
    """Return the slices of the image that a patch covers, and the slices of the patch that lie inside the image."""
    (height, width), (x, y) = patch_hw, (int(c - side / 2) for c, side in zip(centre_xy, patch_hw[::-1], strict=True))
    top, bottom, left, right = max(-y, 0), min(height, image_size - y), max(-x, 0), min(width, image_size - x)
    return (slice(y + top, y + bottom), slice(x + left, x + right)), (slice(top, bottom), slice(left, right))


def _paint(rng: np.random.Generator, canvas: Float32s, coverage: Float32s, colour: Float32s) -> None:
    """Blend a lightly shaded colour into a part of the canvas, in place."""
    rows, columns = (np.linspace(-1, 1, length, dtype=np.float32) for length in coverage.shape)
    slope_y, slope_x = rng.uniform(-10, 10, 2).astype(np.float32)
    shade = (rows[:, None] * slope_y + columns[None] * slope_x)[..., None]
    canvas += coverage[..., None] * (np.clip(colour + shade, 0, 255) - canvas)


def _draw_ground(rng: np.random.Generator, image_size: int) -> Float32s:
    across = np.linspace(-0.5, 0.5, image_size, dtype=np.float32)

    def slope() -> Float32s:
        x, y = _circle_points(1, rng.uniform(0, 2 * np.pi))[0].astype(np.float32)
        rise: Float32s = (across[None] * x + across[:, None] * y)[..., None]
        return rise

    first, last = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    canvas: Float32s = first + (last - first) * np.clip(0.5 + slope(), 0, 1)
    for num_cells in (4, 12, 48):
        cells = rng.standard_normal((num_cells, num_cells, 3), dtype=np.float32) * np.float32(rng.uniform(3, 18))
        canvas += cv2.resize(cells, (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4:
        canvas += np.sin(slope() * np.float32(rng.uniform(50, 300))) * rng.uniform(-20, 20, 3).astype(np.float32)
    np.clip(canvas, 0, 255, out=canvas)
    smallest, largest = _side_range(image_size)
    for _ in range(rng.integers(*NUM_DISTRACTORS_RANGE, endpoint=True)):
        coverage = _patch(rng, _distractor(rng), _log_uniform(rng, smallest, 1.25 * largest))
        inside, own = _place(rng.uniform(0, image_size, 2), coverage.shape, image_size)
        opacity, colour = np.float32(rng.uniform(0.4, 1)), rng.uniform(0, 255, 3).astype(np.float32)
        _paint(rng, canvas[inside], coverage[own] * opacity, colour)
    return canvas


def _centre(rng: np.random.Generator, patch_hw: tuple[int, ...], image_size: int, earlier: Float64s) -> Float64s:
    size_xy = np.array(patch_hw[::-1], np.float64)
    if len(earlier) and rng.random() < _NEIGHBOUR_SHARE:
        near: Float64s = earlier[rng.integers(len(earlier))]
        reach = (near[2:] - near[:2] + size_xy) / 2
        return np.clip((near[:2] + near[2:]) / 2 + reach * rng.uniform(-1, 1, 2), 0, image_size - 1)
    # Closer to the border, more than the allowed share would be cut off.
    return rng.uniform(0.25 * size_xy, image_size - 0.25 * size_xy)


def _contrasting_colour(rng: np.random.Generator, rim_pixels: Float32s) -> Float32s | None:
    colours = rng.uniform(0, 255, (_NUM_COLOURS_TRIED, 3)).astype(np.float32)
    is_far = ((colours[:, None] - rim_pixels[None]) ** 2).sum(axis=2) >= MIN_CONTRAST**2
    enough = np.flatnonzero(is_far.mean(axis=1) >= MIN_CONTRASTING_SHARE)
    return colours[enough[0]] if len(enough) else None


def _add_object(
    rng: np.random.Generator,
    canvas: Float32s,
    owner: Integers,
    objects: list[PaintedObject],
    sides_px: tuple[float, float],
) -> None:
    """Paint one object at a place that keeps the stated difficulty; leave it out if no place tried does.

    `owner` (H, W) holds the index of the top object at each pixel, -1 for the background.
    """
    image_size, (smallest, largest) = len(canvas), sides_px
    label = int(rng.integers(len(CLASS_NAMES)))
    coverage = _patch(rng, OUTLINES[CLASS_NAMES[label]], _log_uniform(rng, smallest, largest))
    painted = coverage >= 0.5
    if not painted.any():  # an outline of a few pixels, below the sizes of the data set
        return
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RIM_PX + 1, 2 * RIM_PX + 1))
    rim = (cv2.dilate(painted.astype(np.uint8), disc) > 0) & (coverage == 0)
    boxes = np.array([earlier.box_xyxy for earlier in objects]).reshape(-1, 4)
    for _ in range(_NUM_PLACES_TRIED):
        inside, own = _place(_centre(rng, painted.shape, image_size, boxes), painted.shape, image_size)
        cut_share = 1 - float(painted[own].sum() / painted.sum())
        if cut_share > MAX_CUT_SHARE:
            continue
        mask = np.zeros((image_size, image_size), np.bool_)
        mask[inside] = painted[own]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
        sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        is_alike = shared > MAX_BOX_IOU * (area_xyxy(box) + area_xyxy(boxes) - shared)
        if not smallest <= (box[2:] - box[:2]).max() <= largest or is_alike.any():
            continue
        candidate = np.where(mask, len(objects), owner)
        if (_visible_share(candidate, objects) < 1 - MAX_HIDDEN_SHARE).any():
            continue
        colour = _contrasting_colour(rng, canvas[inside][rim[own]])
        if colour is not None:
            near = cv2.dilate(
                painted[own].astype(np.uint8), np.ones((3, 3), np.uint8)
            )  # no faint pixels far outside the box
            _paint(rng, canvas[inside], coverage[own] * near, colour)
            owner[:] = candidate
            objects.append(PaintedObject(label, box, mask, cut_share))
            return


def _visible_share(owner: Integers, objects: list[PaintedObject]) -> Float64s:
    shares = [np.count_nonzero(owner[o.mask] == i) / np.count_nonzero(o.mask) for i, o in enumerate(objects)]
    return np.array(shares, np.float64)


def draw_scene(
    seed: int,
    split_name: str,
    index: int,
    image_size: int = REFERENCE_IMAGE_SIZE,
    *,
    sides_px: tuple[float, float] | None = None,
    num_objects: tuple[int, int] = NUM_OBJECTS_RANGE,
) -> Scene:
    """Draw one image with its ground truth; the first arguments are those of `draw_image`.

    Benchmarks give other bounds of the longer side of an object, and of the number of objects in an image that is not
    empty; the six shapes cannot be told apart below 12 px.
    """
    rng = split_generator(seed, split_name, 0, index)
    canvas = _draw_ground(rng, image_size)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(2, 7))
    background = np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)
    owner = np.full((image_size, image_size), -1, np.int64)
    objects: list[PaintedObject] = []
    block, position = divmod(index, IMAGES_PER_EMPTY_IMAGE)
    if split_generator(seed, split_name, 1, block).integers(IMAGES_PER_EMPTY_IMAGE) != position:
        for _ in range(rng.integers(*num_objects, endpoint=True)):
            _add_object(rng, canvas, owner, objects, sides_px or _side_range(image_size))
    image = np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)
    return Scene(image, background, tuple(objects), _visible_share(owner, objects))


def draw_image(
    seed: int, split_name: str, index: int, image_size: int = REFERENCE_IMAGE_SIZE
) -> tuple[Image, Float64s, Integers, Float64s]:
    """Draw one image, which depends on the arguments only.

    Args:
        seed: seed of the data set, at least 0.
        split_name: name of the split, such as `train` or `val`.
        index: index of the image in its split, from 0.
        image_size: height and width in pixels, at least `MIN_IMAGE_SIZE`.

    Returns:
        image: uint8 (H, W, 3) RGB.
        boxes_xywh: float64 (N, 4), pixels of the image.
        labels: int64 (N,), index into `CLASS_NAMES`.
        visible_share: float64 (N,), 0.6 to 1: the share of the object inside the image that no other object hides.
    """
    scene = draw_scene(seed, split_name, index, image_size)
    boxes_xyxy = np.array([painted.box_xyxy for painted in scene.objects]).reshape(-1, 4)
    labels = np.array([painted.label for painted in scene.objects], np.int64)
    return scene.image, xyxy_to_xywh(boxes_xyxy), labels, scene.visible_share


def _draw(seed: int, split_name: str, index: int, image_size: int) -> DrawnImage:
    image, boxes_xywh, labels, visible_share = draw_image(seed, split_name, index, image_size)
    return DrawnImage(image, boxes_xywh, labels, visible_share, np.zeros(len(labels), np.bool_))


SHAPES = DrawnFolder(
    "shapes",
    "the embedded data set has",
    GENERATOR_NAME,
    GENERATOR_VERSION,
    CATEGORY_IDS,
    "shape",
    MIN_IMAGE_SIZE,
    _draw,
)


def draw_shapes(root: Path, *, num_train: int = 640, num_val: int = 160, image_size: int = 320, seed: int = 0) -> None:
    """Draw the data set into a folder, as `DrawnFolder.write` does.

    Args:
        root: the folder of the data set; it must be empty or not exist, missing parents are created.
        num_train: images of the split `train`, at least 1.
        num_val: images of the split `val`, at least 1.
        image_size: height and width in pixels, at least `MIN_IMAGE_SIZE`.
        seed: at least 0; equal arguments draw equal files (under the same versions of NumPy and OpenCV).

    Raises:
        DatasetError: `root` is not empty or cannot be written, or an argument is below its least value.
    """
    SHAPES.write(root, num_train=num_train, num_val=num_val, image_size=image_size, seed=seed)
