"""Options of `detector study`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STUDY key=value",
        help="a study file or shipped study (depth, classify, detect, ...), then overrides of its experiment",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the study (default runs/study/NAME)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=A,B",
        help="keep these values of an axis; the baseline stays",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each combination (default: the study's)")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="make only this part of the runs; torchrun divides them automatically",
    )
    parser.add_argument("--report-only", action="store_true", help="make no runs, report the finished ones")
    parser.add_argument("--dry-run", action="store_true", help="print the number of runs and their estimated time")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # one run, started by this command
