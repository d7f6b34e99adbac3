"""Options of `detector augment`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides such as augment.degrees=10")
    parser.add_argument("--preview", metavar="DATA", help="the data set, as in data=...: a YAML file, or shapes")
    parser.add_argument("--config", default="mish-n", metavar="CONFIG", help="a YAML file or preset (default mish-n)")
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to draw from (default train)")
    parser.add_argument("--num", type=int, default=6, metavar="N", help="whole training images drawn (default 6)")
    parser.add_argument(
        "--output", type=Path, default=Path("augment.jpg"), metavar="FILE", help="the picture (default augment.jpg)"
    )
