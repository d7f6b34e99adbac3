"""The whole recipe: draws and pixels bit for bit against a reference, and boxes against painted pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from detector.data.augment import augmenter as module
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmenter import AugmentationRecipe, Read, Source, greatest_zoom
from detector.data.augment.patches import tile_window
from detector.inference.views import Views, ViewsConfig
from detector.structures.canvas import Canvas, InputConfig
from detector.structures.letterbox import Letterbox
from detector.structures.types import ImageObjects

CANVAS_HW = (96, 128)
NUM_SOURCES = 12
SIZES = [(60, 80), (90, 70), (64, 64), (40, 120), (100, 100), (75, 110)] * 2
STILL = AugmentConfig(mosaic=0, scale=0, translate=0, flip_horizontal=0, hue=0, saturation=0, value=0)


def source(index: int) -> Source:
    """Coloured noise with two objects."""
    rng = np.random.default_rng((99, index))
    height, width = SIZES[index]
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)
    corners = rng.uniform(0, 0.5, (2, 2)) * [width, height]
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.5, (2, 2)) * [width, height]], axis=1)
    return image, ImageObjects(boxes.astype(np.float32), np.array([2 * index, 2 * index + 1]), np.array([False, True]))


def recipe(config: AugmentConfig, canvas_hw: tuple[int, int] = CANVAS_HW) -> AugmentationRecipe:
    return AugmentationRecipe(config, Canvas(canvas_hw, 3, "letterbox"), NUM_SOURCES)


# ---- the default recipe, written down a second time: published numbers depend on its draws and on its arithmetic


def plain_warp(canvas: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64]) -> None:
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ matrix[:2, :2].T + matrix[:2, 2]
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), canvas.shape[1::-1]).tolist()
    if left < right and top < bottom:
        moved = np.array([[1, 0, -left - 0.5], [0, 1, -top - 0.5], [0, 0, 1]]) @ matrix
        moved = moved @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
        region, size_wh = canvas[top:bottom, left:right].copy(), (right - left, bottom - top)
        transparent = cv2.BORDER_TRANSPARENT
        canvas[top:bottom, left:right] = cv2.warpAffine(image, moved[:2], size_wh, region, 1, borderMode=transparent)


def plain_boxes(
    boxes: npt.NDArray[np.float32], ignore: npt.NDArray[np.bool_], matrix: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Boxes after a zoom, a mirror and a shift, clipped, and NaN where they are to be dropped."""
    xs = boxes[:, [0, 2]] * matrix[0, 0] + matrix[0, 2]
    ys = boxes[:, [1, 3]] * matrix[1, 1] + matrix[1, 2]
    whole = np.stack([xs.min(axis=1), ys.min(axis=1), xs.max(axis=1), ys.max(axis=1)], axis=1)
    limit = np.array([CANVAS_HW[1], CANVAS_HW[0]] * 2)
    clipped = np.clip(whole, 0, limit)
    sides, sides_whole = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
    kept = (sides.prod(axis=1) > 0.1 * sides_whole.prod(axis=1)) & (sides >= 2).all(axis=1)
    kept |= (clipped == whole).all(axis=1) | (ignore & (sides > 0).all(axis=1))
    return np.where(kept[:, None], clipped, np.nan)


def plain_hsv(image: npt.NDArray[np.uint8], config: AugmentConfig, draws: npt.NDArray[np.float64]) -> Any:
    levels = np.arange(256.0)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    tables = [(levels + draws[0] * config.hue * 180) % 180]
    tables += [
        np.clip(levels * (1 + d * g), 0, 255) for d, g in zip(draws[1:], (config.saturation, config.value), strict=True)
    ]
    planes = [table.astype(np.uint8)[hsv[..., plane]] for plane, table in enumerate(tables)]
    return cv2.cvtColor(np.stack(planes, axis=-1), cv2.COLOR_HSV2RGB)


