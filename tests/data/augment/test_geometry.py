from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from detector.data.augment.geometry import (
    MIN_SIDE_PX,
    MIN_VISIBLE_SHARE,
    Matrix,
    Objects,
    blank_canvas,
    mosaic_places,
    random_affine,
    scaling,
    transform_corners,
    transform_objects,
    translation,
    warp_into,
)
from detector.data.augment.settings import AugmentConfig
from detector.geometry import PADDING_VALUE

STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, flip_horizontal=0, flip_vertical=0, hue=0, saturation=0, value=0, closing_share=0
)
CANVAS_HW = (96, 128)


def objects_of(boxes: list[list[float]]) -> Objects:
    num = len(boxes)
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.arange(num), np.arange(num) % 2 == 1)


def noise(image_hw: tuple[int, int], channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*image_hw, channels), dtype=np.uint8)


def painted_extent(box: tuple[int, int, int, int], source_hw: tuple[int, int], matrix: Matrix) -> list[float] | None:
    """A white box painted on black, warped, and where more than a trace of it is found on the canvas."""
    image = np.zeros((*source_hw, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    canvas = np.zeros((*CANVAS_HW, 3), np.uint8)
    warp_into(canvas, image, matrix)
    rows, columns = np.nonzero(canvas[..., 0] > 64)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


@pytest.mark.parametrize("seed", range(40))
def test_pixels_go_where_the_boxes_go(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = replace(
        STILL,
        scale=0.4,
        translate=0.2,
        degrees=30,
        shear=8,
        flip_horizontal=0.5,
        flip_vertical=0.5,
    )
    source_hw = (int(rng.integers(60, 120)), int(rng.integers(60, 120)))
    box = (int(rng.integers(2, 20)), int(rng.integers(2, 20)), int(rng.integers(40, 58)), int(rng.integers(40, 58)))
    fit = min(CANVAS_HW[0] / source_hw[0], CANVAS_HW[1] / source_hw[1])
    centred = translation(-source_hw[1] * fit / 2, -source_hw[0] * fit / 2) @ scaling(fit, fit)
    matrix = random_affine(config, CANVAS_HW, rng) @ centred
    found = transform_objects(objects_of([list(box)]), matrix, CANVAS_HW).xyxy
    painted = painted_extent(box, source_hw, matrix)
    assert painted is not None
    whole = transform_corners(np.array([box]), matrix)[0]
    inside = (whole >= 0).all() and (whole <= CANVAS_HW[::-1]).all()
    if inside:  # a box of corners that were cut off is looser than what was painted
        assert np.abs(found[0] - painted).max() <= 1
    else:
        assert (found[0, :2] <= np.array(painted[:2]) + 1).all()
        assert (found[0, 2:] >= np.array(painted[2:]) - 1).all()


def test_most_of_the_random_boxes_above_lie_inside() -> None:
    """Otherwise the test above would compare little."""
    rng = np.random.default_rng(0)
    config = replace(STILL, scale=0.4, translate=0.2, degrees=30, shear=8)
    corners = [
        transform_corners(np.array([[-30, -25, 15, 15]]), random_affine(config, CANVAS_HW, rng)) for _ in range(200)
    ]
    inside = [(c >= 0).all() and (c <= CANVAS_HW[::-1]).all() for c in corners]
    assert sum(inside) > 100


@pytest.mark.parametrize("zoom", [0.37, 1.0, 2.5])
@pytest.mark.parametrize("mirror", [(1, 1), (-1, 1), (1, -1)])
def test_zoom_shift_and_mirror_place_a_box_to_the_pixel(zoom: float, mirror: tuple[int, int]) -> None:
    box = (6, 8, 26, 24)
    matrix = translation(60, 50) @ scaling(mirror[0] * zoom, mirror[1] * zoom) @ translation(-16, -16)
    found = transform_objects(objects_of([list(box)]), matrix, CANVAS_HW).xyxy[0]
    wanted_x = sorted(60 + mirror[0] * zoom * (x - 16) for x in (6, 26))
    wanted_y = sorted(50 + mirror[1] * zoom * (y - 16) for y in (8, 24))
    assert found.tolist() == pytest.approx([wanted_x[0], wanted_y[0], wanted_x[1], wanted_y[1]])
    painted = painted_extent(box, (32, 32), matrix)
    assert painted is not None
    assert np.abs(found - painted).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9])
def test_a_whole_pixel_shift_copies_the_pixels_of_every_channel(channels: int) -> None:
    image, canvas = noise((20, 30), channels), blank_canvas(CANVAS_HW, channels)
    warp_into(canvas, image, translation(7, 11))
    # OpenCV leaves the last row and column to the canvas in part, where a tap of its interpolation lies outside.
    assert np.array_equal(canvas[11:30, 7:36], image[:19, :29])
    untouched = np.ones(CANVAS_HW, bool)
    untouched[11:31, 7:37] = False
    assert (canvas[untouched] == PADDING_VALUE).all()


def test_a_half_turn_is_the_image_turned() -> None:
    image, canvas = noise((20, 30)), blank_canvas((20, 30), 3)
    warp_into(canvas, image, translation(30, 20) @ scaling(-1, -1))
    assert np.array_equal(canvas[1:-1, 1:-1], image[::-1, ::-1][1:-1, 1:-1])


@pytest.mark.parametrize("shift", [(-200, 0), (0, 300), (128, 0), (0, -96)])
def test_an_image_outside_the_canvas_leaves_it_as_it_is(shift: tuple[int, int]) -> None:
    canvas = blank_canvas(CANVAS_HW, 3)
    warp_into(canvas, noise((96, 128)), translation(*shift))
    assert (canvas == PADDING_VALUE).all()


def test_the_parts_of_the_affine_are_drawn_within_their_ranges() -> None:
    rng = np.random.default_rng(0)
    config = replace(STILL, scale=0.3, translate=0.1, flip_horizontal=0.5)
    matrices = np.stack([random_affine(config, CANVAS_HW, rng) for _ in range(400)])
    assert np.abs(matrices[:, 0, 1]).max() == np.abs(matrices[:, 1, 0]).max() == 0
    zoom = matrices[:, 1, 1]
    assert 0.7 <= zoom.min() < 0.72 < 1.28 < zoom.max() <= 1.3
    assert np.allclose(np.abs(matrices[:, 0, 0]), zoom)
    assert 0.4 < (matrices[:, 0, 0] < 0).mean() < 0.6
    shift = matrices[:, :2, 2] / np.array(CANVAS_HW[::-1])
    assert 0.4 <= shift.min() < 0.41 < 0.59 < shift.max() <= 0.6


def test_without_any_change_the_affine_puts_the_origin_in_the_middle() -> None:
    assert np.allclose(random_affine(STILL, CANVAS_HW, np.random.default_rng(0)), translation(64, 48))


def test_rotation_keeps_lengths_and_angles() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        turned = random_affine(replace(STILL, degrees=45), CANVAS_HW, rng)[:2, :2]
        assert np.allclose(turned @ turned.T, np.eye(2))
        assert abs(math.degrees(math.atan2(turned[1, 0], turned[0, 0]))) <= 45


@pytest.mark.parametrize("seed", range(20))
def test_the_four_places_of_a_mosaic_never_overlap_and_meet_in_a_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(h), int(w)) for h, w in rng.integers(10, 300, (4, 2))]
    places = mosaic_places(sizes, CANVAS_HW, rng)
    rectangles = []
    for (height, width), place in zip(sizes, places, strict=True):
        corners = transform_corners(np.array([[0, 0, width, height]]), place)[0]
        rectangles.append((*corners.min(axis=0), *corners.max(axis=0)))
        fitted_w, fitted_h = corners.max(axis=0) - corners.min(axis=0)
        assert fitted_w == pytest.approx(128) or fitted_h == pytest.approx(96)
        assert fitted_w <= 128 + 1e-9
        assert fitted_h <= 96 + 1e-9
        assert fitted_w / fitted_h == pytest.approx(width / height)
    for i in range(4):
        for j in range(i):
            a, b = rectangles[i], rectangles[j]
            assert min(a[2], b[2]) - max(a[0], b[0]) <= 1e-9 or min(a[3], b[3]) - max(a[1], b[1]) <= 1e-9
    top_left = rectangles[0][2:]
    assert rectangles[3][:2] == pytest.approx(top_left)
    assert np.abs(top_left / np.array(CANVAS_HW[::-1])).max() <= 0.5


