"""Options of the report of an evaluation; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write a page on the errors and the uncertainty of the numbers (default: no page)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="with --results and --report: images to draw (default: none)"
    )
    parser.add_argument(
        "--store-thresholds",
        type=Path,
        metavar="FILE.safetensors",
        help="write the model to this file with its best thresholds, for predict --confidence best (default: no file)",
    )
    parser.add_argument(
        "--threshold-for", metavar="TARGET", help="target of the thresholds: f1 (default), precision=P, recall=R"
    )
    parser.add_argument("--overwrite", action="store_true", help="with --store-thresholds: replace an existing file")
