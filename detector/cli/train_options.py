"""Options of `detector train`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help="a YAML file or preset (mish-n, demo, ...), then overrides such as data=my.yaml train.epochs=50",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run, given by its folder")
    parser.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="continue the run of this name if there is one, so that the same command can be repeated",
    )
    parser.add_argument(
        "--plot-schedule",
        type=Path,
        metavar="FILE.png",
        help="draw the learning rate of the whole run without training",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, make a few steps, print memory, speed and time of the run; nothing is kept",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 if images or boxes were skipped or used with a warning"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
