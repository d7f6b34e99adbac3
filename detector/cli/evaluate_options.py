"""Options of `detector evaluate`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.model_file_options import add_darknet_options, add_runtime_options
from detector.cli.report_options import add_report_options
from detector.cli.views_options import add_view_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as data=my.yaml evaluate.iou=0.6",
    )
    add_darknet_options(parser)
    add_runtime_options(parser)
    parser.add_argument("--split", default="val", help="train, val or test (default val)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="score a COCO results file instead of a model")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="with --results: the COCO ground truth")
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
        help="coco: pycocotools, or fast for a faster scorer with the same results",
    )
    parser.add_argument(
        "--limits", metavar="N,N", help="coco: AP for other numbers of detections per class and image, besides 100"
    )
    parser.add_argument(
        "--points",
        type=int,
        metavar="N",
        help="recall levels of the AP, 0 for the area under the curve; voc: 11 or 0; darknet: 0, 11, 101",
    )
    parser.add_argument(
        "--match-iou", type=float, metavar="0..1", help="voc, darknet: overlap of a match (default 0.5)"
    )
    add_view_options(parser)
    parser.add_argument("--save-dir", type=Path, metavar="DIR", help="folder for results (default runs/detect/val)")
    add_report_options(parser)
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 if images or boxes were skipped or used with a warning"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
