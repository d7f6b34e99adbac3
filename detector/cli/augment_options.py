"""Options of `detector augment`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import add_data, add_out, whole_number
from detector.cli.usage import check_keys, split_words
from detector.errors import ConfigError

EXAMPLES = (
    "detector augment --data data.yaml",
    "detector augment --data shapes augment.degrees=10 --out augment.jpg",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides such as augment.degrees=10")
    add_data(parser, aliases=("--preview",))
    parser.add_argument("--config", default="mish-n", metavar="CONFIG", help="a YAML file or preset (default mish-n)")
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to draw from (default train)")
    parser.add_argument(
        "--num", type=whole_number, default=6, metavar="N", help="whole training images drawn (default 6)"
    )
    add_out(parser, "the picture (default augment.jpg)", "FILE", aliases=("--output",))


def check(arguments: argparse.Namespace) -> None:
    """Reject names, a missing data set and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    if names:
        raise ConfigError(f"expected overrides written key=value, got {names[0]!r}; a preset goes after --config")
    if not any(override.startswith(("data=", "data.")) for override in overrides):
        raise ConfigError(
            "expected a data set, got none; give --data DATA, a YAML file such as data/bccd.yaml, or shapes"
        )
    if arguments.num < 1:
        raise ConfigError(f"--num: expected at least 1, got {arguments.num}")
    check_keys(arguments, overrides, arguments.config)
