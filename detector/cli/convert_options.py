"""Options of `detector convert`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.model_file_options import add_darknet_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="SOURCE TARGET key=value",
        help="NAME.weights (with its .cfg) to NAME.safetensors, or a Darknet model to NAME.weights, NAME.cfg and "
        "NAME.names; then overrides such as input.size=608",
    )
    add_darknet_options(parser)
    parser.add_argument(
        "--fold",
        action="store_true",
        help="fold batch norm into the .weights, for programs with another epsilon such as OpenCV",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
