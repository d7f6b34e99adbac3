from __future__ import annotations

import math
import time

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from detector.media.run_charts import SchedulePlan, results_chart, schedule_chart, side_by_side

BLUE, ORANGE, GREEN, PINK = (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73), (0xCC, 0x79, 0xA7)


def decoded(picture: bytes) -> npt.NDArray[np.int64]:
    assert picture.startswith(b"\x89PNG")
    bgr = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr[..., ::-1].astype(np.int64)


def where(picture: npt.NDArray[np.int64], colour: tuple[int, int, int]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return rows and columns of the pixels of a colour."""
    return np.nonzero(np.abs(picture - colour).sum(axis=2) < 24)


def row(step: int, ap: float, box: float = 1.0) -> dict[str, str]:
    numbers = {"train/box_loss": box, "train/cls_loss": 2 * box, "metrics/mAP50(B)": min(1.0, 2 * ap)}
    numbers |= {"metrics/precision(B)": 0.9, "metrics/recall(B)": ap, "metrics/mAP50-95(B)": ap, "lr/pg0": 0.01 / step}
    return {"epoch": "1.00", "step": str(step), "time": "1.00", **{name: str(value) for name, value in numbers.items()}}


def panel(picture: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """Return the inside of one of the four panels: 0 and 1 at the top, 2 and 3 at the bottom."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    top, left = number // 2 * height, number % 2 * width
    return picture[top + 32 : top + height - 30, left + 40 : left + width]


def test_every_curve_of_a_run_is_drawn_in_its_panel() -> None:
    picture = decoded(results_chart([row(k, k / 20) for k in range(1, 11)]))
    assert picture.shape == (640, 1100, 3)
    for number, colours in enumerate([(BLUE, ORANGE), (BLUE,), (BLUE, ORANGE), (BLUE, ORANGE)]):
        for colour in colours:
            assert len(where(panel(picture, number), colour)[0]) > 100
    assert len(where(panel(picture, 1), ORANGE)[0]) == 0


def test_higher_ap_is_drawn_higher() -> None:
    tops = [where(panel(decoded(results_chart([row(1, ap), row(2, ap)])), 2), BLUE)[0].min() for ap in (0.1, 0.3, 0.45)]
    assert tops[0] > tops[1] + 20 > tops[2] + 40


def test_ring_marks_the_first_of_the_best_evaluations() -> None:
    picture = decoded(results_chart([row(1, 0.1), row(2, 0.4), row(3, 0.2), row(4, 0.4), row(5, 0.1)]))
    inside = panel(picture, 2)
    rows, columns = where(inside, BLUE)
    ring = columns[rows < rows.min() + 3]  # the ring has the highest blue pixels
    assert inside.shape[1] * 0.3 < ring.mean() < inside.shape[1] * 0.5


@pytest.mark.parametrize(
    "rows",
    [
        [row(1, 0.2)],
        [row(1, math.nan), row(2, math.nan)],
        [{**row(1, 0.2), "train/box_loss": "900"}, row(2, 0.3)],
        [{"step": "4", "lr/pg0": "0.1"}],
        [row(k, 0.3) for k in range(1, 200)],
    ],
    ids=["one", "no objects", "steep losses", "other columns", "many"],
)
def test_incomplete_rows_are_drawn(rows: list[dict[str, str]]) -> None:
    decoded(results_chart(rows))


def test_redrawn_chart_takes_less_than_half_a_second() -> None:
    rows = [row(k, k / 50) for k in range(1, 21)]
    results_chart(rows)  # loads the library
    took_s = []
    for _ in range(3):
        started_s = time.process_time()
        results_chart(rows)
        took_s.append(time.process_time() - started_s)
    assert min(took_s) < 0.5


def plan(warmup: int = 100, closing_from: int = 800, evaluations: tuple[int, ...] = (250, 500, 750, 1000)) -> bytes:
    rates = [0.01 * (1 - step / 1000) for step in range(1000)]
    return schedule_chart(SchedulePlan("linear", range(1000), rates, warmup, closing_from, evaluations, 1000, 12.5))


def test_schedule_is_drawn_with_its_parts_and_evaluations() -> None:
    picture = decoded(plan())
    left, right = 75, 980  # the panel, in pixels
    rows, columns = where(picture[100:390], BLUE)
    assert columns.min() < left + 8
    assert columns.max() > right - 8
    assert rows[columns < left + 50].mean() < rows[columns > right - 50].mean()  # the rate falls
    ground = picture[104, left + 3 : right - 3]  # a row above the curve, between the lines of the grid
    tinted = np.nonzero((ground < 250).any(axis=1))[0] / (right - left - 6)
    warm, closing = tinted[tinted < 0.105], tinted[tinted > 0.795]
    assert 0.08 < warm.max() < 0.105
    assert 0.795 < closing.min() < 0.82
    marks = where(picture[370:400], PINK)[1]
    centres = [marks[np.abs(marks - place) < 9].mean() for place in (301, 527, 754, 980)]
    np.testing.assert_allclose(centres, (301, 527, 754, 980), atol=2)


def test_missing_parts_of_a_schedule_are_not_drawn() -> None:
    picture = decoded(plan(0, 1000, ()))
    for colour in (PINK, ORANGE, GREEN):
        assert len(where(picture, colour)[0]) == 0
    ground = picture[104, 78:977]
    assert (ground < 250).any(axis=1).mean() < 0.03  # only the lines of the grid


def test_pictures_of_different_heights_are_joined_in_one_row() -> None:
    def plain(height: int, width: int, value: int) -> bytes:
        return bytes(cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))[1])

    joined = decoded(side_by_side({"Sizes": plain(10, 100, 0), "": plain(30, 5, 100)}))
    assert joined.shape[0] == 32 + 30
    assert (joined[:32, :100] < 100).any()  # the title
    assert (joined[32:42, :100] == 0).all()
    assert (joined[42:, :100] == 255).all()
    assert (joined[32:, 112:117] == 100).all()
