from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from detector.media.drawing import as_rgb, class_colours, draw_batch, draw_boxes, draw_detections
from detector.structures.letterbox import PADDING_VALUE
from detector.structures.types import Detections, Sample

NAMES = ("circle", "star")
UNICODE_NAMES = ("Zürich", "猫", "🦊 fox", "a\nb\x00", "")


def plain(height: int = 80, width: int = 120, channels: int = 3, value: int = 0) -> np.ndarray:
    return np.full((height, width, channels), value, dtype=np.uint8)


def is_close(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return where pixels have a colour, with a tolerance for anti-aliasing."""
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 60


def detections(
    boxes: Sequence[Sequence[float]], names: tuple[str, ...] = ("circle", "star"), labels: int = 0
) -> Detections:
    num = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.linspace(0.9, 0.5, num) if num else torch.zeros(0),
        torch.full((num,), labels),
        (80, 120),
        names,
        tuple(range(10, 10 + len(names))),
    )


def test_box_is_drawn_on_its_edges_in_the_colour_of_its_class() -> None:
    drawn = draw_boxes(plain(), np.array([[20, 30, 100, 70]], np.float32), [""], [(10, 200, 30)])
    coloured = is_close(drawn, (10, 200, 30))
    rows, columns = np.nonzero(coloured)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 100, 70)
    assert coloured[30, 20:101].all()
    assert coloured[30:71, 100].all()
    assert not drawn[32:69, 22:99].any()  # the inside is not covered


def test_drawing_leaves_the_image_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    before = image.copy()
    drawn = draw_detections(image, detections([[10, 10, 50, 50]]))
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(drawn, image)
    assert (drawn != image).any()
    untouched = draw_detections(image, detections([]))
    np.testing.assert_array_equal(untouched, image)
    assert not np.shares_memory(untouched, image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_any_number_of_channels_becomes_rgb(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 120, channels), dtype=np.uint8)
    drawn = draw_detections(image, detections([]))
    assert drawn.shape == (80, 120, 3)
    wanted = image[..., :3] if channels > 2 else np.concatenate([image[..., :1]] * 3, axis=-1)
    np.testing.assert_array_equal(drawn, wanted)
    assert as_rgb(image).flags.c_contiguous


@pytest.mark.parametrize("label", range(len(UNICODE_NAMES)))
def test_names_in_any_script_are_drawn(label: int) -> None:
    found = detections([[30, 40, 90, 70]], UNICODE_NAMES, label)
    drawn = draw_detections(plain(), found)
    above = drawn[25:39, 30:60]
    colour = class_colours(UNICODE_NAMES)[label]
    assert (above == colour).all(axis=-1).mean() > 0.2  # the background of the caption
    assert (above != colour).any()  # and its letters


def test_caption_is_cut_to_a_smaller_picture() -> None:
    for box in ([0, 0, 5, 5], [4, 4, 8, 8], [-3, -3, 40, 40]):
        drawn = draw_detections(plain(8, 8), detections([box]))
        assert drawn.shape == (8, 8, 3)
        assert drawn.any()


def test_detection_with_the_highest_score_is_drawn_on_top() -> None:
    found = Detections(
        torch.tensor([[20.0, 40, 100, 70], [20, 40, 100, 70]]),
        torch.tensor([0.9, 0.3]),
        torch.tensor([1, 0]),
        (80, 120),
        ("circle", "star"),
        (1, 2),
    )
    drawn = draw_detections(plain(), found)
    assert is_close(drawn[70, 60], class_colours(NAMES)[1])
    assert not is_close(drawn[70, 60], class_colours(NAMES)[0])


def lab(rgb: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return colours of sRGB in CIE L*a*b* (D65)."""
    unit = np.array(rgb) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.0888)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def ciede2000(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the differences of colours in CIE L*a*b*, (N, 3) each (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one.T, other.T
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25**7))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1 * stretch)), np.degrees(np.arctan2(b2, a2 * stretch))
    turn = (h2 - h1 + 180) % 360 - 180
    hue, lightness, mean = h1 + turn / 2, (l1 + l2) / 2, (c1 + c2) / 2
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    t = 1 + sum(size * np.cos(np.radians(times * hue + shift)) for size, times, shift in waves)
    x = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    y = (c2 - c1) / (1 + 0.045 * mean)
    z = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * mean * t)
    blue = np.exp(-((((hue % 360) - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(mean**7 / (mean**7 + 25**7)) * np.sin(np.radians(60 * blue))
    return np.sqrt(x * x + y * y + z * z + rotation * y * z)


def test_difference_of_colours_is_that_of_the_publication() -> None:
    one, other = np.array([[50, 2.6772, -79.7751], [50, 2.5, 0]]), np.array([[50, 0, -82.7485], [73, 25, -18]])
    np.testing.assert_allclose(ciede2000(one, other), (2.0425, 27.1492), atol=1e-4)


def test_crowded_picture_has_captions_for_the_boxes_on_top_only() -> None:
    image = plain(480, 640)
    left_top = np.stack(np.meshgrid(np.arange(0, 640, 40), np.arange(0, 480, 40)), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([left_top, left_top + 30], axis=1).astype(np.float32)
    colour = (255, 72, 120)
    few = draw_boxes(image, boxes[-12:], ["person 0.90"] * 12, [colour] * 12)
    many = draw_boxes(image, boxes, ["person 0.90"] * len(boxes), [colour] * len(boxes))
    without = draw_boxes(image, boxes, [""] * len(boxes), [colour] * len(boxes))
    changed = (many != without).any(axis=-1)
    assert 0.04 < changed.mean() < 0.1
    assert not changed[:300].any()  # the first boxes are below the others
    assert (few != draw_boxes(image, boxes[-12:], [""] * 12, [colour] * 12)).any(axis=-1).mean() > 0.01


def test_class_has_the_same_colour_in_every_model() -> None:
    names = ("person", "Car", "猫", "dog")
    alone = [class_colours((name,))[0] for name in names]
    assert list(class_colours(names)) == alone
    assert class_colours(("dog", "bus", "CAR"))[2] == alone[1]
    assert class_colours(("u\u0308ber",)) == class_colours(("\u00fcber",))  # two encodings of one letter
    # These values must not change, so that old and new pictures have the same colours.
    assert alone == [(48, 168, 144), (255, 144, 255), (255, 72, 120), (24, 255, 192)]


def test_classes_of_a_model_have_different_colours_whatever_their_names_and_order() -> None:
    names = tuple(f"class {number}" for number in range(24))
    colours = class_colours(names)
    assert len(set(colours)) == 24
    first, second = np.triu_indices(24, 1)
    assert ciede2000(lab(colours)[first], lab(colours)[second]).min() > 19
    assert class_colours(names[::-1])[::-1] == colours
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    many = class_colours(tuple(map(str, range(1000))))
    assert len(set(many)) == 24
    assert class_colours(("a", "a", "b"))[0] == class_colours(("a", "a", "b"))[1]
    assert class_colours(()) == ()


@pytest.mark.parametrize(
    ("image_hw", "line_px", "text_px"), [((120, 160), 1, 11), ((720, 1280), 3, 19), ((3000, 4000), 12, 69)]
)
def test_lines_and_captions_follow_the_size_of_the_image(image_hw: tuple[int, int], line_px: int, text_px: int) -> None:
    height, width = image_hw
    box = np.array([[width / 4, height / 3, width * 0.75, height * 0.9]], np.float32)
    drawn = draw_boxes(plain(*image_hw), box, ["name"], [(10, 200, 30)])
    column = is_close(drawn, (10, 200, 30))[:, width * 7 // 10]  # through the upper and the lower edge
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], column, [0]]))))[::2]
    assert abs(runs - line_px).max() <= 2  # anti-aliased edges
    caption_rows = np.flatnonzero((drawn[: height // 3 - line_px, width // 4 + 2] == (10, 200, 30)).all(axis=-1))
    assert abs(len(caption_rows) - 1.36 * text_px) <= line_px + 1


def test_lines_and_captions_of_a_small_box_are_smaller() -> None:
    image, colour = plain(720, 1280), (10, 200, 30)
    small = draw_boxes(image, np.array([[600, 300, 618, 318]], np.float32), ["name"], [colour])
    large = draw_boxes(image, np.array([[300, 200, 900, 500]], np.float32), ["name"], [colour])
    assert is_close(small, colour)[300:318, 609].sum() <= 3  # two edges
    heights = [is_close(picture, colour).any(axis=1).sum() for picture in (small, large[:200])]
    assert heights[0] - 19 < heights[1]  # without the box itself


def sample(value: int, labels: list[int], ignore: list[bool], channels: int = 3) -> Sample:
    boxes = np.array([[4, 12, 28, 28]] * len(labels), np.float32).reshape(-1, 4)
    image = plain(32, 32, channels, value)
    return Sample(image, boxes, np.array(labels, np.int64), np.array(ignore, np.bool_), image_id=1)


def test_batch_is_one_sheet_in_reading_order() -> None:
    samples = [sample(value, [], []) for value in (10, 20, 30, 40, 50)]
    sheet = draw_batch(samples, ("circle",))
    assert sheet.shape == (2 * 36, 3 * 36, 3)  # five tiles with margins, three per row
    tiles = [sheet[row * 36 : row * 36 + 32, column * 36 : column * 36 + 32] for row in (0, 1) for column in (0, 1, 2)]
    assert [sorted(set(tile.ravel().tolist())) for tile in tiles] == [
        [10],
        [20],
        [30],
        [40],
        [50],
        [PADDING_VALUE // 2],
    ]


def test_objects_of_a_batch_are_coloured_and_crowds_are_grey() -> None:
    sheet = draw_batch([sample(0, [1], [False]), sample(0, [1], [True], channels=3)], ("circle", "猫"))
    tile, crowd = sheet[:32, :32], sheet[:32, 36:68]
    colour = class_colours(("circle", "猫"))[1]
    assert is_close(tile, colour).any()
    assert not is_close(crowd, colour).any()
    grey = crowd[28, 10]
    assert grey[0] == grey[1] == grey[2] > 0


def test_batch_of_grey_images_is_drawn() -> None:
    assert draw_batch([sample(90, [0], [False], channels=1)], ("circle",)).shape == (36, 36, 3)


def test_colour_and_caption_of_a_track_do_not_depend_on_the_score() -> None:
    found = detections([[5, 30, 35, 70], [45, 30, 75, 70], [85, 30, 115, 70]])
    ids = np.array([3, 1, 2], np.int64)
    drawn = draw_detections(plain(), found, ids)
    edges = [tuple(drawn[60, x].tolist()) for x in (5, 45, 85)]
    assert len(set(edges)) == 3
    later = draw_detections(plain(), found[[1, 0, 2]], ids[[1, 0, 2]])  # other scores, the same tracks
    np.testing.assert_array_equal(drawn, later)
    assert (draw_detections(plain(), found, ids + 9) != drawn).any()
