"""Options of `detector env`; importing them loads no library."""

from __future__ import annotations

import argparse

EXAMPLES = (
    "detector env",
    "detector env --json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="print the versions and devices as JSON")
