"""`detector augment`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.progress import say
from detector.cli.usage import split_words
from detector.data.augmentation_preview import alone_tiles, whole_tiles
from detector.data.loader import TrainingSamples
from detector.io.nouns import plural
from detector.media.drawing import draw_tiles
from detector.media.images import write_image
from detector.structures.canvas import Canvas
from detector.tasks.detection_model import load_detection, read_split


def run(arguments: argparse.Namespace) -> int:
    """Draw training images and each augmentation on its own; return the exit code."""
    config = load_detection(arguments.config, split_words(arguments)[1])
    annotations = read_split(config, arguments.split)
    canvas = Canvas(config.input.canvas_hw, config.input.channels, config.input.fit)
    samples = TrainingSamples(annotations, canvas, config.augment, config.train.seed, config.loader.cache_mb)
    alone = alone_tiles(samples, config.augment, canvas, config.train.seed)
    tiles = [*whole_tiles(samples, arguments.num), *alone]
    picture = draw_tiles([tile.sample for tile in tiles], annotations.class_names, [tile.title for tile in tiles])
    out = arguments.out or Path("augment.jpg")
    write_image(out, picture)
    say(f"{plural(len(tiles), 'picture')} of {annotations.annotations}", arguments.quiet)
    print(out)
    return 0
