"""`detector anchors`."""

from __future__ import annotations

import argparse
import json

from detector.cli.data_words import configured
from detector.cli.progress import say
from detector.cli.usage import data_words
from detector.data.anchor_kmeans import RECALL_IOU, canvas_sizes, find_anchors
from detector.errors import ConfigError
from detector.tasks.detection_model import read_split
from detector.workflows.training_progress import TrainingProgress


def run(arguments: argparse.Namespace) -> int:
    """Compute anchors and print them in the format of a Darknet .cfg; return the exit code."""
    if arguments.num < 1 or min(arguments.size) < 1 or len(arguments.size) > 2:
        raise ConfigError(
            f"expected --num of at least 1 and --size of one or two numbers of at least 1, got {arguments.num} and "
            f"{', '.join(map(str, arguments.size))}"
        )
    _, config = configured(data_words(arguments, arguments.words))
    annotations = read_split(config, arguments.split, TrainingProgress(arguments.quiet, arguments.verbose))
    canvas_hw = (arguments.size[0], arguments.size[-1])
    sizes = canvas_sizes(annotations, canvas_hw, config.input.fit, config.input.arithmetic)
    anchors = find_anchors(sizes, arguments.num, arguments.metric, arguments.seed)
    pairs = anchors.wh.tolist()
    if arguments.json:
        plain = {"average_iou": anchors.average_iou, "recall": anchors.recall, "num_boxes": anchors.num_boxes}
        print(json.dumps({"anchors": pairs, **plain}))
        return 0
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        say("some anchors are the same in whole pixels; use a smaller --num or a larger --size", arguments.quiet)
    print(f"num = {len(pairs)}")
    print(f"anchors = {', '.join(f'{width},{height}' for width, height in pairs)}")
    print(
        f"# average IoU {anchors.average_iou:.3f}, {anchors.recall:.1%} of {anchors.num_boxes} boxes have an anchor "
        f"of IoU above {RECALL_IOU}"
    )
    return 0
