"""Box formats and the letterbox, against float64 arithmetic written out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from detector.structures.boxes import area_xyxy, clip_xyxy, cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh
from detector.structures.letterbox import FITS, PADDING_VALUE, Letterbox

# The reference: one box at a time, in Python's float64.
REFERENCES = {
    xywh_to_xyxy: lambda x, y, w, h: (x, y, x + w, y + h),
    xyxy_to_xywh: lambda a, b, c, d: (a, b, c - a, d - b),
    cxcywh_to_xyxy: lambda x, y, w, h: (x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h),
    xyxy_to_cxcywh: lambda a, b, c, d: (0.5 * (a + c), 0.5 * (b + d), c - a, d - b),
}
SHAPES = [(4,), (0, 4), (7, 4), (3, 5, 4)]


def reference_of(function, boxes):
    flat = boxes.astype(np.float64).reshape(-1, 4).tolist()
    return np.array([function(*box) for box in flat], np.float64).reshape(boxes.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", REFERENCES, ids=lambda f: f.__name__)
def test_a_format_agrees_with_float64_for_arrays_and_tensors(function, shape):
    boxes = np.random.default_rng(0).uniform(-50, 2000, shape)
    wanted = reference_of(REFERENCES[function], boxes)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-3)):
        given = boxes.astype(dtype)
        before = given.copy()
        found = function(given)
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape) == (dtype, shape)
        assert np.abs(found - wanted).max(initial=0) <= tolerance
        of_tensor = function(torch.from_numpy(given))
        assert of_tensor.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
        np.testing.assert_array_equal(of_tensor.numpy(), found)
        np.testing.assert_array_equal(given, before)  # the argument is never modified


@pytest.mark.parametrize(
    ("there", "back"), [(xywh_to_xyxy, xyxy_to_xywh), (cxcywh_to_xyxy, xyxy_to_cxcywh)], ids=["xywh", "cxcywh"]
)
def test_a_format_and_its_inverse_give_the_box_back(there, back):
    boxes = np.random.default_rng(1).uniform(0, 4000, (500, 4))
    assert np.abs(back(there(boxes)) - boxes).max() < 1e-9
    boxes_xyxy = there(boxes)
    assert np.abs(there(back(boxes_xyxy)) - boxes_xyxy).max() < 1e-9


def test_formats_of_one_known_box():
    np.testing.assert_array_equal(xywh_to_xyxy(np.array([10.0, 20.0, 4.0, 6.0])), [10, 20, 14, 26])
    np.testing.assert_array_equal(cxcywh_to_xyxy(np.array([10.0, 20.0, 4.0, 6.0])), [8, 17, 12, 23])
    np.testing.assert_array_equal(xyxy_to_cxcywh(np.array([8.0, 17.0, 12.0, 23.0])), [10, 20, 4, 6])


def test_gradients_flow_through_a_format():
    boxes = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cxcywh_to_xyxy, (boxes,))


@pytest.mark.parametrize("shape", SHAPES)
def test_clipping_and_area_agree_with_float64(shape):
    boxes = np.random.default_rng(2).uniform(-100, 300, shape)
    before = boxes.copy()
    height, width = 120, 200
    wanted = reference_of(
        lambda a, b, c, d: (
            min(max(a, 0.0), width),
            min(max(b, 0.0), height),
            min(max(c, 0.0), width),
            min(max(d, 0.0), height),
        ),
        boxes,
    )
    clipped = clip_xyxy(boxes, (height, width))
    np.testing.assert_array_equal(clipped, wanted)
    np.testing.assert_array_equal(clip_xyxy(torch.from_numpy(boxes), (height, width)).numpy(), wanted)
    areas = np.array([(c - a) * (d - b) for a, b, c, d in boxes.reshape(-1, 4).tolist()]).reshape(shape[:-1])
    np.testing.assert_allclose(area_xyxy(boxes), areas, rtol=0, atol=1e-9)
    np.testing.assert_allclose(area_xyxy(torch.from_numpy(boxes)).numpy(), areas, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(boxes, before)


# --- the letterbox -------------------------------------------------------------------------------------------------


def random_letterboxes(num: int, largest: int = 4000) -> list[Letterbox]:
    rng = np.random.default_rng(3)
    found = []
    for number in range(num):
        source_h, source_w = (int(v) for v in np.exp(rng.uniform(0, np.log(largest), 2)).round().clip(1))
        canvas_h, canvas_w = (int(v) for v in rng.integers(1, 1300, 2))
        mode = sorted(FITS)[number % len(FITS)]
        found.append(Letterbox.fit((source_h, source_w), (canvas_h, canvas_w), mode, upscale=bool(rng.integers(2))))
    return found


def test_fit_agrees_with_float64():
    for letterbox in random_letterboxes(600):
        (height, width), (canvas_h, canvas_w) = letterbox.resized_hw, letterbox.canvas_hw
        assert 1 <= height <= canvas_h
        assert 1 <= width <= canvas_w
        top, left = letterbox.padding_top_left
        bottom, right = canvas_h - height - top, canvas_w - width - left
        assert bottom - top in (0, 1)  # an odd padding puts the extra pixel at the bottom or right
        assert right - left in (0, 1)
        assert letterbox.scale_hw == (height / letterbox.source_hw[0], width / letterbox.source_hw[1])


def test_letterbox_mode_keeps_the_aspect_ratio_to_the_pixel():
    rng = np.random.default_rng(4)
    for _ in range(500):
        source_hw = tuple(int(v) for v in rng.integers(1, 3000, 2))
        canvas_hw = tuple(int(v) for v in rng.integers(32, 1300, 2))
        for upscale in (True, False):
            letterbox = Letterbox.fit(source_hw, canvas_hw, upscale=upscale)
            scale = min(canvas_hw[0] / source_hw[0], canvas_hw[1] / source_hw[1])
            scale = scale if upscale else min(scale, 1.0)
            for resized, source in zip(letterbox.resized_hw, source_hw, strict=True):
                assert abs(resized - source * scale) <= 0.5 + 1e-9 or resized == 1
            if upscale:
                assert any(r == c for r, c in zip(letterbox.resized_hw, canvas_hw, strict=True))


def test_known_letterboxes():
    letterbox = Letterbox.fit((480, 640), (640, 640))
    assert letterbox.resized_hw == (480, 640)
    assert letterbox.padding_top_left == (80, 0)
    small = Letterbox.fit((100, 50), (640, 640), upscale=False)
    assert (small.resized_hw, small.padding_top_left) == ((100, 50), (270, 295))
    odd = Letterbox.fit((7, 10), (10, 10))
    assert (odd.resized_hw, odd.padding_top_left) == ((7, 10), (1, 0))  # 3 rows: 1 above, 2 below
    stretched = Letterbox.fit((480, 640), (320, 320), "stretch")
    assert (stretched.resized_hw, stretched.padding_top_left) == ((320, 320), (0, 0))
    assert stretched.scale_hw == (320 / 480, 0.5)
    thin = Letterbox.fit((1, 5000), (640, 640))
    assert thin.resized_hw == (1, 640)


def test_boxes_go_to_the_canvas_and_back():
    rng = np.random.default_rng(5)
    for letterbox in random_letterboxes(600):
        height, width = letterbox.source_hw
        boxes = rng.uniform(0, 1, (20, 4)) * (width, height, width, height)
        (scale_y, scale_x), (top, left) = letterbox.scale_hw, letterbox.padding_top_left
        wanted = reference_of(
            lambda a, b, c, d, sx=scale_x, sy=scale_y, x=left, y=top: (a * sx + x, b * sy + y, c * sx + x, d * sy + y),
            boxes,
        )
        on_canvas = letterbox.boxes_to_canvas(boxes)
        assert np.abs(on_canvas - wanted).max() < 1e-9
        assert np.abs(letterbox.boxes_to_source(on_canvas) - boxes).max() < 1e-9


def test_boxes_survive_the_round_trip_in_float32():
    # On a canvas of a few pixels, float32 has too few digits for the pixels of the source; detectors start at 64.
    rng = np.random.default_rng(6)
    num_checked = 0
    for letterbox in random_letterboxes(2000):
        if min(letterbox.scale_hw) < 0.1:  # one float32 step on the canvas is many on the source
            continue
        num_checked += 1
        height, width = letterbox.source_hw
        boxes = (rng.uniform(0, 1, (20, 4)) * (width, height, width, height)).astype(np.float32)
        for given in (boxes, torch.from_numpy(boxes)):
            back = letterbox.boxes_to_source(letterbox.boxes_to_canvas(given))
            assert str(back.dtype).endswith("float32")
            assert np.abs(np.asarray(back, np.float64) - boxes).max() < 1e-3
            on_canvas = np.asarray(letterbox.boxes_to_canvas(given), np.float64)
            assert np.abs(on_canvas - letterbox.boxes_to_canvas(boxes.astype(np.float64))).max() < 1e-3
    assert num_checked > 500


def test_the_matrix_is_the_same_map():
    rng = np.random.default_rng(7)
    for letterbox in random_letterboxes(300):
        boxes = rng.uniform(0, 1000, (10, 4))
        matrix = letterbox.matrix()
        assert (matrix.shape, matrix.dtype) == ((3, 3), np.float64)
        corners = np.stack([boxes[:, :2], boxes[:, 2:]], axis=1)  # (10, 2, 2)
        homogeneous = np.concatenate([corners, np.ones((10, 2, 1))], axis=2)
        mapped = (homogeneous @ matrix.T)[..., :2].reshape(10, 4)
        np.testing.assert_allclose(mapped, letterbox.boxes_to_canvas(boxes), rtol=1e-13, atol=1e-10)


def edges_of(plane: np.ndarray, dark: float, bright: float) -> tuple[float, float]:
    """Return the ends of a bright run along a line of pixels, from the brightness of its blurred borders."""
    share = (plane.astype(np.float64) - dark) / (bright - dark)
    middle = int(np.round((share * np.arange(len(share))).sum() / share.sum()))
    return middle - share[:middle].sum(), middle + share[middle:].sum()


@pytest.mark.parametrize("mode", sorted(FITS))
def test_pixels_and_boxes_move_to_the_same_place(mode):
    """The borders of a bright rectangle on the canvas lie within a pixel of the mapped box."""
    rng = np.random.default_rng(8)
    for _ in range(60):
        source_hw = tuple(int(v) for v in rng.integers(40, 500, 2))
        canvas_hw = tuple(int(v) for v in rng.integers(64, 400, 2))
        letterbox = Letterbox.fit(source_hw, canvas_hw, mode)
        if min(letterbox.scale_hw) < 0.25:  # bilinear sampling skips source pixels there
            continue
        height, width = source_hw
        y1, x1 = int(rng.integers(2, height // 3)), int(rng.integers(2, width // 3))
        y2, x2 = int(rng.integers(2 * height // 3, height - 2)), int(rng.integers(2 * width // 3, width - 2))
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        canvas = letterbox.apply(image)
        box = letterbox.boxes_to_canvas(np.array([x1, y1, x2, y2], np.float64))
        (top, left), (inner_h, inner_w) = letterbox.padding_top_left, letterbox.resized_hw
        row, column = int((box[1] + box[3]) / 2), int((box[0] + box[2]) / 2)
        across = edges_of(canvas[row, left : left + inner_w, 0], 0, 255)
        down = edges_of(canvas[top : top + inner_h, column, 0], 0, 255)
        found = np.array([across[0] + left, down[0] + top, across[1] + left, down[1] + top])
        assert np.abs(found - box).max() < 1, (letterbox, found, box)


def test_a_halved_image_has_no_shift():
    """Halving averages pairs of pixels: an edge at 10 is an edge at 5, not at 4.75 (corner-aligned) or 5.5."""
    image = np.zeros((40, 40, 1), np.uint8)
    image[:, 10:] = 200
    letterbox = Letterbox.fit((40, 40), (20, 20))
    np.testing.assert_array_equal(letterbox.apply(image)[3, :, 0], [0] * 5 + [200] * 15)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("source_hw", [(20, 30), (64, 64), (100, 37), (9, 64), (1, 1)])
def test_apply_keeps_channels_and_pads_with_grey(channels, source_hw):
    image = np.random.default_rng(9).integers(0, 256, (*source_hw, channels), np.uint8)
    before = image.copy()
    letterbox = Letterbox.fit(source_hw, (64, 64))
    canvas = letterbox.apply(image)
    assert (canvas.shape, canvas.dtype) == ((64, 64, channels), np.uint8)
    assert canvas.flags.c_contiguous
    (top, left), (height, width) = letterbox.padding_top_left, letterbox.resized_hw
    outside = np.ones((64, 64), np.bool_)
    outside[top : top + height, left : left + width] = False
    assert (canvas[outside] == PADDING_VALUE).all()
    for channel in range(channels):  # no channel leaks into another
        alone = letterbox.apply(np.ascontiguousarray(image[:, :, channel : channel + 1]))
        np.testing.assert_array_equal(canvas[:, :, channel], alone[:, :, 0])
    np.testing.assert_array_equal(image, before)


def test_an_image_of_the_canvas_size_goes_through_unchanged():
    image = np.random.default_rng(10).integers(0, 256, (32, 48, 3), np.uint8)
    for mode in FITS:
        np.testing.assert_array_equal(Letterbox.fit((32, 48), (32, 48), mode).apply(image), image)
    padded = Letterbox.fit((32, 48), (40, 60), upscale=False).apply(image)
    np.testing.assert_array_equal(padded[4:36, 6:54], image)


def test_strided_view_gives_the_same_canvas_as_its_copy():
    image = np.random.default_rng(11).integers(0, 256, (50, 70, 3), np.uint8)
    letterbox = Letterbox.fit((50, 70), (64, 64))
    np.testing.assert_array_equal(letterbox.apply(image[:, ::-1]), letterbox.apply(image[:, ::-1].copy()))
    same = Letterbox.fit((50, 70), (50, 70)).apply(image[:, ::-1])
    assert same.flags.c_contiguous


@pytest.mark.parametrize(("source_hw", "canvas_hw"), [((0, 5), (64, 64)), ((5, 5), (64, 0)), ((5, -1), (64, 64))])
def test_a_side_below_one_pixel_is_refused(source_hw, canvas_hw):
    with pytest.raises(ValueError, match=r"sides of at least 1 pixel, got \(") as caught:
        Letterbox.fit(source_hw, canvas_hw)
    assert str(source_hw) in str(caught.value)
    assert str(canvas_hw) in str(caught.value)


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['letterbox', 'stretch'\], got 'strech'"):
        Letterbox.fit((5, 5), (64, 64), "strech")


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected an image of \(5, 6\), got \(6, 5\)"):
        Letterbox.fit((5, 6), (64, 64)).apply(np.zeros((6, 5, 3), np.uint8))


def test_a_letterbox_is_frozen():
    letterbox = Letterbox.fit((5, 6), (64, 64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        letterbox.source_hw = (1, 1)
