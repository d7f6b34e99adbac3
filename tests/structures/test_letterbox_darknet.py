"""Darknet's image arithmetic against numbers of Darknet itself and scalar references in float32 and float64."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from detector.structures.letterbox import DARKNET_PADDING_VALUE, FITS, Letterbox, resize_darknet

# What Darknet's own build computed: source (H, W), result (h, w), a pixel of the result, the first of the four source
# pixels around it, their values row by row, and the value of the result, all exact.
DARKNET_PIXELS = [
    ((9, 13), (64, 32), (3, 5), (0, 1), "1.9daa6ap-1 1.07d8c0p-1 1.cb9c66p-1 1.b03f0cp-1", "1.4ea7b0p-1"),
    ((9, 13), (64, 32), (40, 30), (5, 11), "1.fbbd0cp-1 1.7285b2p-1 1.ae44dap-2 1.434b98p-1", "1.9c5a04p-1"),
    ((9, 13), (64, 32), (63, 7), (7, 2), "1.4f34cap-2 1.fa4bfep-1 1.1b3dd2p-1 1.b33fd6p-4", "1.e35e7cp-3"),
    ((9, 13), (64, 32), (20, 31), (2, 11), "1.440c04p-2 1.313b24p-3 1.5f8adep-4 1.b09a3ep-1", "1.0c9806p-1"),
    ((121, 20), (416, 16), (415, 3), (119, 3), "1.910bf2p-5 1.a26fa2p-1 1.e00874p-2 1.a55202p-1", "1.53c30ep-18"),
    ((37, 50), (32, 32), (17, 11), (19, 17), "1.a5b5fep-1 1.5cb41cp-1 1.846d4ap-4 1.f0fcb6p-1", "1.0a596ep-1"),
    ((50, 37), (32, 64), (9, 50), (14, 28), "1.93abccp-1 1.00fceap-1 1.d46302p-1 1.437e14p-1", "1.4eb22ep-1"),
]


def scalar_resize(image: np.ndarray, resized_hw: tuple[int, int]) -> np.ndarray:
    """Resize as the specification says, every operation rounded to float32; `image` float32 (H, W)."""
    f = np.float32
    (source_h, source_w), (height, width) = image.shape, resized_hw
    lines = np.zeros((source_h, width), f)
    for y in range(source_h):
        for x in range(width):
            if x == width - 1:
                lines[y, x] = image[y, source_w - 1]
                continue
            position = f(x) * (f(source_w - 1) / f(width - 1))
            left = int(position)
            share = position - f(left)
            lines[y, x] = (f(1) - share) * image[y, left] + share * image[y, left + 1] if source_w > 1 else image[y, 0]
    resized = np.zeros(resized_hw, f)
    for y in range(height):
        position = f(y) * (f(source_h - 1) / f(height - 1)) if height > 1 else f(0)
        above = int(position)
        share = position - f(above)
        for x in range(width):
            resized[y, x] = (f(1) - share) * lines[above, x]
            if y < height - 1 and source_h > 1:
                resized[y, x] += share * lines[above + 1, x]
    return resized


def real_resize(image: np.ndarray, resized_hw: tuple[int, int]) -> np.ndarray:
    """Interpolate corner-aligned in float64, without the defect of the last row; `image` (H, W)."""

    def weights(num_source: int, num_resized: int) -> np.ndarray:
        positions = np.linspace(0, num_source - 1, num_resized)
        return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(num_source)[None]))

    return weights(image.shape[0], resized_hw[0]) @ image.astype(np.float64) @ weights(image.shape[1], resized_hw[1]).T


def is_dark(num_source: int, num_resized: int) -> bool:
    """Return true if the last row is darkened: a white source does not stay white."""
    white = np.full((num_source, 1, 1), 255, np.uint8)
    return bool(resize_darknet(white, (num_resized, 1))[-1, 0, 0] < 0.5)


@pytest.mark.parametrize(("source_hw", "resized_hw", "pixel", "first", "corners", "value"), DARKNET_PIXELS)
def test_pixels_equal_those_of_darknet(source_hw, resized_hw, pixel, first, corners, value):
    image = np.zeros((*source_hw, 1), np.float32)
    (y, x), values = first, [float.fromhex(text) for text in corners.split()]
    image[y : y + 2, x : x + 2, 0] = np.reshape(values, (2, 2))
    assert float(resize_darknet(image, resized_hw)[(*pixel, 0)]) == float.fromhex(value)


@pytest.mark.parametrize("seed", range(8))
def test_every_pixel_equals_the_scalar_reference_to_the_last_bit(seed):
    rng = np.random.default_rng(seed)
    source_hw, resized_hw = rng.integers(1, 30, 2), rng.integers(1, 40, 2)
    image = rng.random((*source_hw, 3), np.float32)
    found = resize_darknet(image, tuple(resized_hw))
    assert (found.shape, found.dtype) == ((*resized_hw, 3), np.float32)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], scalar_resize(image[..., channel], tuple(resized_hw)))
    bytes_image = rng.integers(0, 256, (*source_hw, 2), np.uint8)
    as_floats = bytes_image.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(resize_darknet(bytes_image, tuple(resized_hw)), resize_darknet(as_floats, resized_hw))


@pytest.mark.parametrize(
    ("source_hw", "resized_hw"), [((40, 51), (64, 96)), ((300, 200), (64, 96)), ((2, 2), (33, 65))]
)
def test_the_interpolation_is_corner_aligned_in_float64(source_hw, resized_hw):
    image = np.random.default_rng(1).integers(0, 256, (*source_hw, 1), np.uint8)
    wanted = real_resize(image[..., 0] / 255.0, resized_hw)
    found = resize_darknet(image, resized_hw)[..., 0]
    last = -1 if is_dark(source_hw[0], resized_hw[0]) else resized_hw[0]
    # A position of up to 300 pixels has 5 decimals left in float32, and neighbours differ by at most 1.
    assert np.abs(found - wanted)[:last].max() < 5e-5


def test_last_row_is_black_where_that_of_darknet_is():
    """240 and 121 rows to 416, 128 to 640, 212 to 608: the specification's examples, and its count of 213 in 5200."""
    assert all(is_dark(*pair) for pair in ((240, 416), (121, 416), (128, 640), (212, 608)))
    assert not is_dark(480, 416)
    assert sum(is_dark(rows, side) for rows in range(100, 1400) for side in (416, 512, 608, 640)) == 213