# ---- objects


def test_boxes_are_clipped_to_the_canvas() -> None:
    found = transform_objects(objects_of([[-10, -20, 50, 40], [100, 80, 150, 120]]), np.eye(3), CANVAS_HW)
    assert found.xyxy.tolist() == [[0, 0, 50, 40], [100, 80, 128, 96]]
    assert found.xyxy.dtype == np.float32


@pytest.mark.parametrize(
    ("box", "is_kept"),
    [
        ([-80, 10, 20, 60], True),  # a fifth is left
        ([-91, 10, 9, 60], False),  # 9 % of the area is left
        ([-89, 10, 11, 60], True),  # 11 %
        ([10, 10, 11.9, 60], False),  # narrower than MIN_SIDE_PX
        ([10, 10, 12, 60], True),
        ([10, 10, 60, 11.9], False),
        ([200, 10, 260, 60], False),  # wholly outside
    ],
)
def test_what_is_hardly_left_is_dropped_with_its_label_and_flag(box: list[float], is_kept: bool) -> None:
    assert (MIN_VISIBLE_SHARE, MIN_SIDE_PX) == (0.1, 2.0)
    found = transform_objects(objects_of([[1, 1, 20, 20], box, [30, 30, 50, 50]]), np.eye(3), CANVAS_HW)
    assert found.labels.tolist() == ([0, 1, 2] if is_kept else [0, 2])
    assert found.ignore.tolist() == ([False, True, False] if is_kept else [False, False])
    assert len(found.xyxy) == len(found.labels)


def test_no_objects_stay_no_objects() -> None:
    found = transform_objects(objects_of([]), translation(5, 5), CANVAS_HW)
    assert found.xyxy.shape == (0, 4)
    assert Objects.joined([found, objects_of([[1, 2, 3, 4]])]).labels.tolist() == [0]
