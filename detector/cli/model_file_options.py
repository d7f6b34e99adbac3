"""Options that name a model file and its arithmetic; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_darknet_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for data that a Darknet .weights file does not contain."""
    parser.add_argument(
        "--cfg", metavar="FILE", help="network of a .weights file (default: NAME.cfg beside it, or the shipped one)"
    )
    parser.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="class names of a .weights file, one per line (default: NAME.names beside it)",
    )


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on how the network runs."""
    parser.add_argument(
        "--precision",
        dest="runtime_precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="number format of the network (default fp32); auto: the fastest on the device",
    )
