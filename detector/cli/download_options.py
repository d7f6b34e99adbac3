"""Options of `detector download`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import add_out
from detector.errors import ConfigError

EXAMPLES = (
    "detector download",
    "detector download yolov4-tiny",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words", nargs="*", metavar="NAME", help="name of the weights or data set (default: list all names)"
    )
    add_out(parser, "where to put it (default weights/FILE or data/NAME)", "PATH", aliases=("--output",))


def check(arguments: argparse.Namespace) -> None:
    """Reject several names.

    Raises:
        ConfigError: a mistake.
    """
    if len(arguments.words) > 1:
        raise ConfigError(f"expected one name, got {', '.join(arguments.words)}; download one after the other")
