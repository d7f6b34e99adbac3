from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from detector.media import score_charts
from detector.media.closeups import draw_closeup
from detector.media.images import read_image

RED, GREEN = (230, 60, 30), (40, 160, 90)


def pixels(picture: bytes, folder: Path) -> np.ndarray:
    (folder / "chart.png").write_bytes(picture)
    return read_image(folder / "chart.png").astype(int)


def close_to(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture - np.array(colour)).max(axis=2) < 40


@pytest.mark.parametrize("num_classes", [0, 1, 3, 200])
def test_curves_of_any_number_of_classes_are_drawn(num_classes: int, tmp_path: Path) -> None:
    x = np.linspace(0, 1, 11)
    by_class = {f"_class $x^{n}$": np.full(11, n / 200) for n in range(num_classes)}
    by_class["empty"] = np.full(11, np.nan)
    drawn = pixels(score_charts.curve_chart(x, by_class, x, ("a", "b"), (0.7, 0.5, "here")), tmp_path)
    assert close_to(drawn, (51, 51, 51)).sum() > 300  # the thick line for all classes
    none = pixels(score_charts.curve_chart(x, {}, np.full(11, np.nan), ("a", "b"), (np.nan, 0.5, "no")), tmp_path)
    assert none.shape == drawn.shape


def test_larger_value_has_a_longer_bar(tmp_path: Path) -> None:
    values = {"much": 0.8, "little": 0.2, "none": float("nan"), "less than nothing": -0.1}
    drawn = pixels(score_charts.bar_chart(values, "AP", dict.fromkeys(values, "note")), tmp_path)
    lengths = close_to(drawn, (0, 114, 178)).sum(axis=1)
    rows = lengths[lengths > 5]
    assert rows.max() > 3 * np.median(rows[rows < rows.max() / 2])


def test_confusion_matrix_of_many_classes_is_drawn(tmp_path: Path) -> None:
    small = pixels(score_charts.confusion_chart(np.diag([5, 7, 0]), ["a", "b"]), tmp_path)
    large = pixels(
        score_charts.confusion_chart(np.eye(81, dtype=np.int64), [f"class {n}" for n in range(80)]), tmp_path
    )
    assert small.shape[0] < large.shape[0] < 1500
    empty = score_charts.confusion_chart(np.zeros((1, 1), np.int64), [])
    assert pixels(empty, tmp_path).shape[2] == 3


def test_empty_calibration_and_interval_charts_are_drawn(tmp_path: Path) -> None:
    edges = np.linspace(0, 1, 11)
    nothing = score_charts.calibration_chart(edges, np.full(10, np.nan), np.zeros(10, np.int64))
    some = score_charts.calibration_chart(edges, np.linspace(0, 1, 10), np.arange(10))
    assert (
        close_to(pixels(some, tmp_path), (0, 114, 178)).sum() > close_to(pixels(nothing, tmp_path), (0, 114, 178)).sum()
    )
    nan = float("nan")
    for rows in ({}, {"AP": (0.5, nan, nan)}, {"AP": (nan, nan, nan)}, {"AP": (0.5, 0.4, 0.6)}):
        assert io.BytesIO(score_charts.interval_chart(rows, "AP")).read(4) == b"\x89PNG"


@pytest.mark.parametrize("hw", [(480, 640), (20, 30), (2000, 100), (1, 1)])
@pytest.mark.parametrize(
    "box", [[0.2, 0.2, 0.4, 0.5], [0.0, 0.0, 1.0, 1.0], [0.98, 0.98, 1.2, 1.3], [0.5, 0.5, 0.5, 0.5]]
)
def test_closeup_shows_the_box_in_the_requested_size(hw: tuple[int, int], box: list[float]) -> None:
    image = np.full((*hw, 3), 120, np.uint8)
    source_xyxy = np.array([[0.1, 0.1, 0.2, 0.2], box]) * (hw[1], hw[0], hw[1], hw[0])
    drawn = draw_closeup(image, source_xyxy, ["", "it"], [GREEN, RED], num_meant=1, longer_px=200)
    assert max(drawn.shape[:2]) == 200
    assert close_to(drawn.astype(int), RED).sum() > 30
    assert (image == 120).all()


def test_small_box_is_enlarged_and_a_large_one_shown_completely() -> None:
    image = np.zeros((1000, 1000, 3), np.uint8)
    image[500:510, 500:510] = 255
    small = draw_closeup(image, np.array([[500.0, 500, 510, 510]]), [""], [RED], 1, 200)
    assert (small.min(axis=2) > 200).sum() > 100  # ten pixels wide in the image, at least sixteen here
    large = draw_closeup(image, np.array([[0.0, 0, 1000, 1000]]), [""], [RED], 1, 200)
    assert 0 < (large.min(axis=2) > 200).sum() < 20
    grey = draw_closeup(image[..., :1], np.array([[0.0, 0, 10, 10]]), [""], [RED], 1, 64)
    assert grey.shape[2] == 3
