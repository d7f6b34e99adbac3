"""Counts of tracks over lines and in zones; the position of a track is the middle of the lower side of its box."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from detector.errors import ConfigError
from detector.structures.types import Detections

Float64s = npt.NDArray[np.float64]
Point = tuple[float, float]  # x and y, pixels of the source

# Only the last position of a track is needed, while it may come back; one second never has as many tracks.
_MAX_REMEMBERED = 10_000
# A box jitters by a few pixels, so a track has crossed a line when its foot point is beyond the line
# by this share of the box, or has stayed beyond it for this time and number of frames (own measurements: jitter with a
# standard deviation of 3 pixels on boxes of 40 x 80 pixels, tests/inference/test_counting.py).
_BEYOND_SHARE = 0.25
_STAY_S, _STAY_FRAMES = 1.0, 15
# A box that the edge of the picture cuts ends at its height or width, H. Its foot point counts as just inside H - 1, so
# that it is in a zone over the whole picture, whether the zone is given up to H or up to the last pixel.
_INSIDE_PX = 1.01
_MOST_PX = 1_000_000  # no picture is as large; far beyond, OpenCV draws for minutes or not at all


def _points(values: Sequence[float]) -> list[Point]:
    if len(values) % 2 or not all(abs(value) <= _MOST_PX for value in values):  # false for NaN too
        raise ValueError(f"expected two numbers within -{_MOST_PX}..{_MOST_PX} for each point, got {_listed(values)}")
    return list(zip(values[::2], values[1::2], strict=True))


def line_of(values: Sequence[float]) -> tuple[Point, Point]:
    """Return the two points of a line given as x1, y1, x2, y2, pixels of the source.

    Raises:
        ValueError: these are not two different points.
    """
    points = _points(values)
    if len(points) != 2 or points[0] == points[1]:
        raise ValueError(f"expected two different points X1,Y1,X2,Y2, got {_listed(values)}")
    return points[0], points[1]


def zone_of(values: Sequence[float]) -> tuple[Point, ...]:
    """Return the corners of a polygon given as x1, y1, x2, y2, x3, y3, ..., pixels of the source.

    Raises:
        ValueError: these are not at least three different corners.
    """
    points = _points(values)
    if len(set(points)) < 3:
        raise ValueError(f"expected at least three different corners X,Y, got {_listed(values)}")
    return tuple(points)


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


@dataclass
class LineCount:
    """Count of the tracks that crossed a line; left and right are as seen from its first point to its second.

    Attributes:
        start: the first point.
        end: the second point.
        to_right: crossings from left to right by class.
        to_left: crossings from right to left by class.
    """

    start: Point
    end: Point
    to_right: Counter[str] = field(default_factory=Counter)
    to_left: Counter[str] = field(default_factory=Counter)


@dataclass
class ZoneCount:
    """Count of the tracks in a zone.

    Attributes:
        corners: corners of the polygon.
        present: tracks in it now, by class.
        distinct: tracks that were in it at any time, by class.
    """

    corners: tuple[Point, ...]
    present: Counter[str] = field(default_factory=Counter)
    distinct: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Counts:
    """Counts of the tracks of one video up to one of its frames.

    Attributes:
        lines: one count for each line.
        zones: one count for each zone.
    """

    lines: tuple[LineCount, ...]
    zones: tuple[ZoneCount, ...]

    def to_plain(self) -> dict[str, object]:
        """Return the counts as plain data."""
        return {
            "lines": [
                {"line": [*line.start, *line.end], "to_right": dict(line.to_right), "to_left": dict(line.to_left)}
                for line in self.lines
            ],
            "zones": [
                {
                    "zone": [value for corner in zone.corners for value in corner],
                    "present": dict(zone.present),
                    "distinct": dict(zone.distinct),
                }
                for zone in self.zones
            ],
        }


@dataclass
class _Approach:
    """Side of a line that a track has left or is about to leave.

    Attributes:
        is_right: side on which the track is known to be.
        num_frames: frames in a row on the other side.
        since_s: time since which it is there.
        is_between: true if the last change of sides was between the ends of the line.
    """

    is_right: bool
    num_frames: int = 0
    since_s: float | None = None
    is_between: bool = False


@dataclass
class _Trace:
    """Last position of a track, its sides of the lines, and the zones it was in."""

    foot: Point
    approaches: list[_Approach]
    zones: set[int] = field(default_factory=set)


class TrackCounts:
    """Counts of one video.

    Attributes:
        lines: one count for each line.
        zones: one count for each zone.
    """

    def __init__(self, lines: Sequence[tuple[Point, Point]] = (), zones: Sequence[Sequence[Point]] = ()) -> None:
        """Begin with zero; lines and zones are in pixels of the source."""
        self.lines = [LineCount(*line) for line in lines]
        self.zones = [ZoneCount(tuple(zone)) for zone in zones]
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        self._is_checked = False

    def add(self, detections: Detections, track_ids: npt.NDArray[np.int64], time_s: float | None = None) -> None:
        """Count the tracks of the next frame.

        Args:
            detections: of the frame.
            track_ids: the track of each detection, int64 (N,); those below 0 are not counted.
            time_s: time of the frame. Without it, a track that stays just beyond a line has not crossed it.

        Raises:
            ConfigError: a line or zone lies outside the picture.
        """
        self._check(detections.image_hw)
        boxes = detections.source_xyxy.double().cpu().numpy()
        feet = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]], axis=1)
        shown = np.clip(feet, 0, np.array(detections.image_hw[::-1], np.float64) - _INSIDE_PX)
        inside = [is_inside(shown, zone.corners) for zone in self.zones]
        for zone in self.zones:
            zone.present.clear()
        for row, (track_id, name) in enumerate(zip(track_ids.tolist(), detections.names, strict=True)):
            if track_id < 0:
                continue
            foot = float(feet[row, 0]), float(feet[row, 1])
            trace = self._traces.get(track_id) or _Trace(foot, [_Approach(_is_right(foot, c)) for c in self.lines])
            self._traces[track_id] = trace
            for line, approach in zip(self.lines, trace.approaches, strict=True):
                self._follow(approach, line, trace.foot, foot, time_s)
                if _is_complete(approach, line, boxes[row], time_s):
                    approach.is_right, approach.num_frames = not approach.is_right, 0
                    if approach.is_between:
                        (line.to_right if approach.is_right else line.to_left)[name] += 1
            for number, zone in enumerate(self.zones):
                if inside[number][row]:
                    zone.present[name] += 1
                    if number not in trace.zones:
                        zone.distinct[name] += 1
                        trace.zones.add(number)
            trace.foot = foot
            self._traces.move_to_end(track_id)
        while len(self._traces) > _MAX_REMEMBERED:
            self._traces.popitem(last=False)

    @staticmethod
    def _follow(approach: _Approach, line: LineCount, before: Point, foot: Point, time_s: float | None) -> None:
        """Note on which side of a line a track is now."""
        if _is_right(foot, line) != _is_right(before, line):
            approach.is_between = crossing(before, foot, line.start, line.end) != 0
        if _is_right(foot, line) == approach.is_right:
            approach.num_frames = 0
            return
        if not approach.num_frames:
            approach.since_s = time_s
        approach.num_frames += 1

    def _check(self, image_hw: tuple[int, int]) -> None:
        height, width = image_hw
        shapes: list[tuple[str, tuple[Point, ...]]] = [("line", (line.start, line.end)) for line in self.lines]
        shapes += [("zone", zone.corners) for zone in self.zones]
        for what, points in [] if self._is_checked else shapes:
            columns, rows = zip(*points, strict=True)
            if max(columns) <= 0 or max(rows) <= 0 or min(columns) >= width or min(rows) >= height:
                shown = _listed([value for point in points for value in point])
                raise ConfigError(
                    f"expected a {what} on a picture of {width} x {height} pixels, got {shown}; correct its points"
                )
        self._is_checked = True

    def so_far(self) -> Counts:
        """Return a copy of the counts that later frames do not change."""
        return Counts(
            tuple(replace(c, to_right=c.to_right.copy(), to_left=c.to_left.copy()) for c in self.lines),
            tuple(replace(c, present=c.present.copy(), distinct=c.distinct.copy()) for c in self.zones),
        )

    def to_plain(self) -> dict[str, object]:
        """Return the counts as plain data."""
        return self.so_far().to_plain()


def _side(point: Point, start: Point, end: Point) -> float:
    """Return a value above 0 for a point to the right of the line from start to end, where y points down."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _is_right(point: Point, line: LineCount) -> bool:
    return _side(point, line.start, line.end) > 0


