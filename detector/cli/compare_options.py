"""Options of `detector compare`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import seed, whole_number
from detector.errors import ConfigError

EXAMPLES = (
    "detector compare runs/detect/train runs/detect/train2",
    "detector compare runs/detect/val runs/detect/val2 --json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN",
        help="folders of detector evaluate or of training; the others are compared with the first",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO ground truth (default: that of the runs)"
    )
    parser.add_argument(
        "--resamples", type=whole_number, default=1000, metavar="N", help="draws of the paired test (default 1000)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def check(arguments: argparse.Namespace) -> None:
    """Reject fewer than two runs and numbers out of range.

    Raises:
        ConfigError: a mistake.
    """
    if len(arguments.words) < 2 or len(set(arguments.words)) < len(arguments.words):
        raise ConfigError(f"expected at least two different runs, got {arguments.words}; give their folders")
    if arguments.resamples < 1 or arguments.seed < 0:
        raise ConfigError(
            f"expected --resamples of at least 1 and --seed of at least 0, got {arguments.resamples} and "
            f"{arguments.seed}; correct them"
        )
