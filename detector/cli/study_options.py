"""Options of `detector study`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_data, add_out, whole_number
from detector.cli.usage import check_keys, require_one, split_words
from detector.errors import ConfigError

EXAMPLES = (
    "detector study depth --dry-run",
    "detector study detect --seeds 3 data=my.yaml",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STUDY key=value",
        help="a study file or shipped study (depth, classify, detect, ...), then overrides of its experiment",
    )
    add_out(parser, "folder of the study (default runs/study/NAME)")
    add_data(parser)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=A,B",
        help="keep these values of an axis; the baseline stays (default: all)",
    )
    parser.add_argument(
        "--seeds", type=whole_number, metavar="N", help="runs of each combination (default: the study's)"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="make only this part of the runs; torchrun divides them automatically (default: all)",
    )
    parser.add_argument("--report-only", action="store_true", help="make no runs, report the finished ones")
    parser.add_argument("--dry-run", action="store_true", help="print the number of runs and their estimated time")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # one run, started by this command


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one study, options that exclude each other, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    require_one(names, "study", "one such as depth")
    if arguments.report_only and (arguments.dry_run or arguments.shard):
        raise ConfigError("--report-only: expected neither --dry-run nor --shard, got one of them; leave it out")
    check_keys(arguments, overrides)