def test_golden_file_of_darknet_is_reproduced_to_the_last_bit():
    path = Path(os.environ.get("DETECTOR_TEST_DATA", "")).parent / "darknet-golden" / "resize.npz"
    if not path.is_file():
        pytest.skip("no folder darknet-golden beside DETECTOR_TEST_DATA; DARKNET_PIXELS holds some of its numbers")
    golden = np.load(path)
    for number in range(6):
        image, resized, boxed = (
            np.ascontiguousarray(golden[f"{name}{number}"].transpose(1, 2, 0))
            for name in ("in", "resize_image", "letterbox_image")
        )
        np.testing.assert_array_equal(resize_darknet(image, resized.shape[:2]), resized)
        letterbox = Letterbox.fit(image.shape[:2], boxed.shape[:2], arithmetic="darknet")
        np.testing.assert_array_equal(letterbox.apply(image), boxed)


# --- the letterbox -------------------------------------------------------------------------------------------------


def test_sizes_are_whole_divisions():
    for (height, width), (canvas_h, canvas_w), wanted in (
        ((424, 640), (416, 416), (275, 416)),  # 424 * 416 / 640 = 275.6, which OpenCV's arithmetic rounds up
        ((640, 424), (416, 416), (416, 275)),
        ((500, 500), (416, 416), (416, 416)),
        ((48, 64), (32, 320), (32, 42)),
        ((1, 5000), (416, 416), (1, 416)),  # Darknet's own division gives 0
    ):
        letterbox = Letterbox.fit((height, width), (canvas_h, canvas_w), arithmetic="darknet")
        assert letterbox.resized_hw == wanted
    assert Letterbox.fit((424, 640), (416, 416)).resized_hw == (276, 416)
    assert Letterbox.fit((424, 640), (416, 416), "stretch", arithmetic="darknet").resized_hw == (416, 416)
    assert Letterbox.fit((40, 50), (64, 64), upscale=False, arithmetic="darknet").resized_hw == (40, 50)
    assert Letterbox.fit((80, 50), (64, 64), upscale=False, arithmetic="darknet").resized_hw == (64, 40)


