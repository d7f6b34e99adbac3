from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.patches import (
    MAX_CUT_OUT,
    MAX_PASTED_OVER,
    TILES_WITH_OBJECT,
    crop_to,
    crop_window,
    cut_out,
    paste_objects,
    tile_window,
)
from detector.structures.letterbox import PADDING_VALUE
from detector.structures.types import ImageObjects

IMAGE_HW = (90, 120)
PASTE = AugmentConfig(copy_paste=1.0, scale=0.3, flip_horizontal=0.5)


def random_objects(seed: int, num: int = 5, image_hw: tuple[int, int] = IMAGE_HW) -> ImageObjects:
    rng = np.random.default_rng((1, seed))
    size_wh = np.array(image_hw[::-1])
    corners = rng.uniform(0, 0.85, (num, 2)) * size_wh
    boxes = np.concatenate([corners, np.minimum(corners + rng.uniform(3, 30, (num, 2)), size_wh)], axis=1)
    return ImageObjects(boxes.astype(np.float32), np.arange(num) + 100 * seed, np.zeros(num, bool))


def overlap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.clip(sides, 0, None).prod())


def area(box: npt.NDArray[np.float64]) -> float:
    return overlap(box, box)


# ---- windows


@pytest.mark.parametrize("seed", range(40))
def test_a_window_holds_an_object_and_cuts_none(seed: int) -> None:
    objects = random_objects(seed)
    window = crop_window(objects, IMAGE_HW, np.random.default_rng(seed))
    assert window is not None
    left, top, right, bottom = window
    assert 0 <= left < right <= IMAGE_HW[1]
    assert 0 <= top < bottom <= IMAGE_HW[0]
    shares = [overlap(np.array(window), box) / area(box) for box in objects.xyxy.astype(np.float64)]
    assert all(share == 0 or share > 1 - 1e-6 for share in shares)
    assert max(shares) > 1 - 1e-6


