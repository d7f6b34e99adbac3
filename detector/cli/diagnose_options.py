"""Options of `detector diagnose`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import add_data, positive
from detector.cli.usage import check_keys, require_one, split_words

EXAMPLES = (
    "detector diagnose runs/detect/train",
    "detector diagnose runs/detect/train --json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN key=value",
        help="the folder of a training run, then overrides such as data=moved.yaml",
    )
    add_data(parser)
    parser.add_argument(
        "--images",
        type=positive,
        default=200,
        metavar="N",
        help="images of each split that the model is run on (default 200)",
    )
    parser.add_argument("--json", action="store_true", help="print causes and evidence as JSON")


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one run, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    require_one(names, "run folder", "runs/detect/train")
    check_keys(arguments, overrides)
