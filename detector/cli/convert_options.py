"""Options of `detector convert`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_out
from detector.cli.model_file_options import add_darknet_options
from detector.cli.usage import check_keys, split_words
from detector.errors import ConfigError

EXAMPLES = (
    "detector convert yolov4.weights yolov4.safetensors",
    "detector convert runs/detect/train/weights/best.safetensors best.weights",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="SOURCE TARGET key=value",
        help="NAME.weights (with its .cfg) or NAME.pth of YOLOX to NAME.safetensors, a Darknet model to NAME.weights, "
        "NAME.cfg and NAME.names, or a model of YOLOX to NAME.pth and NAME.names; then overrides, input.size=608",
    )
    add_darknet_options(parser)
    add_out(parser, "the TARGET (default: the second word)", "FILE")
    parser.add_argument(
        "--fold",
        action="store_true",
        help="fold batch norm into the .weights, for programs with another epsilon such as OpenCV",
    )
    parser.add_argument(
        "--unfold",
        type=Path,
        metavar="IMAGES",
        help="give a model with folded batch norm the statistics of these images, so that it can be trained "
        "(default: none)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one source and one target, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    if len(names) + (arguments.out is not None) != 2:
        raise ConfigError(
            f"expected a SOURCE and a TARGET, got {', '.join(names) or 'none'}; give yolov4.weights yolov4.safetensors"
        )
    check_keys(arguments, overrides)
