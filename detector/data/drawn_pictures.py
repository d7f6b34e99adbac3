"""Drawn pictures for pre-training: an endless, labelled supply that needs no photograph.

A picture is a function of (seed, split, index). It shows up to 24 objects of 48 classes on a textured background:

- 32 contours in polar form: ellipse, triangle, rectangle and pentagon, and four profiles of 2 to 11 lobes (radial
  harmonics, as in Kataoka et al. 2022, "Replacing Labeled Real-image Datasets with Auto-generated Contours").
- 16 attractors of iterated function systems (Kataoka et al. 2020, "Pre-training without Natural Images"). The systems
  are drawn once from a fixed seed; objects of a class differ by changes of their parameters of up to 10 %.

A class says nothing of size, place, turn, mirror image, stretch (up to 2), colour, texture or style: filled, outlined,
nested contours, or shaded towards the rim. Fill and background are textures from a common stock. Three pictures of ten
show a herd, that is many objects of one class and look; one of twenty is empty.

- The longer side of an object is log-uniform from 8 px to 0.8 of the picture (herds: to 0.3).
- Later objects hide parts of earlier ones, and the border cuts objects off. A box spans the visible painted pixels
  exactly: [least column, greatest column + 1], and likewise for rows. A pixel is painted if half of it is covered.
- The visible share of an object is that of its painted pixels, those outside the picture included. With at least
  `LABELLED_SHARE` and a box of at least `MIN_BOX_SIDE_PX` it is labelled; with at least `IGNORED_SHARE` it is a region
  to ignore; otherwise it is left out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from detector.data.drawn_folder import DrawnFolder, DrawnImage, split_generator
from detector.structures.letterbox import Image

Float64s: TypeAlias = "npt.NDArray[np.float64]"
Float32s: TypeAlias = "npt.NDArray[np.float32]"

# Increased with every change that alters a pixel or a box.
GENERATOR_VERSION = 1
REGULAR = {"ellipse": 0, "triangle": 3, "rectangle": 4, "pentagon": 5}
PROFILES, LOBES = ("smooth", "pointed", "notched", "doubled"), (2, 3, 4, 5, 6, 8, 11)
NUM_FRACTALS = 16
CONTOUR_NAMES = (*REGULAR, *(f"{profile}-{lobes}" for profile in PROFILES for lobes in LOBES))
CLASS_NAMES = (*CONTOUR_NAMES, *(f"fractal-{i + 1}" for i in range(NUM_FRACTALS)))
CATEGORY_IDS = {name: i + 1 for i, name in enumerate(CLASS_NAMES)}

MIN_IMAGE_SIZE = 64
MIN_SIDE_PX, MAX_SIDE_SHARE, MAX_HERD_SIDE_SHARE = 8, 0.8, 0.3
LABELLED_SHARE, IGNORED_SHARE, MIN_BOX_SIDE_PX = 0.4, 0.1, 6
HERD_SHARE, EMPTY_SHARE, MAX_STRETCH = 0.3, 0.05, 2.0
NUM_OBJECTS_RANGE, NUM_HERD_RANGE = (1, 12), (4, 24)
MAX_FILLED_AREA = 1.2  # of the picture: sum of the squares of the longer sides
MIN_CONTRAST = 36  # Euclidean distance in RGB between an object and the mean of the ground below it

_STOCK_SEED, _TILE_SIDE, _NUM_TILES, _NUM_VARIANTS = 20200101, 256, 56, 6
_NUM_PLACES_TRIED, _NUM_COLOURS_TRIED = 4, 8
_SUBPIXELS, _SHIFT = 2, 4
_MARGIN_PX = 2
_STYLES = ("filled", "outlined", "nested", "rimmed")
_STYLE_SHARES = (0.45, 0.15, 0.2, 0.2)


# --- shapes ----------------------------------------------------------------------------------------------------------


def contour(name: str, depth: float, num_points: int = 120) -> Float64s:
    """Return a closed contour around the origin: float64 (num_points, 2) in (x, y).

    Args:
        name: one of `CONTOUR_NAMES`.
        depth: the height of the lobes relative to the mean radius, 0..0.5; regular shapes do not depend on it.
        num_points: points at equal angles.
    """
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    profile, _, lobes = name.partition("-")
    if name in REGULAR:
        corners = REGULAR[name]
        half = np.pi / corners if corners else 0.0
        radius = np.cos(half) / np.cos(angles % (2 * half) - half) if corners else np.ones_like(angles)
    else:
        phase = angles * int(lobes) / (2 * np.pi) % 1
        waves = {
            "smooth": np.cos(angles * int(lobes)),
            "pointed": 4 * np.abs(phase - 0.5) - 1,
            "notched": 0.4 - 1.8 * np.exp(-(((phase - 0.5) / 0.14) ** 2)),
            "doubled": 0.7 * (np.cos(angles * int(lobes)) + np.cos(angles * (2 * int(lobes) + 1) + 1)),
        }
        radius = 1 + depth * waves[profile]
    points: Float64s = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    return points


def _attractor(maps: Float64s, rng: np.random.Generator) -> Float64s:
    """Return points of the attractor of K affine maps (K, 2, 3), by the chaos game, in the square 0..1."""
    points = rng.uniform(-0.5, 0.5, (400, 2))
    weights = np.abs(np.linalg.det(maps[:, :, :2])) + 0.02
    kept = []
    for step in range(28):
        chosen = maps[rng.choice(len(maps), len(points), p=weights / weights.sum())]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
        if step >= 8:  # by then the points are on the attractor
            kept.append(points)
    cloud: Float64s = np.concatenate(kept)
    low, high = np.quantile(cloud, 0.005, axis=0), np.quantile(cloud, 0.995, axis=0)
    cloud = cloud[((cloud >= low) & (cloud <= high)).all(axis=1)]
    return (cloud - low) / max(float((high - low).max()), 1e-9)


def _system(rng: np.random.Generator) -> Float64s:
    maps = []
    for _ in range(rng.integers(2, 5)):
        first, second = (_turn(rng.uniform(0, 2 * np.pi)) for _ in range(2))
        scale = np.diag(rng.uniform((0.45, 0.2), (0.85, 0.7)) * (1, rng.choice([-1, 1])))
        maps.append(np.concatenate([first @ scale @ second, rng.uniform(-1, 1, (2, 1))], axis=1))
    return np.stack(maps)


@functools.lru_cache(maxsize=1)
def _fractals() -> tuple[tuple[Float64s, ...], ...]:
    """Return the point clouds of each class of fractals, in several variants."""
    rng = np.random.default_rng(_STOCK_SEED)
    classes: list[tuple[Float64s, ...]] = []
    while len(classes) < NUM_FRACTALS:
        maps = _system(rng)
        cloud = _attractor(maps, rng)
        cells = np.zeros((32, 32), np.bool_)
        cells[tuple(np.minimum((cloud * 32).astype(int), 31).T)] = True
        # Neither a speck or a line, nor a full square.
        if not (0.12 < cells.mean() < 0.5 and np.ptp(cloud, axis=0).min() > 0.5):
            continue
        varied = (maps * rng.uniform(0.9, 1.1, maps.shape) for _ in range(_NUM_VARIANTS - 1))
        classes.append((cloud, *(_attractor(each, rng) for each in varied)))
    return tuple(classes)


def _turn(angle: float) -> Float64s:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# --- textures --------------------------------------------------------------------------------------------------------


def _plasma(rng: np.random.Generator, slope: float) -> Float64s:
    """Return noise whose amplitude falls as 1 / frequency ** slope."""
    y, x = np.fft.fftfreq(_TILE_SIDE)[:, None], np.fft.rfftfreq(_TILE_SIDE)[None]
    amplitude = np.maximum(np.hypot(x, y), 1 / _TILE_SIDE) ** -slope
    phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
    plasma: Float64s = np.fft.irfft2(amplitude * phases, (_TILE_SIDE, _TILE_SIDE))
    return plasma


def _tile(rng: np.random.Generator, kind: int) -> Float32s:
    """Return a texture of one of seven kinds: float32 (256, 256), 0..1."""
    y, x = np.mgrid[:_TILE_SIDE, :_TILE_SIDE] / _TILE_SIDE
    plasma = _plasma(rng, rng.uniform(0.9, 2.2))
    bend = plasma / np.abs(plasma).max() * rng.uniform(0, 0.5)
    waves_x, waves_y = (x + bend) * rng.uniform(8, 40), (y + bend) * rng.uniform(8, 40)
    if kind == 0:
        values = plasma
    elif kind == 1:  # stripes
        values = np.sin(2 * np.pi * waves_x)
    elif kind == 2:  # checks
        values = np.sign(np.sin(2 * np.pi * waves_x) * np.sin(2 * np.pi * waves_y)) + 0.1 * bend
    elif kind == 3:  # dots
        values = np.cos(2 * np.pi * waves_x) + np.cos(2 * np.pi * waves_y)
        values = np.maximum(values, rng.uniform(-0.5, 1))
    elif kind == 4:  # cells around random points
        seeds = np.ones((_TILE_SIDE, _TILE_SIDE), np.uint8)
        seeds[tuple(rng.integers(0, _TILE_SIDE, (2, int(rng.integers(40, 400)))))] = 0
        values = cv2.distanceTransform(seeds, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    elif kind == 5:  # density of a fractal
        clouds = _fractals()[rng.integers(NUM_FRACTALS)]
        values = np.histogram2d(clouds[0][:, 0], clouds[0][:, 1], bins=64, range=[[0, 1], [0, 1]])[0]
        density = cv2.resize(np.log1p(values), (_TILE_SIDE, _TILE_SIDE), interpolation=cv2.INTER_LINEAR)
        values = density.astype(np.float64, copy=False)
    else:  # marble
        values = np.sin(plasma / plasma.std() * rng.uniform(1, 4))
    low, high = np.quantile(values, [0.01, 0.99])
    tile: Float32s = np.clip((values - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)
    return tile


@functools.lru_cache(maxsize=1)
def _stock() -> tuple[Float32s, Float32s]:
    """Return the textures, float32 (T, 256, 256) in 0..1, and a tile of normal noise, float32 (512, 512, 3)."""
    rng = np.random.default_rng(_STOCK_SEED + 1)
    return np.stack([_tile(rng, i % 7) for i in range(_NUM_TILES)]), rng.standard_normal((512, 512, 3), np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Float32s:
    """Return a part of a texture of the stock, zoomed, turned by quarters and mirrored: float32 (height, width)."""
    tile = _stock()[0][rng.integers(_NUM_TILES)]
    zoom = max(_log_uniform(rng, 0.5, 4), max(height, width) / (_TILE_SIDE - 1))
    rows, columns = max(2, int(height / zoom)), max(2, int(width / zoom))
    top, left = (int(rng.integers(0, _TILE_SIDE - length)) for length in (rows, columns))
    if rng.random() < 0.5:
        tile = tile.T
    part = tile[top : top + rows, left : left + columns][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    resized = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.float32, copy=False)


def _coloured(rng: np.random.Generator, height: int, width: int, colour: Float32s, spread: float) -> Float32s:
    """Return a texture around a colour: float32 (height, width, 3); `spread` is its deviation in RGB."""
    direction = rng.normal(0, spread, 3).astype(np.float32)
    return colour + (_texture(rng, height, width) - np.float32(0.5))[..., None] * direction


# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """Class and appearance of an object, shared by the objects of a herd."""

    label: int
    style: str
    colour: Float32s
    spread: float
    opacity: float
    depth: float
    stretch: float


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _look(rng: np.random.Generator) -> _Look:
    return _Look(
        label=int(rng.integers(len(CLASS_NAMES))),
        style=str(rng.choice(_STYLES, p=_STYLE_SHARES)),
        colour=rng.uniform(0, 255, 3).astype(np.float32),
        spread=float(rng.uniform(0, 90)),
        opacity=1.0 if rng.random() < 0.7 else float(rng.uniform(0.55, 1)),
        depth=float(rng.uniform(0.26, 0.42)),
        stretch=_log_uniform(rng, 1 / MAX_STRETCH, MAX_STRETCH) ** 0.5,
    )


def _moved(points: Float64s, look: _Look, side_px: float, rng: np.random.Generator) -> Float64s:
    """Return points stretched, mirrored, turned, scaled to a longer side of `side_px` and placed at the margin."""
    wobble = rng.uniform(0.92, 1.08)
    points = points * (look.stretch * wobble * rng.choice([-1, 1]), 1 / look.stretch)
    points = points @ _turn(rng.uniform(0, 2 * np.pi))
    columns = np.ascontiguousarray(points.T)  # reduced five times as fast as rows of two
    factor, low = side_px / (columns.max(axis=1) - columns.min(axis=1)).max(), columns.min(axis=1)
    moved: Float64s = points * factor - low * factor + _MARGIN_PX + rng.uniform(0, 1, 2)
    return moved


def _filled(points_xy: Float64s, patch_hw: tuple[int, int], stroke_px: float | None = None) -> Float32s:
    """Return the share of each pixel, 0..1, that a contour covers: filled, or a stroke along it."""
    fine = np.zeros((patch_hw[0] * _SUBPIXELS, patch_hw[1] * _SUBPIXELS), np.uint8)
    # OpenCV's integer coordinates are centres of (sub)pixels.
    fixed = np.rint((points_xy * _SUBPIXELS - 0.5) * (1 << _SHIFT)).astype(np.int32)
    if stroke_px is None:
        cv2.fillPoly(fine, [fixed], (255,), cv2.LINE_8, _SHIFT)
    else:
        cv2.polylines(fine, [fixed], True, (255,), max(1, round(stroke_px * _SUBPIXELS)), cv2.LINE_8, _SHIFT)
    coarse = cv2.resize(fine, patch_hw[::-1], interpolation=cv2.INTER_AREA)
    coverage: Float32s = coarse.astype(np.float32) / np.float32(255)
    return coverage


def _cloud_coverage(points_xy: Float64s, patch_hw: tuple[int, int], side_px: float) -> Float32s:
    """Return the share of each pixel, 0..1, that a cloud of points covers; the points are grown together."""
    factor = min(1.0, 72 / side_px)  # as fine as the number of points allows
    height, width = (max(2, round(length * factor)) for length in patch_hw)
    x, y = (points_xy * (width / patch_hw[1], height / patch_hw[0])).astype(np.int64).T
    counts = np.bincount(np.minimum(y, height - 1) * width + np.minimum(x, width - 1), minlength=height * width)
    cells = (counts.reshape(height, width) > 0).astype(np.float32)
    return cv2.resize(cells, patch_hw[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def _patch(rng: np.random.Generator, look: _Look, side_px: float) -> tuple[Float32s, Float32s]:
    """Return the coverage of an object, float32 (h, w) in 0..1, and its colours, float32 (h, w, 3)."""
    name = CLASS_NAMES[look.label]
    is_contour, style = name in CONTOUR_NAMES, look.style
    if is_contour:
        points = _moved(contour(name, look.depth), look, side_px, rng)
    else:
        variants = _fractals()[look.label - len(CONTOUR_NAMES)]
        points = _moved(variants[rng.integers(len(variants))], look, side_px, rng)
    width, height = (int(np.ceil(greatest)) + _MARGIN_PX for greatest in points.max(axis=0).tolist())
    colours = _coloured(rng, height, width, look.colour, look.spread)
    if not is_contour:
        return _cloud_coverage(points, (height, width), side_px), colours
    is_outlined = style == "outlined" and side_px >= 20
    coverage = _filled(points, (height, width), max(2.0, 0.07 * side_px) if is_outlined else None)
    if style == "nested" and side_px >= 16:
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        for share in sorted(rng.uniform(0.2, 0.85, rng.integers(1, 4)), reverse=True):
            offset = rng.uniform(-0.12, 0.12, 2) * side_px * (1 - share)
            inner = _filled((points - middle) * share + middle + offset, (height, width))[..., None]
            colours += inner * (rng.uniform(0, 255, 3).astype(np.float32) - colours)
    elif style == "rimmed" and side_px >= 12:
        reach = 2 * int(side_px * rng.uniform(0.06, 0.2)) + 1
        shade = cv2.blur(coverage, (reach, reach))[..., None] - np.float32(0.8)
        colours += shade * rng.uniform(-160, 160, 3).astype(np.float32)
    return coverage, colours


def _ground(rng: np.random.Generator, size: int) -> Float32s:
    """Return a background with distractors, which belong to no class: float32 (size, size, 3)."""
    canvas = _coloured(rng, size, size, rng.uniform(0, 255, 3).astype(np.float32), float(rng.uniform(5, 90)))
    if rng.random() < 0.5:
        blend = _texture(rng, size, size)[..., None]
        other = _coloured(rng, size, size, rng.uniform(0, 255, 3).astype(np.float32), float(rng.uniform(5, 60)))
        canvas += blend * (other - canvas)
    for _ in range(rng.integers(0, 7)):
        side = _log_uniform(rng, 0.1, 0.8) * size
        first, second = rng.uniform(-0.2, 1.2, (2, 2)) * size
        if rng.random() < 0.5:  # a line
            points = np.stack([first, first + rng.normal(0, side, 2), second])
            mask = _filled(points[[0, 1, 2, 1]], (size, size), float(rng.uniform(1, 5)))
        else:  # an open corner of a plain surface, reaching past the border
            points = np.stack([first, first + _turn(rng.uniform(0, 6)) @ (3.0 * size, 0), second * 3 - size])
            mask = _filled(points, (size, size))
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        canvas += mask[..., None] * np.float32(rng.uniform(0.3, 1)) * (colour - canvas)
    return canvas


@dataclass(frozen=True)
class PictureObject:
    """Object of a picture.

    Attributes:
        label: index into `CLASS_NAMES`.
        num_pixels: painted pixels of the whole object, hidden ones and those outside the picture included.
    """

    label: int
    num_pixels: int


@dataclass(frozen=True)
class Picture:
    """Drawn picture with the top object of each pixel.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        owner: int16 (H, W), position in `objects` of the object seen at each pixel, -1 for the background.
        objects: the painted objects; a later one lies over an earlier one.
    """

    image: Image
    owner: npt.NDArray[np.int16]
    objects: tuple[PictureObject, ...]


def _sides_and_looks(rng: np.random.Generator, size: int) -> list[tuple[float, _Look]]:
    """Return the longer sides in pixels and the looks of the objects to paint, in order."""
    if rng.random() < EMPTY_SHARE:
        return []
    is_herd = rng.random() < HERD_SHARE
    num_objects = int(rng.integers(*(NUM_HERD_RANGE if is_herd else NUM_OBJECTS_RANGE), endpoint=True))
    greatest = size * (MAX_HERD_SIDE_SHARE if is_herd else MAX_SIDE_SHARE)
    common, common_side = _look(rng), _log_uniform(rng, MIN_SIDE_PX, greatest)
    planned: list[tuple[float, _Look]] = []
    for _ in range(num_objects):
        if is_herd and rng.random() < 0.85:
            side, look = common_side * rng.uniform(0.8, 1.25), common
        else:
            side, look = _log_uniform(rng, MIN_SIDE_PX, greatest), _look(rng)
        side = float(np.clip(side, MIN_SIDE_PX, greatest))
        if planned and sum(s * s for s, _ in planned) + side * side > MAX_FILLED_AREA * size * size:
            continue
        planned.append((side, look))
    # Mostly small objects over large ones, which would hide them otherwise.
    return sorted(planned, key=lambda pair: -pair[0]) if rng.random() < 0.75 else planned


def _place(rng: np.random.Generator, occupied: npt.NDArray[np.bool_], patch_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the top left corner of a patch: of some random places the one where the fewest pixels are occupied."""
    size, best, fewest = len(occupied), (0, 0), np.inf
    for _ in range(_NUM_PLACES_TRIED if rng.random() < 0.8 else 1):
        y, x = (round(c - s / 2) for c, s in zip(rng.uniform(0, size, 2), patch_hw, strict=True))
        part = occupied[max(y, 0) : y + patch_hw[0] : 4, max(x, 0) : x + patch_hw[1] : 4]
        # Pixels outside count as half occupied, so that few objects are cut off.
        num_taken = int(part.sum()) + (patch_hw[0] * patch_hw[1] / 16 - part.size) / 2
        if num_taken < fewest:
            best, fewest = (y, x), num_taken
    return best


