"""`detector anchors`."""

from __future__ import annotations

import argparse
import json

import numpy as np

from detector.cli.data_words import configured
from detector.cli.progress import say
from detector.cli.usage import data_words
from detector.data.anchor_kmeans import RECALL_IOU, Anchors, Sizes, canvas_sizes, find_anchors
from detector.errors import ConfigError
from detector.structures.letterbox import FITS
from detector.tasks.detection_model import read_split
from detector.workflows.training_progress import TrainingProgress

DEFAULT_HW = (416, 416)  # of most .cfg files
_MEANING = {
    "letterbox": "for networks that letterbox images (the presets; letter_box=1 in a .cfg): ",
    "stretch": "for networks that stretch images (a .cfg without letter_box=1): ",
}


def run(arguments: argparse.Namespace) -> int:
    """Compute anchors and print them in the format of a Darknet .cfg; return the exit code."""
    size = arguments.size or []
    if arguments.num < 1 or min(size, default=1) < 1 or len(size) > 2:
        raise ConfigError(
            f"expected --num of at least 1 and --size of one or two numbers of at least 1, got {arguments.num} and "
            f"{', '.join(map(str, size))}"
        )
    words = data_words(arguments, arguments.words)
    _, config = configured(words, arguments.cfg or "base")
    annotations = read_split(config, arguments.split, TrainingProgress(arguments.quiet, arguments.verbose))
    canvas_hw = (size[0], size[-1]) if size else config.input.canvas_hw if arguments.cfg else DEFAULT_HW
    is_given = arguments.cfg is not None or any(word.startswith("input.fit=") for word in words)
    found: dict[str, Anchors] = {}
    sizes: dict[str, Sizes] = {}
    for fit in (config.input.fit,) if is_given else FITS:
        sizes[fit] = canvas_sizes(annotations, canvas_hw, fit, config.input.arithmetic)
        if not any(np.array_equal(sizes[fit], sizes[other]) for other in found):
            found[fit] = find_anchors(sizes[fit], arguments.num, arguments.metric, arguments.seed)
    if arguments.json:
        plain = {fit: anchors.to_plain() for fit, anchors in found.items()}
        first = next(iter(plain))
        print(json.dumps({**plain.pop(first), "fit": first, **plain}))
        return 0
    for fit, anchors in found.items():
        _print(anchors, fit if len(found) > 1 or is_given else "", arguments.quiet)
    return 0


def _print(anchors: Anchors, fit: str, quiet: bool) -> None:
    """Print anchors as lines of a .cfg; `fit` says which networks they are for, empty where it makes no difference."""
    pairs = anchors.wh.tolist()
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        say("some anchors are the same in whole pixels; use a smaller --num or a larger --size", quiet)
    print(f"num = {len(pairs)}")
    print(f"anchors = {', '.join(f'{width},{height}' for width, height in pairs)}")
    print(
        f"# {_MEANING.get(fit, '')}average IoU {anchors.average_iou:.3f}, {anchors.recall:.1%} of {anchors.num_boxes} "
        f"boxes have an anchor of IoU above {RECALL_IOU}"
    )