def plain_default(index: int, config: AugmentConfig, rng: np.random.Generator) -> tuple[Any, Any, list[int]]:
    """A training image of the default recipe by the shortest way to write it."""
    height, width = CANVAS_HW
    assert rng.random() < 1  # the mosaic
    indices = [index, *(int(rng.integers(NUM_SOURCES)) for _ in range(3))]
    centre = rng.uniform(-0.5, 0.5) * width, rng.uniform(-0.5, 0.5) * height
    zoom = rng.uniform(1 - config.scale, 1 + config.scale)
    rng.uniform(0, 0, 3)  # no rotation, no shear
    shift = [0.5 + rng.uniform(-config.translate, config.translate) for _ in range(2)]
    mirror = -1 if rng.random() < config.flip_horizontal else 1
    rng.random(2)  # not upside down, no mixup
    canvas, boxes, labels = np.full((*CANVAS_HW, 3), 114, np.uint8), [], []
    for quadrant, (image, objects) in enumerate(source(i) for i in indices):
        fit = min(height / image.shape[0], width / image.shape[1])
        left = centre[0] - (image.shape[1] * fit if quadrant in (0, 2) else 0)
        top = centre[1] - (image.shape[0] * fit if quadrant in (0, 1) else 0)
        place = np.array([[fit, 0, left], [0, fit, top], [0, 0, 1]])
        spread = np.array([[mirror * zoom, 0, shift[0] * width], [0, zoom, shift[1] * height], [0, 0, 1]])
        plain_warp(canvas, image, spread @ place)
        found = plain_boxes(objects.xyxy, objects.ignore, spread @ place)
        boxes += [box for box in found.tolist() if not math.isnan(box[0])]
        labels += [label for label, box in zip(objects.labels.tolist(), found, strict=True) if not np.isnan(box[0])]
    return plain_hsv(canvas, config, rng.uniform(-1, 1, 3)), np.array(boxes).reshape(-1, 4), labels