def _contrasting(rng: np.random.Generator, colours: Float32s, ground: Float32s) -> Float32s:
    """Return colours, moved by one vector where their mean is too close to that of the ground."""
    below, mean = ground.reshape(-1, 3).mean(axis=0), colours.reshape(-1, 3).mean(axis=0)
    for _ in range(_NUM_COLOURS_TRIED):
        if np.linalg.norm(mean - below) >= MIN_CONTRAST:
            break
        shift = rng.uniform(0, 255, 3).astype(np.float32) - mean
        colours, mean = colours + shift, mean + shift
    return colours


def draw_picture(seed: int, split_name: str, index: int, image_size: int = 224) -> Picture:
    """Draw one picture, which depends on the arguments only.

    Args:
        seed: seed of the data set, at least 0.
        split_name: name of the split, such as `train` or `val`.
        index: index of the picture in its split, from 0, without an upper end.
        image_size: height and width in pixels, at least `MIN_IMAGE_SIZE`.
    """
    rng = split_generator(seed, split_name, index)
    canvas = _ground(rng, image_size)
    owner = np.full((image_size, image_size), -1, np.int16)
    objects: list[PictureObject] = []
    for side, look in _sides_and_looks(rng, image_size):
        coverage, colours = _patch(rng, look, side)
        painted = coverage >= 0.5
        if not painted.any():  # a stroke thinner than half a pixel
            continue
        height, width = painted.shape
        y, x = _place(rng, owner >= 0, (height, width))
        top, left = max(-y, 0), max(-x, 0)
        own = slice(top, min(height, image_size - y)), slice(left, min(width, image_size - x))
        inside = slice(y + own[0].start, y + own[0].stop), slice(x + own[1].start, x + own[1].stop)
        colours = _contrasting(rng, colours[own], canvas[inside])
        canvas[inside] += (coverage[own] * np.float32(look.opacity))[..., None] * (colours - canvas[inside])
        owner[inside][painted[own]] = len(objects)
        objects.append(PictureObject(look.label, int(painted.sum())))
    if rng.random() < 0.15:
        blurred = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.2)))
        canvas = blurred.astype(np.float32, copy=False)
    noise = _stock()[1]
    y, x = (int(each) for each in rng.integers(0, 512 - min(image_size, 511), 2))
    part = np.resize(noise[y : y + image_size, x : x + image_size], canvas.shape)
    canvas += part * np.float32(rng.uniform(0, 10))
    return Picture(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), owner, tuple(objects))


