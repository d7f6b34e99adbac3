"""Options of `detector anchors`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import add_data, seed, whole_number
from detector.cli.usage import check_data_words

EXAMPLES = (
    "detector anchors data.yaml --num 9 --size 416",
    "detector anchors instances.json images --num 6 --size 320 640",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="DATA key=value",
        help="a data set (COCO description, data.yaml or .data file), then overrides such as input.fit=stretch",
    )
    add_data(parser)
    parser.add_argument(
        "--cfg",
        metavar="FILE.cfg",
        help="the network that the anchors are for: its canvas, and whether it stretches images (letter_box); without "
        "it and input.fit=, anchors for both fits are printed (default: none)",
    )
    parser.add_argument("--num", type=whole_number, default=9, help="number of anchors (default 9)")
    parser.add_argument(
        "--size",
        type=whole_number,
        nargs="+",
        help="the canvas: its side, or height and width (default that of --cfg, or 416)",
    )
    parser.add_argument("--metric", choices=("iou", "euclidean"), default="iou", help="cluster distance (default iou)")
    parser.add_argument("--split", default="train", help="train, val or test (default train)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random starts (default 0)")
    parser.add_argument("--json", action="store_true", help="print the anchors and figures as JSON")


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one data set, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    check_data_words(arguments, arguments.words)
