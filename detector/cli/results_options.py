"""Options of `detector results`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_out
from detector.cli.usage import require_action
from detector.errors import ConfigError

_ACTIONS = {"merge": "write the parts of a prediction as one file, each image exactly once"}
_SUFFIXES = (".json", ".parquet")
EXAMPLES = (
    "detector results merge parts/ --out results.json",
    "detector results merge node1/parts node2/parts --out predictions.parquet",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
    parser.add_argument(
        "words", nargs="*", metavar="ACTION FOLDER", help=f"{actions}. FOLDER is one of predict --shard"
    )
    add_out(parser, "results.json: a COCO results file; results.parquet: a row for each image (no default)", "FILE")


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without an action, a folder and a file for the result.

    Raises:
        ConfigError: a mistake.
    """
    words = arguments.words
    require_action(words, _ACTIONS)
    if len(words) < 2:
        raise ConfigError("merge: expected folders of parts, got none; give those of detector predict --shard")
    out: Path | None = arguments.out
    if out is None or out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out: expected a file that ends in {' or '.join(_SUFFIXES)}, got {out}; give --out FILE")