@pytest.mark.parametrize("seed", range(30))
def test_the_default_recipe_gives_the_same_bits_as_its_reference(seed: int) -> None:
    index = seed % NUM_SOURCES
    image, objects = recipe(AugmentConfig()).varied(index, source, np.random.default_rng((7, seed, index)))
    wanted, boxes, labels = plain_default(index, AugmentConfig(), np.random.default_rng((7, seed, index)))
    assert np.array_equal(image, wanted)
    assert objects.labels.tolist() == labels
    assert np.allclose(objects.xyxy, boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_a_closing_image_is_letterboxed_mirrored_and_recoloured(seed: int) -> None:
    config, rng = AugmentConfig(flip_vertical=0.5), np.random.default_rng(seed)
    image, objects, letterbox = recipe(config).letterboxed(3, source, np.random.default_rng(seed))
    original, found = source(3)
    wanted, boxes = Letterbox.fit(SIZES[3], CANVAS_HW).apply(original), letterbox.boxes_to_canvas(found.xyxy)
    if rng.random() < 0.5:
        wanted, boxes = wanted[:, ::-1], (128, 0, 128, 0) + boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1)
    if rng.random() < 0.5:
        wanted, boxes = wanted[::-1], (0, 96, 0, 96) + boxes[:, [0, 3, 2, 1]] * (1, -1, 1, -1)
    assert np.array_equal(image, plain_hsv(np.ascontiguousarray(wanted), config, rng.uniform(-1, 1, 3)))
    assert np.allclose(objects.xyxy, np.clip(boxes, 0, (128, 96, 128, 96)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("closing", [False, True])
def test_a_training_tile_shows_the_pixels_of_a_tile_of_prediction(closing: bool) -> None:
    """A canvas without other changes is the view of the same region in prediction, and no larger tile is needed."""
    tile, canvas_hw = 64, (96, 96)
    views = Views(ViewsConfig(tile=tile, whole=False, overlap=0.0), InputConfig(size=96), lambda image_hw: None)
    tiled = recipe(replace(STILL, tile=tile), canvas_hw)
    original, objects = source(3)  # 40 x 120 px
    height = original.shape[0]
    for seed in range(6):
        rng, same_rng = np.random.default_rng(seed), np.random.default_rng(seed)
        if not closing:
            same_rng.random()  # the draw of a mosaic
        left, _, right, _ = tile_window(objects, (height, 120), tile, same_rng)
        if closing:
            image, found, _ = tiled.letterboxed(3, source, rng)
        else:
            image, found = tiled.varied(3, source, rng)
        (view, *_) = views.of((height, 120))
        same = replace(view, region_xyxy=(left, 0, right, height))
        differences = np.abs(image.astype(int) - same.canvas(original).astype(int))
        # A warp leaves out pixels at the border that it cannot interpolate.
        assert differences[20:76, 2:94].max() <= (0 if closing else 1)
        back = same.letterbox.boxes_to_source(torch.from_numpy(found.xyxy)).numpy() + np.array([left, 0, left, 0])
        wanted = objects.xyxy.clip([left, 0, left, 0], [right, height, right, height])
        for box in back:
            assert np.abs(wanted - box).max(axis=1).min() < 1e-3


def test_an_image_within_a_tile_is_shown_whole() -> None:
    whole, tiled = recipe(AugmentConfig()), recipe(AugmentConfig(tile=120))
    first, _ = whole.varied(2, source, np.random.default_rng(5))
    second, _ = tiled.varied(2, source, np.random.default_rng(5))
    assert np.array_equal(first, second)


def test_a_source_that_fills_the_canvas_is_not_recoloured_itself() -> None:
    image = np.full((*CANVAS_HW, 3), (200, 40, 90), np.uint8)
    none = ImageObjects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    changed, _, _ = recipe(AugmentConfig(flip_horizontal=0)).letterboxed(
        0, lambda index: (image, none), np.random.default_rng(0)
    )
    assert (image == (200, 40, 90)).all()
    assert not np.array_equal(changed, image)


# ---- boxes against painted truth


def painted(num_each: int, chosen: int) -> Read:
    """Black sources with a box in each of a grid of cells, of which only one of all, `chosen`, is painted white."""

    def read(index: int) -> Source:
        rng = np.random.default_rng((5, index))
        height, width = SIZES[index]
        image = np.zeros((height, width, 3), np.uint8)
        boxes = []
        for number in range(num_each):
            left, top = number % 2 * width // 2, number // 2 * height // 2
            insets = rng.integers(1, 5, 4)
            box = np.array([left, top, left + width // 2, top + height // 2]) + insets * (1, 1, -1, -1)
            boxes.append(box.tolist())
            if index * num_each + number == chosen:
                image[box[1] : box[3], box[0] : box[2]] = 255
        labels = np.arange(num_each) + index * num_each
        return image, ImageObjects(np.array(boxes, np.float32), labels, np.zeros(num_each, bool))

    return read


UPRIGHT = {
    "mosaic": replace(STILL, mosaic=1.0),
    "the default geometry": replace(AugmentConfig(), hue=0, saturation=0, value=0),
    "nine": replace(STILL, mosaic=1.0, mosaic_nine=1.0, scale=0.3, flip_vertical=0.5),
    "crop": replace(STILL, crop=1.0),
    "crops in a mosaic": replace(STILL, crop=1.0, mosaic=1.0, scale=0.3, flip_horizontal=0.5),
}
TURNED = {
    "rotation": replace(STILL, degrees=40),
    "shear": replace(STILL, shear=20),
    "perspective": replace(STILL, perspective=0.5),
    "everything": replace(
        STILL, mosaic=1.0, mosaic_nine=0.5, crop=0.5, scale=0.4, translate=0.2, degrees=30, shear=8, perspective=0.3
    ),
}
CANVAS = (192, 256)


def compared(config: AugmentConfig) -> list[npt.NDArray[np.float64]]:
    """The distances in pixels of the four sides of each box from the bounds of what was painted under it."""
    distances = []

    def made(seed: int, chosen: int) -> tuple[Source, list[int]]:
        used: list[int] = []
        read = painted(4, chosen)

        def noted(index: int) -> Source:
            used.append(index)
            return read(index)

        image = recipe(config, CANVAS).varied(seed % NUM_SOURCES, noted, np.random.default_rng(seed))
        return image, used

    for seed in range(8):
        (_, objects), used = made(seed, -1)
        for label in [n for n in objects.labels.tolist() if used.count(n // 4) == 1][:6]:
            (image, again), _ = made(seed, label)
            assert np.array_equal(again.xyxy, objects.xyxy)  # pixels change no draw
            rows, columns = np.nonzero(image[..., 0] > 127)
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            distances.append(np.abs(objects.xyxy[objects.labels == label][0] - bounds))
    return distances


@pytest.mark.parametrize("name", UPRIGHT)
def test_upright_boxes_are_those_of_the_painted_pixels(name: str) -> None:
    distances = compared(UPRIGHT[name])
    assert len(distances) > 15
    assert np.max(distances) <= 0.75  # half a pixel is whether a pixel is painted; the rest is OpenCV's fixed point


@pytest.mark.parametrize("name", TURNED)
def test_turned_boxes_are_those_of_the_painted_pixels(name: str) -> None:
    distances = compared(TURNED[name])
    assert len(distances) > 15
    assert np.max(distances) <= 2.0  # the tip of a turned corner is thinner than a pixel
    assert np.mean(distances) <= 0.5


def test_mixed_and_pasted_objects_keep_their_boxes() -> None:
    for config in (replace(STILL, mixup=1.0), replace(STILL, copy_paste=1.0, scale=0.3, flip_horizontal=0.5)):
        for seed in range(6):
            _, objects = recipe(config, CANVAS).varied(0, painted(4, -1), np.random.default_rng(seed))
            mixed = sorted({label for label in objects.labels.tolist() if label >= 4})
            for label in mixed:
                image, _ = recipe(config, CANVAS).varied(0, painted(4, label), np.random.default_rng(seed))
                before, _ = recipe(config, CANVAS).varied(0, painted(4, -1), np.random.default_rng(seed))
                rows, columns = np.nonzero(image[..., 0].astype(int) - before[..., 0] > 50)
                box = objects.xyxy[objects.labels == label][0]
                bounds = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert np.abs(box - bounds).max() <= 2, (config, label)


# ---- the parts together


def test_a_training_image_is_a_function_of_its_generator() -> None:
    config = replace(
        AugmentConfig(), mosaic=0.5, mosaic_nine=0.5, crop=0.5, perspective=0.2, mixup=0.5, copy_paste=0.5,
        grayscale=0.3, blur=2, noise=9, jpeg=60, degraded_share=0.5, cutout=0.2, degrees=9,
    )  # fmt: skip
    own, other = recipe(config), recipe(config)
    seen = set()
    for seed in range(10):
        first = own.varied(seed, source, np.random.default_rng(seed))
        second = other.varied(seed, source, np.random.default_rng(seed))
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1].xyxy, second[1].xyxy)
        seen.add(first[0].tobytes())
    assert len(seen) == 10


@pytest.mark.parametrize(
    "change", [{"grayscale": 1.0}, {"blur": 5.0}, {"noise": 40.0}, {"jpeg": 95.0}, {"cutout": 0.4}], ids=str
)
def test_pixel_level_steps_move_no_box(change: dict[str, float]) -> None:
    plain = recipe(STILL).varied(2, source, np.random.default_rng(1))
    config = replace(STILL, degraded_share=1.0, **change)  # type: ignore[arg-type]  # the keys above are all floats
    changed = recipe(config).varied(2, source, np.random.default_rng(1))
    assert np.array_equal(changed[1].xyxy, plain[1].xyxy)
    assert not np.array_equal(changed[0], plain[0])


def test_no_recipe_writes_into_its_sources() -> None:
    kept: dict[int, Source] = {}

    def frozen(index: int) -> Source:
        if index not in kept:
            kept[index] = source(index)
            kept[index][0].flags.writeable = False
        return kept[index]

    config = replace(AugmentConfig(), mosaic=0.5, crop=0.5, mixup=0.5, copy_paste=1.0, degraded_share=1.0, noise=9)
    for seed in range(8):
        for canvas_hw in (CANVAS_HW, SIZES[0], SIZES[2]):
            recipe(config, canvas_hw).varied(seed, frozen, np.random.default_rng(seed))
            recipe(config, canvas_hw).letterboxed(0, frozen, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "change",
    [{}, {"scale": 0.9}, {"shear": 20.0}, {"perspective": 0.4}, {"crop": 1.0}, {"degrees": 45.0}, {"mosaic": 1.0}],
    ids=str,
)
def test_no_recipe_exceeds_its_stated_zoom(change: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(STILL, **({"scale": 0.3} | change))  # type: ignore[arg-type]  # floats, as above
    matrices: list[npt.NDArray[np.float64]] = []
    monkeypatch.setattr(module, "warp_into", lambda canvas, image, matrix: matrices.append(matrix))
    corners = np.array([[0, 0], [128, 0], [128, 96], [0, 96]])
    zooms = []
    for seed in range(300):
        matrices.clear()
        recipe(config).varied(2, lambda index: source(2), np.random.default_rng(seed))
        fit = min(CANVAS_HW[0] / SIZES[2][0], CANVAS_HW[1] / SIZES[2][1])
        inverse = np.linalg.inv(matrices[0])
        at = np.concatenate([corners, np.ones((4, 1))], axis=1) @ inverse.T
        for point in at[:, :2] / at[:, 2:]:  # what a corner of the canvas shows, and how it is stretched there
            shown = matrices[0] @ [*point, 1]
            jacobian = (matrices[0][:2, :2] - shown[:2, None] / shown[2] * matrices[0][2, :2]) / shown[2]
            zooms.append(np.linalg.norm(jacobian, 2) / fit)
    limit = greatest_zoom(config, CANVAS_HW)
    assert 0.6 * limit < max(zooms) <= limit + 1e-9
