"""Options of `detector models`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import whole_number
from detector.cli.model_file_options import add_darknet_options

EXAMPLES = (
    "detector models",
    "detector models --size 320 --num-classes 3",
    "detector models best.safetensors --layers",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE",
        help="a model file, export, .cfg, preset or published name to describe (default: list the presets)",
    )
    add_darknet_options(parser)
    parser.add_argument("--layers", action="store_true", help="also print the layers of the file's network")
    parser.add_argument("--size", type=whole_number, default=640, help="side of the input in pixels (default 640)")
    parser.add_argument("--num-classes", type=whole_number, default=80, help="classes of the head (default 80)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
