"""Options of `detector serve`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import natural, number, positive
from detector.cli.usage import check_keys, split_words

EXAMPLES = (
    "detector serve best.onnx",
    "detector serve yolox-nano best.safetensors --port 9000 --batch 8 predict.confidence=0.4",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL key=value",
        help="model files, exports or published weights (default: yolox-nano), the first for requests that name none; "
        "then overrides for all of them, such as predict.confidence=0.4",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=natural, default=8000, metavar="N", help="port (default 8000; 0: a free one)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that requests may use, such as that of a proxy (default: names of this machine; with --host, any)",
    )
    parser.add_argument("--batch", type=positive, default=4, metavar="N", help="most images in a pass (default 4)")
    parser.add_argument(
        "--max-wait",
        type=number,
        default=5,
        metavar="MS",
        help="milliseconds that an image waits for others (default 5)",
    )
    parser.add_argument(
        "--max-mb", type=positive, default=20, metavar="N", help="most megabytes of an image file (default 20)"
    )
    parser.add_argument(
        "--max-megapixels", type=positive, default=25, metavar="N", help="most million pixels of an image (default 25)"
    )
    parser.add_argument("--queue", type=positive, default=64, metavar="N", help="most requests in work (default 64)")
    parser.add_argument(
        "--timeout", type=number, default=30, metavar="S", help="seconds until a request is given up (default 30)"
    )
    parser.add_argument(
        "--body-timeout", type=number, default=10, metavar="S", help="seconds for a body to arrive (default 10)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of torch (default: its own choice)")


def check(arguments: argparse.Namespace) -> None:
    """Reject unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    check_keys(arguments, split_words(arguments)[1])
