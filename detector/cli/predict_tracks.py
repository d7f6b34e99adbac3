"""`detector predict --track`: the options for tracking and counting, and the counts as text."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence

from detector.inference.counting import Counts, line_of, zone_of


def add_track_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for objects that are tracked."""
    group = parser.add_argument_group("objects followed through videos (ByteTrack)")
    group.add_argument(
        "--track", action="store_true", help='number objects ("car 7") in pictures and records, write STEM.mot.csv'
    )
    group.add_argument(
        "--line",
        type=_line,
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2",
        help="count objects over a line, in pixels, each way; means --track; may be repeated",
    )
    group.add_argument(
        "--zone",
        type=_zone,
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2,X3,Y3,...",
        help="count objects in a polygon, in pixels; means --track; may be repeated",
    )


def _numbers(text: str, check: Callable[[Sequence[float]], object]) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from error
    try:
        check(values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return values


def _line(text: str) -> tuple[float, ...]:
    return _numbers(text, line_of)


def _zone(text: str) -> tuple[float, ...]:
    return _numbers(text, zone_of)


def counts_text(name: str, counts: Counts) -> list[str]:
    """Return the counts of the video of a name, a line for each."""
    lines = [
        f"{name}: line {number}: {_listed(line.to_right)} to its right, {_listed(line.to_left)} to its left"
        for number, line in enumerate(counts.lines, start=1)
    ]
    zones = [
        f"{name}: zone {number}: {_listed(zone.distinct)} in all, {_listed(zone.present)} at the end"
        for number, zone in enumerate(counts.zones, start=1)
    ]
    return [*lines, *zones]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
