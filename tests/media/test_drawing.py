from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.geometry import PADDING_VALUE
from detector.media.drawing import as_rgb, class_colour, draw_batch, draw_boxes, draw_detections
from detector.structures import Detections, Sample

UNICODE_NAMES = ("Zürich", "猫", "🦊 fox", "a\nb\x00", "")


def plain(height: int = 80, width: int = 120, channels: int = 3, value: int = 0) -> np.ndarray:
    return np.full((height, width, channels), value, dtype=np.uint8)


def is_close(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where pixels have a colour, but for the softening of lines."""
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 60


def detections(boxes: list[list[float]], names: tuple[str, ...] = ("circle", "star"), labels: int = 0) -> Detections:
    num = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.linspace(0.9, 0.5, num) if num else torch.zeros(0),
        torch.full((num,), labels),
        (80, 120),
        names,
        tuple(range(10, 10 + len(names))),
    )


def test_a_box_is_drawn_on_its_edges_in_the_colour_of_its_class() -> None:
    drawn = draw_boxes(plain(), np.array([[20, 30, 100, 70]], np.float32), [""], [(10, 200, 30)])
    coloured = is_close(drawn, (10, 200, 30))
    rows, columns = np.nonzero(coloured)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 100, 70)
    assert coloured[30, 20:101].all()
    assert coloured[30:71, 100].all()
    assert not drawn[32:69, 22:99].any()  # the inside is seen through


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
    assert (above == class_colour(label)).all(axis=-1).mean() > 0.2  # the ground of a caption
    assert (above != class_colour(label)).any()  # and its letters


def test_a_caption_stays_on_a_picture_that_is_smaller_than_it() -> None:
    for box in ([0, 0, 5, 5], [4, 4, 8, 8], [-3, -3, 40, 40]):
        drawn = draw_detections(plain(8, 8), detections([box]))
        assert drawn.shape == (8, 8, 3)
        assert drawn.any()


def test_the_most_certain_detection_is_drawn_on_top() -> None:
    found = Detections(
        torch.tensor([[20.0, 40, 100, 70], [20, 40, 100, 70]]),
        torch.tensor([0.9, 0.3]),
        torch.tensor([1, 0]),
        (80, 120),
        ("circle", "star"),
        (1, 2),
    )
    drawn = draw_detections(plain(), found)
    assert is_close(drawn[70, 60], class_colour(1))
    assert not is_close(drawn[70, 60], class_colour(0))


def test_class_colours_last_and_differ() -> None:
    colours = [class_colour(label) for label in range(20)]
    assert colours == [class_colour(label) for label in range(20)]
    distance = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distance) > 15
    assert all(0 <= value <= 255 for colour in colours for value in colour)


def sample(value: int, labels: list[int], ignore: list[bool], channels: int = 3) -> Sample:
    boxes = np.array([[4, 12, 28, 28]] * len(labels), np.float32).reshape(-1, 4)
    image = plain(32, 32, channels, value)
    return Sample(image, boxes, np.array(labels, np.int64), np.array(ignore, np.bool_), image_id=1)


def test_a_batch_is_one_sheet_in_reading_order() -> None:
    samples = [sample(value, [], []) for value in (10, 20, 30, 40, 50)]
    sheet = draw_batch(samples, ("circle",))
    assert sheet.shape == (2 * 36, 3 * 36, 3)  # five tiles with margins, three a row
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
    assert is_close(tile, class_colour(1)).any()
    assert not is_close(crowd, class_colour(1)).any()
    grey = crowd[28, 10]
    assert grey[0] == grey[1] == grey[2] > 0


def test_a_batch_of_grey_images_is_drawn() -> None:
    assert draw_batch([sample(90, [0], [False], channels=1)], ("circle",)).shape == (36, 36, 3)
