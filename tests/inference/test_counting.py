from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.errors import ConfigError
from detector.inference.counting import TrackCounts, crossing, is_inside
from detector.structures.types import Detections


def standing_at(*feet: tuple[float, float], label: int = 0) -> Detections:
    boxes = torch.tensor([[x - 5, y - 20, x + 5, y] for x, y in feet]).reshape(-1, 4)
    labels = torch.full((len(feet),), label)
    return Detections(boxes, torch.ones(len(feet)), labels, (100, 200), ("car", "bus"), (1, 2))


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_both_directions_over_a_line_are_counted_by_class() -> None:
    counts = TrackCounts([((0, 50), (200, 50))])  # walking to the right of the picture, below is at the right
    for y, other in ((30, 80), (45, 60), (50, 55), (60, 40), (70, 30), (40, 30)):
        counts.add(standing_at((20, y)), ids(1))
        counts.add(standing_at((150, other), label=1), ids(2))
    assert counts.to_plain()["lines"] == [
        {"line": [0, 50, 200, 50], "to_right": {"car": 1}, "to_left": {"bus": 1, "car": 1}}
    ]


def test_track_beside_a_line_is_not_counted() -> None:
    counts = TrackCounts([((50, 50), (100, 50))])
    for y in (30, 70):
        counts.add(standing_at((20, y), (75, y), (120, y)), ids(1, 2, 3))
    assert counts.lines[0].to_right == {"car": 1}


@pytest.mark.parametrize("seed", range(10))
def test_crossing_agrees_with_the_exact_intersection(seed: int) -> None:
    random = np.random.default_rng(seed)
    for before, after, start, end in random.random((300, 4, 2)):
        shares = np.linalg.solve(np.stack([after - before, start - end], axis=1), start - before)
        wanted = bool(((shares > 0) & (shares < 1)).all())
        side = crossing(*((float(x), float(y)) for x, y in (before, after, start, end)))
        assert (side != 0) == wanted
        if wanted:
            # Seen along the line, y down, who goes to the right turns clockwise.
            turn = math.atan2(*(after - before)[::-1]) - math.atan2(*(end - start)[::-1])
            assert side == (1 if math.sin(turn) > 0 else -1)


def test_is_inside_agrees_with_opencv() -> None:
    random = np.random.default_rng(2)
    for num_corners in (3, 4, 7):
        angles = np.sort(random.uniform(0, 2 * np.pi, num_corners))
        radii = random.uniform(10, 50, num_corners)
        corners = np.stack([60 + radii * np.cos(angles), 60 + radii * np.sin(angles)], axis=1).astype(np.float32)
        points = random.uniform(0, 120, (400, 2)).astype(np.float32)
        wanted = [cv2.pointPolygonTest(corners, (float(x), float(y)), False) > 0 for x, y in points]
        found = is_inside(points.astype(np.float64), [(float(x), float(y)) for x, y in corners])
        assert found.tolist() == wanted
        assert 0 < sum(wanted) < 400


def test_zone_counts_present_and_distinct_tracks() -> None:
    counts = TrackCounts(zones=[[(0, 0), (50, 0), (50, 100), (0, 100)]])
    counts.add(standing_at((20, 50), (30, 60), (80, 50)), ids(1, 2, 3))
    counts.add(standing_at((20, 50), (70, 60), (80, 50)), ids(1, 2, 3))
    counts.add(standing_at((20, 50), (30, 60)), ids(1, 2))  # 2 is back: no other than before
    counts.add(standing_at((40, 50)), ids(4))
    (zone,) = counts.zones
    assert (zone.present, zone.distinct) == ({"car": 1}, {"car": 3})
    counts.add(standing_at(), ids())
    assert zone.present == {}


def test_track_that_changes_its_class_in_a_zone_is_counted_once() -> None:
    counts = TrackCounts(zones=[[(0, 0), (50, 0), (50, 100), (0, 100)]])
    for label in (0, 1):
        counts.add(standing_at((20, 50), label=label), ids(1))
    plain: dict[str, Any] = counts.to_plain()
    assert plain["zones"][0]["present"] == {"bus": 1}
    assert plain["zones"][0]["distinct"] == {"car": 1}


