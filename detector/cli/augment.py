"""`detector augment`."""

from __future__ import annotations

import argparse

from detector.cli.progress import say
from detector.data.augmentation_preview import alone_tiles, whole_tiles
from detector.data.loader import TrainingSamples
from detector.errors import ConfigError
from detector.media.drawing import draw_tiles
from detector.media.images import write_image
from detector.structures.canvas import Canvas
from detector.tasks.detection_model import load_detection, read_split


def run(arguments: argparse.Namespace) -> int:
    """Draw training images and each augmentation on its own; return the exit code."""
    if arguments.preview is None:
        raise ConfigError(
            "expected a data set, got none; give --preview DATA, a YAML file such as data/bccd.yaml, or shapes"
        )
    if wrong := [word for word in arguments.words if "=" not in word]:
        raise ConfigError(f"expected overrides written key=value, got {wrong[0]!r}; a preset goes after --config")
    if arguments.num < 1:
        raise ConfigError(f"--num: expected at least 1, got {arguments.num}")

    config = load_detection(arguments.config, [f"data={arguments.preview}", *arguments.words])
    annotations = read_split(config, arguments.split)
    canvas = Canvas(config.input.canvas_hw, config.input.channels, config.input.fit)
    samples = TrainingSamples(annotations, canvas, config.augment, config.train.seed, config.loader.cache_mb)
    alone = alone_tiles(samples, config.augment, canvas, config.train.seed)
    tiles = [*whole_tiles(samples, arguments.num), *alone]
    picture = draw_tiles([tile.sample for tile in tiles], annotations.class_names, [tile.title for tile in tiles])
    write_image(arguments.output, picture)
    say(f"{len(tiles)} pictures of {annotations.annotations}", arguments.quiet)
    print(arguments.output)
    return 0