def draw_labelled(seed: int, split_name: str, index: int, image_size: int = 224) -> DrawnImage:
    """Draw one picture with its annotations, by the rules above; arguments as for `draw_picture`."""
    picture = draw_picture(seed, split_name, index, image_size)
    boxes_xywh: list[tuple[int, int, int, int]] = []
    labels, shares, ignored = [], [], []
    for position, painted in enumerate(picture.objects):
        visible = (picture.owner == position).view(np.uint8)
        share = cv2.countNonZero(visible) / painted.num_pixels
        if share < IGNORED_SHARE:
            continue
        x, y, width, height = cv2.boundingRect(visible)
        boxes_xywh.append((x, y, width, height))
        labels.append(painted.label)
        shares.append(share)
        ignored.append(share < LABELLED_SHARE or max(width, height) < MIN_BOX_SIDE_PX)
    return DrawnImage(
        picture.image,
        np.array(boxes_xywh, np.float64).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(shares, np.float64),
        np.array(ignored, np.bool_),
    )


# JPEG quality 90 halves the folder; the noise of the pictures is above its artefacts.
PICTURES = DrawnFolder(
    "pictures",
    "the drawn pictures have",
    "detector.data.drawn_pictures",
    GENERATOR_VERSION,
    CATEGORY_IDS,
    "drawn",
    MIN_IMAGE_SIZE,
    draw_labelled,
    90,
)
