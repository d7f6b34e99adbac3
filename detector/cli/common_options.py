"""Options that have the same name in every command; importing them loads no library."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

_LARGEST, _LARGEST_SEED = 10**9, 2**63 - 1


def whole_number(text: str, least: int = -_LARGEST, most: int = _LARGEST) -> int:
    """Return the whole number of an option; argparse refuses anything else."""
    try:
        value = int(text)
    except ValueError:  # also for more digits than Python converts
        value = most + 1
    if not least <= value <= most:
        bounds = "" if least == -most else f" of at least {least}"
        raise argparse.ArgumentTypeError(f"expected a whole number{bounds} (at most {most}), got {text!r:.60}")
    return value


def natural(text: str) -> int:
    """Return a whole number of at least 0."""
    return whole_number(text, 0)


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    return whole_number(text, 1)


def seed(text: str) -> int:
    """Return the seed of a random generator."""
    return whole_number(text, 0, _LARGEST_SEED)


def number(text: str) -> float:
    """Return a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r:.60}")
    return value


def add_out(parser: argparse.ArgumentParser, text: str, metavar: str = "FOLDER", aliases: tuple[str, ...] = ()) -> None:
    """Add `--out`, the destination of a command; the aliases are its names in earlier versions and stay hidden."""
    parser.add_argument("--out", type=Path, metavar=metavar, help=text)
    for alias in aliases:
        # Without a default of its own, so that it does not replace the value of --out.
        parser.add_argument(alias, dest="out", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_data(parser: argparse.ArgumentParser, aliases: tuple[str, ...] = ()) -> None:
    """Add `--data`, which has the meaning of the override `data=`."""
    parser.add_argument("--data", metavar="DATA", help="the same as data=DATA (default: that of the configuration)")
    for alias in aliases:
        parser.add_argument(alias, dest="data", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