@pytest.mark.parametrize("mode", FITS)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("source_hw", [(20, 31), (64, 64), (101, 37), (1, 1)])
def test_the_canvas_is_float32_of_one_half_around_the_resized_image(mode, channels, source_hw):
    image = np.random.default_rng(2).integers(0, 256, (*source_hw, channels), np.uint8)
    before = image.copy()
    letterbox = Letterbox.fit(source_hw, (64, 64), mode, arithmetic="darknet")
    canvas = letterbox.apply(image)
    assert (canvas.dtype, canvas.shape, canvas.flags.c_contiguous) == (np.float32, (64, 64, channels), True)
    (top, left), (height, width) = letterbox.padding_top_left, letterbox.resized_hw
    inner = canvas[top : top + height, left : left + width]
    np.testing.assert_array_equal(inner, resize_darknet(image, (height, width)))
    outside = np.ones((64, 64), np.bool_)
    outside[top : top + height, left : left + width] = False
    assert (canvas[outside] == DARKNET_PADDING_VALUE).all()
    np.testing.assert_array_equal(image, before)


def test_boxes_shift_by_the_exact_half_of_an_odd_padding_though_pixels_do_not():
    letterbox = Letterbox.fit((37, 50), (32, 32), arithmetic="darknet")
    assert (letterbox.resized_hw, letterbox.padding_top_left) == ((23, 32), (4, 0))
    assert letterbox.offset_top_left == (4.5, 0.0)
    assert Letterbox.fit((37, 50), (32, 32)).offset_top_left == Letterbox.fit((37, 50), (32, 32)).padding_top_left


def test_boxes_to_source_agree_with_darknets_formula_in_float64():
    rng = np.random.default_rng(3)
    for _ in range(200):
        (height, width), (net_h, net_w) = rng.integers(1, 2000, 2), rng.integers(32, 700, 2)
        letterbox = Letterbox.fit((int(height), int(width)), (int(net_h), int(net_w)), arithmetic="darknet")
        new_h, new_w = letterbox.resized_hw
        centre_x, centre_y, box_w, box_h = rng.uniform(0, 1, 4)  # relative to the network's input, as Darknet has them
        canvas_xyxy = np.array([centre_x - box_w / 2, centre_y - box_h / 2, centre_x + box_w / 2, centre_y + box_h / 2])
        source_x = (centre_x - (net_w - new_w) / 2.0 / net_w) / (new_w / net_w) * width
        source_y = (centre_y - (net_h - new_h) / 2.0 / net_h) / (new_h / net_h) * height
        source_w, source_h = box_w * net_w / new_w * width, box_h * net_h / new_h * height
        found = letterbox.boxes_to_source(canvas_xyxy * (net_w, net_h, net_w, net_h))
        wanted = [source_x - source_w / 2, source_y - source_h / 2, source_x + source_w / 2, source_y + source_h / 2]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
        back = letterbox.boxes_to_canvas(found) / (net_w, net_h, net_w, net_h)
        np.testing.assert_allclose(back, canvas_xyxy, rtol=1e-9, atol=1e-9)
        corner = letterbox.matrix() @ (found[0], found[1], 1)
        np.testing.assert_allclose(corner[:2], letterbox.boxes_to_canvas(found)[:2], rtol=1e-9, atol=1e-9)


def test_an_unknown_arithmetic_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['darknet', 'opencv', 'yolox'\], got 'caffe'"):
        Letterbox.fit((5, 5), (64, 64), arithmetic="caffe")
