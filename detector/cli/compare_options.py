"""Options of `detector compare`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN",
        help="folders of detector evaluate or of training; the others are compared with the first",
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO ground truth, if the file was moved")
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="draws of the paired test (default 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
