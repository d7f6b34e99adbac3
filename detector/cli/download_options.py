"""Options of `detector download`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words", nargs="*", metavar="NAME", help="name of the weights or data set (default: list all names)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="where to put it (default weights/FILE or data/NAME)"
    )
