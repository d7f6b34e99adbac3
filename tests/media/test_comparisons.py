from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from detector.media.comparisons import ImageComparison, draw_comparisons
from detector.media.drawing import class_colours
from detector.structures.types import Detections

NAMES = ("circle", "star", "雪")


def compared(truth: list[int], found: list[int], image_hw: tuple[int, int] = (100, 100)) -> ImageComparison:
    """Make an image with true boxes and detections of the given classes, all in one place."""
    box = [20.0, 30.0, 80.0, 70.0]
    return ImageComparison(
        "image.jpg",
        np.zeros((*image_hw, 3), np.uint8),
        np.array([box] * len(truth), np.float32).reshape(-1, 4),
        np.array(truth, np.int64),
        np.zeros(len(truth), np.bool_),
        Detections(
            torch.tensor([box] * len(found)).reshape(-1, 4),
            torch.linspace(0.9, 0.5, len(found)),
            torch.tensor(found, dtype=torch.int64),
            image_hw,
            NAMES,
            (1, 2, 3),
        ),
    )


def has(picture: npt.NDArray[np.uint8], label: int) -> bool:
    return bool((np.abs(picture.astype(int) - class_colours(NAMES)[label]).max(axis=-1) < 40).sum() > 20)


def test_ground_truth_is_on_the_left_and_predictions_are_on_the_right() -> None:
    sheet = draw_comparisons([compared([0], [1])], NAMES, (200, 200))
    pair = sheet[:224]  # without the legend
    left, right = pair[:, :200], pair[:, 204:404]
    assert (has(left, 0), has(left, 1), has(right, 0), has(right, 1)) == (True, False, False, True)
    rows, columns = np.nonzero(np.abs(right.astype(int) - class_colours(NAMES)[1]).max(axis=-1) < 60)
    assert (columns.min(), columns.max()) == (40, 160)  # the image is drawn at twice its size
    assert rows.max() == 24 + 140


def test_legend_names_the_classes_on_the_sheet() -> None:
    pair_height = 200 + 24 + 10
    legend = draw_comparisons([compared([0], [2])], NAMES, (200, 200))[pair_height:]
    assert (has(legend, 0), has(legend, 1), has(legend, 2)) == (True, False, True)


def test_crowd_regions_are_grey_and_not_counted() -> None:
    one = compared([1], [])
    crowd = ImageComparison(one.name, one.image, one.source_xyxy, one.labels, np.array([True]), one.detections)
    left = draw_comparisons([crowd], NAMES, (200, 200))[:224, :200]
    assert not has(left, 1)
    assert (left == 150).all(axis=-1).sum() > 100


def test_any_number_and_shape_of_images_gives_a_sheet() -> None:
    shapes = [(100, 100), (300, 20), (17, 400), (1, 1), (60, 80)]
    for num in range(1, 6):
        sheet = draw_comparisons([compared([0] * num, [1] * 20, hw) for hw in shapes[:num]], NAMES, (90, 120))
        assert sheet.shape[0] == -(-num // 2) * (90 + 34) + 24
        assert sheet.shape[1] == min(num, 2) * (2 * 120 + 14)
    nothing = draw_comparisons([compared([], [])], NAMES, (90, 120))
    assert nothing.shape == (124 + 24, 254, 3)


def test_image_itself_is_not_changed() -> None:
    one = compared([0], [1])
    draw_comparisons([one], NAMES, (200, 200))
    assert not one.image.any()
