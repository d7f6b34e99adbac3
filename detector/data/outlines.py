"""Axis-aligned outlines (x1, y1, x2, y2) of the shapes that annotation programs draw, in the units of their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

Corners = tuple[float, float, float, float]


def of_points(points: Iterable[tuple[float, float]]) -> Corners:
    """Return the outline of points (x, y); four NaN where a number is NaN, which has no order."""
    xs, ys = zip(*points, strict=True)
    if any(math.isnan(number) for number in (*xs, *ys)):
        return math.nan, math.nan, math.nan, math.nan
    return min(xs), min(ys), max(xs), max(ys)


def of_turned_box(corners: Corners, degrees: float, pivot: tuple[float, float] | None = None) -> Corners:
    """Return the outline of a box that is turned clockwise around a point, by default its centre."""
    if not degrees:
        return corners
    x1, y1, x2, y2 = corners
    pivot_x, pivot_y = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    cosine, sine = _direction(degrees)
    moved = [(x - pivot_x, y - pivot_y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    return of_points((pivot_x + x * cosine - y * sine, pivot_y + x * sine + y * cosine) for x, y in moved)


def of_ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Corners:
    """Return the outline of an ellipse that is turned around its centre."""
    cosine, sine = _direction(degrees)
    half_width = math.hypot(radii[0] * cosine, radii[1] * sine)
    half_height = math.hypot(radii[0] * sine, radii[1] * cosine)
    return centre[0] - half_width, centre[1] - half_height, centre[0] + half_width, centre[1] + half_height


def _direction(degrees: float) -> tuple[float, float]:
    """Return cosine and sine; NaN for an angle that is not finite."""
    angle = math.radians(degrees) if math.isfinite(degrees) else math.nan
    return math.cos(angle), math.sin(angle)
