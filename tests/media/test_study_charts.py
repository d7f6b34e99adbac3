"""Charts of a study."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from detector.media.run_charts import COLOURS
from detector.media.study_charts import ValuesOfCell, effect_chart, trend_chart, value_chart

CELL, NOTHING = ValuesOfCell([0.4, 0.6], 0.5, 0.3, 0.7), ValuesOfCell([], math.nan, math.nan, math.nan)


def columns_of(picture: bytes, colour: str) -> np.ndarray:
    """Return the columns of a PNG that have a colour, as shares of its width."""
    decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    pixels = decoded.astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.flatnonzero((np.abs(pixels - wanted).max(axis=2) < 8).any(axis=0)) / pixels.shape[1]


@pytest.mark.parametrize(("places", "are_joined"), [(("10", "20"), True), (("ten", "twenty"), False)])
def test_numbers_are_joined_by_lines_and_names_are_not(places: tuple[str, str], are_joined: bool) -> None:
    found = columns_of(trend_chart(places, {"a": [CELL, CELL]}, "x", "y"), COLOURS[0])
    assert bool(((found > 0.2) & (found < 0.45)).any()) == are_joined
    assert (found < 0.35).any()
    assert (found > 0.65).any()


def test_supported_differences_are_coloured() -> None:
    rows = [("a", 0.1, 0.05, 0.15, True)]
    assert len(columns_of(effect_chart(rows, "difference"), COLOURS[0]))
    assert not len(columns_of(effect_chart([(*rows[0][:4], False)], "difference"), COLOURS[0]))


def test_combination_without_values_has_a_row_without_a_mark() -> None:
    assert value_chart({"a": CELL, "b": NOTHING}, "top1").startswith(b"\x89PNG")
    assert trend_chart(("1", "2"), {"a": [CELL, NOTHING]}, "x", "y").startswith(b"\x89PNG")
