"""Options of `detector check`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.dataset_options import DATA_HELP


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="DATA key=value", help=f"{DATA_HELP}; then overrides")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="a split to check (default all; may be repeated)"
    )
    parser.add_argument(
        "--config",
        default="base",
        metavar="CONFIG",
        help="training configuration whose settings are checked (default base)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="do not decode images; read headers and compare files only"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 3 on warnings as well as errors")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page with pictures")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write the page, JSON, text and pictures to a folder"
    )
