"""Options of `detector activations`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = (
    "detector activations",
    "detector activations mish relu --plot activations.png",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="NAME", help="activations, the highlighted one first (default all)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="picture of them (default: no picture)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
