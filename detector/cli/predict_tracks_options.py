"""Options of `detector predict` for tracks and counts; importing them loads no library."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from detector.cli.common_options import number


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
        help="count objects over a line, in pixels, each way; means --track; may be repeated (default: none)",
    )
    group.add_argument(
        "--zone",
        type=_zone,
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2,X3,Y3,...",
        help="count objects in a polygon, in pixels; means --track; may be repeated (default: none)",
    )
    group.add_argument(
        "--untracked", action="store_true", help="keep detections that joined no track, without a number"
    )
    group.add_argument("--camera-motion", action="store_true", help="move tracks with a camera that moves or shakes")
    group.add_argument(
        "--track-match", type=_share, metavar="0..1", help="overlap above which a box continues a track (default: 0.2)"
    )
    group.add_argument(
        "--track-enlarge",
        type=_length,
        metavar="SHARE",
        help="pair small or fast objects by boxes enlarged by this share on each side (0: do not; default: 0.5)",
    )
    group.add_argument(
        "--track-buffer",
        type=_length,
        metavar="SECONDS",
        help="how long an object that is not seen keeps its number (default: 1)",
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


def _length(text: str) -> float:
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def _share(text: str) -> float:
    value = _length(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number of 0..1, got {text!r}")
    return value


def _line(text: str) -> tuple[float, ...]:
    from detector.inference.counting import line_of  # loads torch, which the help does not need

    return _numbers(text, line_of)


def _zone(text: str) -> tuple[float, ...]:
    from detector.inference.counting import zone_of  # loads torch, which the help does not need

    return _numbers(text, zone_of)
