"""Options that have the same name in every command; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


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
