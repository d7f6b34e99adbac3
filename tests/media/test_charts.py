from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest

from detector.media import charts


def decoded(picture: bytes) -> np.ndarray:
    assert picture.startswith(b"\x89PNG")
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels


def colour_share(picture: bytes, colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return float((np.abs(decoded(picture).astype(int) - (blue, green, red)).sum(axis=2) < 12).mean())


RNG = np.random.default_rng(0)
SIDES = {"train": RNG.lognormal(3, 1, 500), "val": RNG.lognormal(4, 0.5, 50)}
COUNTS = {"train": RNG.integers(0, 30, 100), "val": RNG.integers(0, 30, 20)}


@pytest.mark.parametrize(
    "picture",
    [
        charts.class_chart(["cat", "dog"], {"train": [10, 4], "val": [3, 1]}),
        charts.size_chart(SIDES, "pixels", (32, 96)),
        charts.count_chart(COUNTS),
    ],
)
def test_each_split_has_its_own_colour(picture):
    assert colour_share(picture, "#0072B2") > 0.001
    assert colour_share(picture, "#D55E00") > 0.001
    assert decoded(picture).shape[1] == round(5.6 * 110)


def test_larger_dot_stands_for_more_images():
    def ink(num_large: int) -> int:
        sizes = [[500, 500]] * num_large + [[300, 300]] * (50 - num_large)
        picture = decoded(charts.image_chart({"train": np.array(sizes)}))
        height, width = picture.shape[:2]
        return int((picture[: height // 3, width // 2 :, 2] < 180).sum())  # the upper right corner

    assert ink(49) > 3 * ink(1) > 0


def test_longer_bars_stand_for_more_objects():
    few = colour_share(charts.class_chart(["a", "b"], {"train": [10, 1]}), "#0072B2")
    many = colour_share(charts.class_chart(["a", "b"], {"train": [10, 10]}), "#0072B2")
    assert many > 1.5 * few


def test_place_chart_is_dark_at_the_objects():
    centres = np.tile([[0.9, 0.1]], (50, 1))  # in the upper right
    picture = decoded(charts.place_chart(centres))
    rows, columns = np.nonzero(picture[..., 2] < 60)  # dark blue has little red
    inside = columns > 100  # labels are dark too
    assert columns[inside].mean() > picture.shape[1] * 0.6
    assert rows[inside].mean() < picture.shape[0] * 0.4


def test_unusual_names_are_drawn_without_warnings():
    names = ["$\\frac{1}{$", "雪", "a" * 300, "<b>", "\\", "_", "line\nbreak"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded(charts.class_chart(names, {"train": list(range(7))}))


def test_empty_and_single_values_are_drawn():
    decoded(charts.class_chart(["a"], {"train": [0]}))
    decoded(charts.size_chart({"train": np.zeros(0), "val": np.array([5.0])}, "pixels"))
    decoded(charts.size_chart({"train": np.zeros(0)}, "pixels"))
    decoded(charts.shape_chart(np.zeros((0, 2)), [], "pixels"))
    decoded(charts.shape_chart(np.array([[3.0, 3.0]]), [(4, 4)], "pixels"))
    decoded(charts.place_chart(np.zeros((0, 2))))
    decoded(charts.count_chart({"train": np.zeros(0, np.int64), "val": np.array([0])}))
    decoded(charts.image_chart({"train": np.zeros((0, 2), np.int64)}))


def test_first_and_last_of_many_classes_are_drawn():
    many = decoded(charts.class_chart([f"class {i}" for i in range(500)], {"train": list(range(500))}))
    some = decoded(charts.class_chart([f"class {i}" for i in range(40)], {"train": list(range(40))}))
    assert many.shape == some.shape
