"""Options of `detector tune`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import add_data, add_out, number, positive, seed
from detector.cli.usage import check_keys, require_one, split_words
from detector.errors import ConfigError

EXAMPLES = (
    "detector tune mish-n data=my.yaml --search optimizer.lr=1e-3..2e-2,log --minutes 120",
    'detector tune mish-n data=my.yaml --search "model.levels=[[8,16,32],[4,8,16,32]]" --search loss.box=4..12',
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help="a YAML file or preset (mish-n, demo, ...), then overrides of all runs",
    )
    add_data(parser)
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="a key to search and its values: LOW..HIGH, LOW..HIGH,log or [A, B, C]; repeatable, there is no default",
    )
    parser.add_argument(
        "--minutes", type=number, default=60, metavar="N", help="time of all runs together (default 60)"
    )
    parser.add_argument(
        "--trials", type=positive, metavar="N", help="largest number of trials (default: as many as the time allows)"
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        default=3,
        metavar="N",
        help="runs of the given and of the best settings on held-out images, each (default 3)",
    )
    parser.add_argument(
        "--held-out",
        type=number,
        default=0.5,
        metavar="SHARE",
        help="share of the validation images that the search does not see (default 0.5)",
    )
    parser.add_argument("--metric", default="AP", metavar="NAME", help="the metric to improve (default AP)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the search (default 0)")
    add_out(parser, "folder of the search; the same command continues it (default runs/tune/CONFIG)")
    parser.add_argument("--dry-run", action="store_true", help="check all values and print the search; make no run")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without one configuration and without a key to search, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    name = require_one(names, "configuration", "a preset or file such as mish-n")
    if not arguments.search:
        raise ConfigError("--search: expected at least one key, got none; give --search optimizer.lr=1e-3..2e-2,log")
    if arguments.minutes <= 0 or not 0.1 <= arguments.held_out <= 0.9:
        raise ConfigError(
            f"expected --minutes above 0 and --held-out within 0.1..0.9, got {arguments.minutes:g} and "
            f"{arguments.held_out:g}"
        )
    check_keys(arguments, overrides, name)
