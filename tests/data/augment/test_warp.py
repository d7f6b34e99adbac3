from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.warp import (
    MIN_SIDE_PX,
    MIN_VISIBLE_SHARE,
    Matrix,
    blank_canvas,
    mosaic_places,
    nine_places,
    random_affine,
    random_perspective,
    scaling,
    transform_corners,
    transform_objects,
    translation,
    warp_into,
)
from detector.structures.letterbox import PADDING_VALUE
from detector.structures.types import ImageObjects

STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, flip_horizontal=0, flip_vertical=0, hue=0, saturation=0, value=0, closing_share=0
)
CANVAS_HW = (96, 128)


def objects_of(boxes: Sequence[Sequence[float]], ignore: bool = False) -> ImageObjects:
    num = len(boxes)
    return ImageObjects(np.array(boxes, np.float32).reshape(-1, 4), np.arange(num), np.full(num, ignore))


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


def test_most_random_boxes_of_the_previous_test_lie_inside() -> None:
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


TURN = np.array([[0, -1, 96], [1, 0, 0], [0, 0, 1.0]])  # by a quarter of a circle; (x, y) goes to (96 - y, x)


@pytest.mark.parametrize(
    ("box", "object_is_kept", "crowd_is_kept"),
    [
        ([-80, 10, 20, 60], True, True),  # a fifth is left
        ([-91, 10, 9, 60], False, True),  # 9 % of the area is left
        ([-89, 10, 11, 60], True, True),  # 11 %
        ([-10, 10, 1.9, 60], False, True),  # cut to less than MIN_SIDE_PX
        ([-10, 10, 2, 60], True, True),
        ([10, -9, 60, 1.9], False, True),
        ([-9, 10, 0.01, 60], False, True),
        ([10, 10, 11.9, 60], True, True),  # narrower, but whole
        ([10, 10, 60, 10.4], True, True),
        ([0, 0, 0.5, 0.5], True, True),  # whole in a corner
        ([200, 10, 260, 60], False, False),  # wholly outside
        ([-50, 10, 0, 60], False, False),  # touches the border
    ],
)
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("matrix", [np.eye(3), TURN], ids=["upright", "turned"])
def test_objects_cut_to_slivers_are_dropped_and_crowds_stay_while_visible(
    box: list[float], object_is_kept: bool, crowd_is_kept: bool, ignore: bool, matrix: Matrix
) -> None:
    assert (MIN_VISIBLE_SHARE, MIN_SIDE_PX) == (0.1, 2.0)
    if matrix is TURN:
        box = [box[1], 96 - box[2], box[3], 96 - box[0]]  # what TURN moves to the box
    given = objects_of([[1, 1, 20, 20], box, [30, 30, 50, 50]])
    given = replace(given, ignore=np.array([False, ignore, True]))
    found = transform_objects(given, matrix, CANVAS_HW)
    is_kept = crowd_is_kept if ignore else object_is_kept
    assert found.labels.tolist() == ([0, 1, 2] if is_kept else [0, 2])
    assert found.ignore.tolist() == ([False, ignore, True] if is_kept else [False, True])
    assert len(found.xyxy) == len(found.labels)


def test_an_empty_set_of_objects_stays_empty() -> None:
    found = transform_objects(objects_of([]), translation(5, 5), CANVAS_HW)
    assert found.xyxy.shape == (0, 4)
    assert ImageObjects.joined([found, objects_of([[1, 2, 3, 4]])]).labels.tolist() == [0]


# ---- turned boxes: what the border cuts off does not count


def cloud_on_canvas(box: list[float], matrix: Matrix) -> tuple[npt.NDArray[np.float64], float]:
    """Return the bounds of a dense cloud of points of a box on the canvas, and the share of visible points."""
    xs, ys = np.meshgrid(np.linspace(box[0], box[2], 200), np.linspace(box[1], box[3], 200))
    points = np.stack([xs.ravel(), ys.ravel(), np.ones(xs.size)], axis=1) @ matrix.T
    points = points[points[:, 2] > 0]
    on_canvas = points[:, :2] / points[:, 2:]
    inside = on_canvas[((on_canvas >= 0) & (on_canvas <= [CANVAS_HW[1], CANVAS_HW[0]])).all(axis=1)]
    return inside, len(inside) / xs.size


