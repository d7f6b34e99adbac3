"""Options of `detector new`; importing them loads no library."""

from __future__ import annotations

import argparse

EXAMPLES = (
    "detector new backbone my_backbone.py",
    "detector new export-target my_target.py",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KIND FILE.py",
        help="a kind of part, such as backbone or export-target, and the new file, whose name the part gets",
    )
