"""Options of `detector export`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_data, add_out, number, whole_number
from detector.cli.model_file_options import add_darknet_options
from detector.cli.usage import check_model_words

EXAMPLES = (
    "detector export runs/detect/train --to onnx --nms",
    "detector export best.safetensors --to onnx --runner --out deploy/best.onnx",
    "detector export best.safetensors --to openvino --precision int8 --out best.xml",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as input.size=320 predict.confidence=0.4",
    )
    add_darknet_options(parser)
    # No choices: a target may come from a file of --import, which runs after the options are parsed.
    parser.add_argument(
        "--to",
        metavar="TARGET",
        required=True,
        help="the runtime to write for: onnx, openvino, torchscript, pt2, ncnn, litert, tensorrt, or one of --import",
    )
    add_out(parser, "the file (default: beside WEIGHTS, under its name)", "FILE")
    add_data(parser)
    parser.add_argument(
        "--nms", action="store_true", help="put score filter and suppression, as predict has them, into the file"
    )
    parser.add_argument("--dynamic", action="store_true", help="accept canvases of any size (the batch is always free)")
    parser.add_argument("--raw-maps", action="store_true", help="output the raw maps too")
    parser.add_argument(
        "--opset",
        type=whole_number,
        default=18,
        metavar="N",
        help="onnx, openvino: version of the operators (default 18)",
    )
    parser.add_argument(
        "--mish-form", choices=("mish", "softplus", "sigmoid"), help="how Mish is written (default: the fastest)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="number format (default fp32)"
    )
    _add_images(parser)
    parser.add_argument(
        "--runner",
        action="store_true",
        help="onnx, openvino: write run.py beside it, which needs no torch",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the differences from the model as JSON")


def _add_images(parser: argparse.ArgumentParser) -> None:
    """Add the options for the images that an export is calibrated on and compared with its model on."""
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="int8: images to take the ranges of activations from (default: the train split)",
    )
    parser.add_argument(
        "--max-ap-loss",
        type=number,
        default=0.1,
        metavar="SHARE",
        help="int8: largest share of its AP on the val split that the model may lose (default 0.1; 1: any)",
    )
    parser.add_argument(
        "--check-images",
        type=Path,
        metavar="FOLDER",
        help="images to compare the export with its model on (default: the val split, else drawn ones)",
    )


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one model file, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    check_model_words(arguments)
