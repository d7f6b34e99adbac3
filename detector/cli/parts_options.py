"""Options of `detector parts`; importing them loads no library."""

from __future__ import annotations

import argparse

EXAMPLES = (
    "detector parts",
    "detector parts backbone loss",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="KIND", help="kinds to list, such as backbone (default all)")
    parser.add_argument("--json", action="store_true", help="print the names as JSON")
