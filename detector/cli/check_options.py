"""Options of `detector check`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_data, add_out
from detector.cli.usage import DATA_HELP, check_data_words

EXAMPLES = (
    "detector check data.yaml",
    "detector check instances.json images --quick --html report.html",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="DATA key=value", help=f"{DATA_HELP}; then overrides")
    add_data(parser)
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
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the report as one page with pictures (default: no page)"
    )
    text = "write the page, JSON, text and pictures to this folder (default: no folder)"
    add_out(parser, text, aliases=("--output",))


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one data set, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    check_data_words(arguments, arguments.words, arguments.config)