def test_line_or_zone_outside_the_picture_is_refused() -> None:
    for counts in (TrackCounts([((0, 300), (200, 300))]), TrackCounts(zones=[[(-9, 0), (-1, 0), (-1, 9)]])):
        with pytest.raises(ConfigError, match="on a picture of 200 x 100 pixels, got "):
            counts.add(standing_at((20, 50)), ids(1))


# --- jitter --------------------------------------------------------------------------------------------------------


def walked(track: np.ndarray, jitter_px: float, seed: int, box_wh: tuple[int, int] = (40, 80)) -> TrackCounts:
    """Count a track over the line y = 200, of whose foot point and box every edge jitters; track is (N, 2)."""
    random, counts = np.random.default_rng(seed), TrackCounts([((0, 200), (400, 200))])
    for number, (x, y) in enumerate(track):
        x1, y1, x2, y2 = np.array([x - box_wh[0] / 2, y - box_wh[1], x + box_wh[0] / 2, y]) + random.normal(
            0, jitter_px, 4
        )
        boxes = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)
        found = Detections(boxes, torch.ones(1), torch.zeros(1, dtype=torch.long), (400, 400), ("car",), (1,))
        counts.add(found, ids(7), number / 30)
    return counts


@pytest.mark.parametrize("jitter_px", [0, 1, 2, 3])
def test_jitter_does_not_add_crossings(jitter_px: float) -> None:
    there = np.stack([np.full(100, 150.0), np.linspace(165, 235, 100)], axis=1)  # 0.7 pixels per frame
    for seed in range(2):
        down = walked(there, jitter_px, seed).lines[0]
        assert (down.to_right.total(), down.to_left.total()) == (1, 0)
        up = walked(there[::-1], jitter_px, seed).lines[0]
        assert (up.to_right.total(), up.to_left.total()) == (0, 1)
        both = walked(np.concatenate([there, there[::-1]]), jitter_px, seed).lines[0]
        assert (both.to_right.total(), both.to_left.total()) == (1, 1)
        on_line = walked(np.full((150, 2), (150.0, 200.0)), jitter_px, seed).lines[0]
        assert (on_line.to_right.total(), on_line.to_left.total()) == (0, 0)


def test_track_that_stays_just_beyond_a_line_has_crossed_it_after_a_second() -> None:
    near = np.stack([np.full(80, 150.0), np.minimum(np.linspace(160, 280, 80), 206)], axis=1)  # 6 pixels beyond
    assert walked(near, 0.5, 0).lines[0].to_right.total() == 1
    assert walked(near[:50], 0.5, 0).lines[0].to_right.total() == 0
    back = np.concatenate([near[:38], near[:38][::-1]])
    assert walked(back, 0.5, 0).lines[0].to_right.total() == 0


def test_track_that_returns_outside_the_ends_of_a_line_is_counted_by_its_place_of_crossing() -> None:
    counts = TrackCounts([((50, 50), (100, 50))])
    for x, y in ((75, 30), (75, 52), (120, 54), (150, 70)):  # over the line, then on beside it
        counts.add(standing_at((x, y)), ids(1))
    for x, y in ((150, 40), (150, 20)):  # back where there is no line
        counts.add(standing_at((x, y)), ids(1))
    assert (counts.lines[0].to_right.total(), counts.lines[0].to_left.total()) == (1, 0)


@pytest.mark.parametrize("last", [0, 1])
def test_zone_over_the_whole_picture_holds_objects_that_its_edges_cut(last: int) -> None:
    height, width = 100 - last, 200 - last  # corners up to the size, or up to the last pixel
    counts = TrackCounts(zones=[[(0, 0), (width, 0), (width, height), (0, height)]])
    boxes = torch.tensor([[x, 60.0, x + 10, 100] for x in range(0, 200, 10)] + [[195.0, 0, 200, 0], [0, 0, 0, 0]])
    num = len(boxes)
    found = Detections(boxes, torch.ones(num), torch.zeros(num, dtype=torch.long), (100, 200), ("car",), (1,))
    counts.add(found, np.arange(num))
    assert counts.zones[0].present == {"car": num}


def test_detections_without_a_track_are_not_counted() -> None:
    counts = TrackCounts(zones=[[(0, 0), (50, 0), (50, 100), (0, 100)]])
    counts.add(standing_at((20, 50), (30, 50)), ids(-1, 1))
    assert counts.zones[0].present == {"car": 1}
