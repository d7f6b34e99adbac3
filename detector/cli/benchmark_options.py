"""Options of `detector benchmark`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import whole_number
from detector.cli.usage import check_keys, split_words

EXAMPLES = (
    "detector benchmark best.safetensors best.onnx",
    "detector benchmark mish-n mish-s --sizes 320,640 device=cpu --markdown",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL key=value",
        help="model files, exports, or presets with random weights; then overrides such as device=cpu",
    )
    parser.add_argument("--sizes", metavar="N,N", help="sides of the canvas in pixels (default: the model's own)")
    parser.add_argument("--batch", type=whole_number, default=1, metavar="N", help="images in a call (default 1)")
    parser.add_argument(
        "--backends",
        metavar="A,B",
        help="reference, torch-fp32, torch-bf16, torch-fp16, torch-compile, torch-bf16-compile, torch-bf16-graph, "
        "torch-fp16-graph, or a target of detector export such as onnx (default: the first two, and torch-bf16 where "
        "it is native)",
    )
    parser.add_argument(
        "--turns",
        type=whole_number,
        default=20,
        metavar="N",
        help="turns of each back end, with 3 calls each (default 20)",
    )
    parser.add_argument("--threads", type=whole_number, metavar="N", help="threads of torch (default: its own choice)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    form.add_argument("--json", action="store_true", help="print every call as JSON")


def check(arguments: argparse.Namespace) -> None:
    """Reject unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    check_keys(arguments, split_words(arguments)[1])
