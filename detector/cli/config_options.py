"""Options of `detector config`; importing them loads no library."""

from __future__ import annotations

import argparse

EXAMPLES = ("detector config", "detector config optimizer", "detector config train.epochs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words", nargs="*", metavar="SECTION|KEY", help="sections and keys such as train or train.epochs (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the table of keys as JSON")