def test_windows_are_of_many_sizes_and_places() -> None:
    one = ImageObjects(np.array([[50, 40, 60, 50]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    windows = np.array([crop_window(one, IMAGE_HW, np.random.default_rng(seed)) for seed in range(200)])
    width_shares = (windows[:, 2] - windows[:, 0]) / IMAGE_HW[1]
    assert 0.3 <= width_shares.min() < 0.4
    assert 0.9 < width_shares.max() <= 1
    assert (windows.std(axis=0) > 5).all()


def test_an_object_as_large_as_the_image_keeps_all_of_it() -> None:
    one = ImageObjects(np.array([[0, 0, 120, 90]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    assert crop_window(one, IMAGE_HW, np.random.default_rng(0)) == (0, 0, 120, 90)


def test_without_an_object_there_is_no_window_and_ignored_regions_may_be_cut() -> None:
    rng = np.random.default_rng(0)
    objects = random_objects(0)
    assert crop_window(objects[np.zeros(5, bool)], IMAGE_HW, rng) is None
    assert crop_window(replace(objects, ignore=np.ones(5, bool)), IMAGE_HW, rng) is None
    crowd = ImageObjects(
        np.array([[0, 0, 120, 90], [50, 40, 60, 50]], np.float32), np.arange(2), np.array([True, False])
    )
    windows = [crop_window(crowd, IMAGE_HW, np.random.default_rng(seed)) for seed in range(10)]
    assert any(window != (0, 0, 120, 90) for window in windows)


@pytest.mark.parametrize("tile", [32, 90, 100])
def test_tiles_have_the_size_of_tiles_of_prediction_and_most_hold_an_object(tile: int) -> None:
    boxes = np.array([[0, 0, 6, 6], [114, 84, 120, 90], [60, 40, 60, 40]], np.float32)
    objects = ImageObjects(boxes, np.arange(3), np.zeros(3, bool))
    windows = [tile_window(objects, IMAGE_HW, tile, np.random.default_rng(seed)) for seed in range(300)]
    assert {(right - left, bottom - top) for left, top, right, bottom in windows} == {(tile, min(tile, IMAGE_HW[0]))}
    assert all(w[0] >= 0 and w[1] >= 0 and w[2] <= IMAGE_HW[1] and w[3] <= IMAGE_HW[0] for w in windows)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    holds = [((centres >= w[:2]) & (centres <= w[2:])).all(axis=1).any() for w in np.array(windows)]
    assert np.mean(holds) > TILES_WITH_OBJECT - 0.07
    assert len({window[:2] for window in windows}) > 20  # at many places


def test_tiles_of_an_image_without_objects_are_anywhere() -> None:
    none = random_objects(0)[np.zeros(5, bool)]
    lefts = [tile_window(none, IMAGE_HW, 40, np.random.default_rng(seed))[0] for seed in range(200)]
    assert (min(lefts), max(lefts)) == (0, IMAGE_HW[1] - 40)


def test_cropping_shifts_the_boxes_with_the_pixels_and_copies_nothing() -> None:
    image = np.zeros((*IMAGE_HW, 3), np.uint8)
    image[30:50, 40:70] = 255
    objects = ImageObjects(np.array([[40, 30, 70, 50], [0, 0, 9, 9]], np.float32), np.arange(2), np.zeros(2, bool))
    cropped, left = crop_to(image, objects, (20, 10, 100, 80))
    assert np.shares_memory(cropped, image)
    assert cropped.shape == (70, 80, 3)
    assert left.xyxy.tolist() == [[20, 20, 50, 40]]
    assert left.labels.tolist() == [0]
    assert (cropped[20:40, 20:50] == 255).all()


# ---- pasting


@pytest.mark.parametrize("seed", range(20))
def test_a_pasted_object_is_where_its_box_is(seed: int) -> None:
    rng = np.random.default_rng((2, seed))
    canvas = np.zeros((200, 220, 3), np.uint8)
    image = np.zeros((*IMAGE_HW, 3), np.uint8)
    left, top = rng.integers(0, 40, 2)
    right, bottom = rng.integers(45, 90, 2)
    image[top:bottom, left:right] = 255
    box = np.array([[left, top, right, bottom]], np.float32)
    others = ImageObjects(box, np.array([7]), np.zeros(1, bool))
    none = others[np.zeros(1, bool)]
    found = paste_objects(canvas, none, image, others, PASTE, rng)
    assert found.labels.tolist() == [7]
    rows, columns = np.nonzero(canvas[..., 0])
    assert found.xyxy.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    fit = min(200 / 90, 220 / 120)
    zoom = (found.xyxy[0, 2:] - found.xyxy[0, :2]) / (box[0, 2:] - box[0, :2]) / fit
    assert ((zoom > 0.68) & (zoom < 1.32)).all()


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_a_box_between_pixels_is_pasted_between_pixels(mirrored: float) -> None:
    canvas, image = np.zeros((40, 40, 1), np.uint8), np.arange(400, dtype=np.uint8).reshape(20, 20, 1)
    others = ImageObjects(np.array([[2.25, 3.5, 9.75, 12]], np.float32), np.array([7]), np.zeros(1, bool))
    config = replace(PASTE, scale=0, flip_horizontal=mirrored)
    found = paste_objects(canvas, others[np.zeros(1, bool)], image, others, config, np.random.default_rng(0))
    rows, columns = np.nonzero(canvas[..., 0])
    left, top = columns.min(), rows.min()
    inner = np.array([0.5, 1, 15.5, 18])  # twice as large; the patch is 16 x 18
    assert np.allclose(found.xyxy[0] - [left, top, left, top], inner)
    assert (columns.max() + 1 - left, rows.max() + 1 - top) == (16, 18)


@pytest.mark.parametrize("seed", range(20))
def test_pasted_objects_hide_little_of_other_objects(seed: int) -> None:
    canvas = np.zeros((*IMAGE_HW, 3), np.uint8)
    present, others = random_objects(seed, 4), random_objects(seed + 50, 12)
    image = np.full((*IMAGE_HW, 3), 255, np.uint8)
    found = paste_objects(canvas, present, image, others, PASTE, np.random.default_rng(seed))
    assert np.array_equal(found.xyxy[:4], present.xyxy)
    white = canvas[..., 0] == 255
    for box in present.xyxy:
        x1, y1, x2, y2 = np.rint(box).astype(int)
        assert white[y1:y2, x1:x2].mean() <= MAX_PASTED_OVER + 0.15  # whole pixels of small boxes
    pasted = found.xyxy[4:].astype(np.float64)
    for number, box in enumerate(pasted):
        assert sum(overlap(box, later) for later in pasted[number + 1 :]) <= MAX_PASTED_OVER * area(box) + 40
    assert (found.xyxy >= 0).all()
    assert (found.xyxy[:, 2:] <= IMAGE_HW[::-1]).all()


def test_pasting_uses_the_configured_share_and_no_ignored_region() -> None:
    canvas, image = np.zeros((640, 640, 3), np.uint8), np.full((640, 640, 3), 9, np.uint8)
    corners = np.random.default_rng(0).uniform(0, 600, (200, 2))
    many = ImageObjects(
        np.concatenate([corners, corners + 4], axis=1).astype(np.float32), np.arange(200), np.zeros(200, bool)
    )
    none = many[np.zeros(200, bool)]
    found = paste_objects(canvas, none, image, many, replace(PASTE, copy_paste=0.3), np.random.default_rng(0))
    assert 40 <= len(found.labels) <= 80
    crowd = replace(many, ignore=np.ones(200, bool))
    assert not len(paste_objects(canvas, none, image, crowd, PASTE, np.random.default_rng(0)).labels)


def test_an_object_that_does_not_fit_is_left_out() -> None:
    canvas, image = np.zeros((50, 50, 3), np.uint8), np.full((50, 50, 3), 9, np.uint8)
    whole = ImageObjects(np.array([[0, 0, 50, 50]], np.float32), np.arange(1), np.zeros(1, bool))
    none = whole[np.zeros(1, bool)]
    results = [paste_objects(canvas, none, image, whole, PASTE, np.random.default_rng(s)) for s in range(20)]
    assert {len(found.labels) for found in results} == {0, 1}  # zoomed in it does not, zoomed out it does


# ---- hiding


@pytest.mark.parametrize("seed", range(20))
def test_rectangles_hide_no_more_than_the_limit(seed: int) -> None:
    canvas = np.full((*IMAGE_HW, 3), 255, np.uint8)
    objects = random_objects(seed)
    cut_out(canvas, objects, 0.5, np.random.default_rng(seed))
    hidden = canvas[..., 0] == PADDING_VALUE
    assert ((canvas == 255) | (canvas == PADDING_VALUE)).all()
    for box in objects.xyxy:
        x1, y1, x2, y2 = np.floor(box).astype(int) + np.array([1, 1, 0, 0])  # whole pixels inside the box
        inside_px = hidden[y1:y2, x1:x2].sum()
        assert inside_px <= MAX_CUT_OUT * area(box.astype(np.float64))


def test_the_hidden_share_spreads_up_to_the_greatest() -> None:
    none = random_objects(0)[np.zeros(5, bool)]
    shares = []
    for seed in range(60):
        canvas = np.full((160, 160, 3), 255, np.uint8)
        cut_out(canvas, none, 0.3, np.random.default_rng(seed))
        shares.append((canvas == PADDING_VALUE).mean())
    assert min(shares) < 0.05
    assert 0.2 < max(shares) < 0.3 + 1 / 16