def _is_complete(approach: _Approach, line: LineCount, xyxy: Float64s, time_s: float | None) -> bool:
    """Return True if a track on the other side of a line is far enough beyond it, or has stayed there."""
    if not approach.num_frames:
        return False
    foot = float(xyxy[0] + xyxy[2]) / 2, float(xyxy[3])
    along_x, along_y = line.end[0] - line.start[0], line.end[1] - line.start[1]
    # Lengths times the length of the line: distance of the foot point, and extent of the box across the line.
    distance = abs(_side(foot, line.start, line.end))
    extent = abs(along_y) * float(xyxy[2] - xyxy[0]) + abs(along_x) * float(xyxy[3] - xyxy[1])
    if distance >= _BEYOND_SHARE * extent:
        return True
    is_long = time_s is not None and approach.since_s is not None and time_s - approach.since_s >= _STAY_S
    return is_long and approach.num_frames >= _STAY_FRAMES


def crossing(before: Point, after: Point, start: Point, end: Point) -> int:
    """Return 1 if a move crosses a line to its right, -1 to its left, 0 if it does not cross it.

    A point on the line counts as left of it, and an end of the line on the path of the move likewise, so that a move in
    several steps crosses as often as it would in one.
    """
    was_right, is_right = _side(before, start, end) > 0, _side(after, start, end) > 0
    is_between = (_side(start, before, after) > 0) != (_side(end, before, after) > 0)
    return (1 if is_right else -1) if was_right != is_right and is_between else 0


def is_inside(points: Float64s, corners: Sequence[Point]) -> npt.NDArray[np.bool_]:
    """Return a mask, bool (N,), of the points, float64 (N, 2), that lie in a polygon.

    A ray from a point inside crosses an odd number of the sides.
    """
    inside = np.zeros(len(points), np.bool_)
    x, y = points[:, 0], points[:, 1]
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside
