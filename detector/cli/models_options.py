"""Options of `detector models`; importing them loads no library."""

from __future__ import annotations

import argparse

EXAMPLES = (
    "detector models",
    "detector models --size 320 --num-classes 3",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--size", type=int, default=640, help="side of the input in pixels (default 640)")
    parser.add_argument("--num-classes", type=int, default=80, help="classes of the head (default 80)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