@pytest.mark.parametrize("seed", range(12))
def test_a_turned_box_bounds_what_is_left_of_it_on_the_canvas(seed: int) -> None:
    rng = np.random.default_rng((3, seed))
    config = replace(STILL, scale=0.6, translate=0.5, degrees=180, shear=25, perspective=0.5)
    matrix = random_perspective(config, CANVAS_HW, rng) @ random_affine(config, CANVAS_HW, rng)
    corners = rng.uniform(-80, 60, (15, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 90, (15, 2))], axis=1)
    found = transform_objects(objects_of(boxes.tolist()), matrix, CANVAS_HW)
    for label, box in enumerate(boxes.tolist()):
        cloud, share = cloud_on_canvas(box, matrix)
        if label in found.labels:
            own = found.xyxy[found.labels == label][0]
            wanted = np.concatenate([cloud.min(axis=0), cloud.max(axis=0)])
            assert np.abs(own - wanted).max() < 2  # the cloud's points lie up to that far apart
            assert share > MIN_VISIBLE_SHARE - 0.01
        elif share > MIN_VISIBLE_SHARE + 0.01:  # then it must be a sliver
            assert np.ptp(cloud, axis=0).min() < MIN_SIDE_PX
    crowds = transform_objects(objects_of(boxes.tolist(), ignore=True), matrix, CANVAS_HW)
    for label, box in enumerate(boxes.tolist()):
        cloud, share = cloud_on_canvas(box, matrix)
        assert label in crowds.labels or share < 0.01
        assert share > 0 or label not in crowds.labels or np.ptp(crowds.xyxy[crowds.labels == label]) < 2


def test_a_corner_that_is_cut_off_no_longer_widens_a_turned_box() -> None:
    turn = np.array([[1, -1, 0], [1, 1, 0], [0, 0, 1]]) / np.sqrt(2)
    turn[2, 2] = 1
    found = transform_objects(objects_of([[0, -40, 40, 0]]), translation(64, 10) @ turn, CANVAS_HW).xyxy[0]
    # A square on its corner, its middle at x = 64 + 40 / sqrt(2), y = 10 + 0: the upper half is above the canvas.
    assert found.tolist() == pytest.approx([64, 0, 64 + 80 / np.sqrt(2), 10 + 40 / np.sqrt(2)], abs=1e-4)


def test_objects_behind_the_horizon_are_dropped_and_those_across_it_are_cut() -> None:
    tilt = translation(64, 48) @ np.array([[1, 0, 0], [0, 1, 0], [1 / 100, 0, 1]]) @ translation(-64, -48)
    boxes = [[-400, 0, -200, 96], [-300, 10, 100, 80], [64, 40, 80, 60]]
    found = transform_objects(objects_of(boxes), tilt, CANVAS_HW)
    assert found.labels.tolist() == [1, 2]
    assert found.xyxy[0, 0] == 0
    canvas = np.zeros((*CANVAS_HW, 3), np.uint8)
    warp_into(canvas, np.full((96, 128, 3), 255, np.uint8), tilt)
    assert canvas[48, 64, 0] == 255


def test_a_perspective_keeps_the_middle_and_its_corners_differ_as_stated() -> None:
    config = replace(STILL, perspective=0.5)
    matrices = [random_perspective(config, CANVAS_HW, np.random.default_rng(seed)) for seed in range(300)]
    corners = np.array([[0, 0, 1], [128, 0, 1], [128, 96, 1], [0, 96, 1]])
    shown = []
    for matrix in matrices:
        assert np.allclose(matrix @ [64, 48, 1], [64, 48, 1])
        assert np.allclose(random_perspective(STILL, CANVAS_HW, np.random.default_rng(0)), np.eye(3))
        sources = corners @ np.linalg.inv(matrix).T
        sources /= sources[:, 2:]
        shown += (1 / (sources @ matrix[2])).tolist()  # how much larger than in the middle
    assert 0.5 <= min(shown) < 0.55
    assert 1.45 < max(shown) <= 1.5


@pytest.mark.parametrize("seed", range(20))
def test_nine_places_never_overlap_and_surround_the_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(h), int(w)) for h, w in rng.integers(10, 300, (9, 2))]
    places = nine_places(sizes, CANVAS_HW, rng)
    boxes = np.array(
        [
            [*transform_corners(np.array([[0, 0, w, h]]), place)[0][[0, 2]].ravel()]
            for (h, w), place in zip(sizes, places, strict=True)
        ]
    )
    for i in range(9):
        sides = boxes[i, 2:] - boxes[i, :2]
        assert sides[0] / sides[1] == pytest.approx(sizes[i][1] / sizes[i][0])
        assert (sides <= np.array(CANVAS_HW[::-1]) * 2 / 3 + 1e-9).all()
        for j in range(i):
            gap = np.maximum(boxes[i, :2] - boxes[j, 2:], boxes[j, :2] - boxes[i, 2:])
            assert gap.max() >= -1e-9
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (np.abs(middles[0]) <= np.array(CANVAS_HW[::-1]) / 3 + 1e-9).all()
    around = middles[1:] - middles[0]
    assert {tuple(np.sign(np.round(v, 6)).astype(int).tolist()) for v in around} >= {(-1, -1), (1, -1), (-1, 1), (1, 1)}


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_a_perspective_warps_every_channel_alike(channels: int) -> None:
    matrix = random_perspective(replace(STILL, perspective=0.4), CANVAS_HW, np.random.default_rng(3))
    plane, canvas = noise((96, 128), 1), blank_canvas(CANVAS_HW, channels)
    warp_into(canvas, np.repeat(plane, channels, axis=2), matrix)
    assert (canvas == canvas[..., :1]).all()
    assert (canvas[..., 0] != PADDING_VALUE).mean() > 0.5
