"""Options of `detector evaluate`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_data, add_out, number, whole_number
from detector.cli.model_file_options import add_darknet_options, add_runtime_options
from detector.cli.report_options import add_report_options
from detector.cli.usage import check_model_words
from detector.cli.views_options import add_view_options
from detector.errors import ConfigError

EXAMPLES = (
    "detector evaluate runs/detect/train",
    "detector evaluate best.safetensors data=data.yaml --report report",
    "detector evaluate --results predictions.json --annotations instances.json",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as data=my.yaml evaluate.iou=0.6",
    )
    add_data(parser)
    add_darknet_options(parser)
    add_runtime_options(parser)
    parser.add_argument("--split", help="train, val or test (default: val, or the only split of other data)")
    _add_files(parser)
    parser.add_argument(
        "--ignore-unknown",
        action="store_true",
        help="with --results: skip and count results of images or categories that the ground truth does not list",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="coco",
        help="coco (default), voc, darknet, or a metric registered by a file given with --import",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "pycocotools", "fast"),
        help="coco: pycocotools, or fast for a faster scorer with the same results (default: evaluate.backend, auto)",
    )
    parser.add_argument(
        "--limits",
        metavar="N,N",
        help="coco: AP for other numbers of detections per class and image, besides 100 (default: none)",
    )
    parser.add_argument(
        "--points",
        type=whole_number,
        metavar="N",
        help="recall levels of the AP, 0 for the area under the curve; voc: 11 or 0; darknet: 0, 11, 101 "
        "(default: that of the metric)",
    )
    parser.add_argument(
        "--match-iou", type=number, metavar="0..1", help="voc, darknet: overlap of a match (default 0.5)"
    )
    add_view_options(parser)
    add_out(parser, "folder for results (default runs/detect/val)", aliases=("--save-dir",))
    add_report_options(parser)
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 if images or boxes were skipped or used with a warning"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line with neither one model nor a results file and its ground truth, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    if arguments.ignore_unknown and not arguments.results:
        raise ConfigError("--ignore-unknown belongs to --results; leave it out")
    if arguments.tracks is not None:
        if arguments.annotations is None or arguments.words:
            raise ConfigError("--tracks needs --annotations FILE and takes no model; give these two files only")
        return
    if not arguments.results:
        check_model_words(arguments)
    elif arguments.annotations is None or arguments.words:
        raise ConfigError("--results needs --annotations FILE and takes no model; give these two files only")


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Add the options for files that are scored instead of a model."""
    parser.add_argument("--results", type=Path, metavar="FILE", help="score a COCO results file (default: a model)")
    parser.add_argument(
        "--tracks",
        type=Path,
        metavar="FILE",
        help="score the tracks of a video (MOT format): HOTA, IDF1, MOTA (default: a model)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="with --results: COCO ground truth; with --tracks: true tracks in MOT format (no default)",
    )
