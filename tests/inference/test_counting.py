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
