"""`detector augment`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides such as augment.degrees=10")
    parser.add_argument("--preview", metavar="DATA", help="the data set, as in data=...: a YAML file, or shapes")
    parser.add_argument("--config", default="mish-n", metavar="CONFIG", help="a YAML file or preset (default mish-n)")
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to draw from (default train)")
    parser.add_argument("--num", type=int, default=6, metavar="N", help="whole training images drawn (default 6)")
    parser.add_argument(
        "--output", type=Path, default=Path("augment.jpg"), metavar="FILE", help="the picture (default augment.jpg)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draws training images, and each augmentation by itself; returns the exit code."""
    if arguments.preview is None:
        raise ConfigError("a data set is wanted; give --preview DATA, a YAML file such as data/bccd.yaml, or shapes")
    if wrong := [word for word in arguments.words if "=" not in word]:
        raise ConfigError(f"overrides are written key=value, found {wrong[0]!r}; a preset goes after --config")
    if arguments.num < 1:
        raise ConfigError(f"--num wants at least 1, found {arguments.num}; give 1 or more")

    from detector.cli.progress import say
    from detector.data.augmentation_preview import alone_tiles, whole_tiles
    from detector.data.loader import TrainingSamples
    from detector.media.drawing import draw_tiles
    from detector.media.images import write_image
    from detector.tasks.detection_model import load_detection, read_split

    config = load_detection(arguments.config, [f"data={arguments.preview}", *arguments.words])
    annotations = read_split(config, arguments.split)
    augment, canvas_hw, channels, fit = config.augment, config.input.canvas_hw, config.input.channels, config.input.fit
    seed = config.train.seed
    samples = TrainingSamples(annotations, canvas_hw, channels, fit, augment, seed, config.loader.cache_mb)
    tiles = [*whole_tiles(samples, arguments.num), *alone_tiles(samples, augment, canvas_hw, channels, fit, seed)]
    picture = draw_tiles([tile.sample for tile in tiles], annotations.class_names, [tile.title for tile in tiles])
    write_image(arguments.output, picture)
    say(f"{len(tiles)} pictures of {annotations.annotations}", arguments.quiet)
    print(arguments.output)
    return 0
