"""Options of `detector train`; importing them loads no library."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from detector.cli.common_options import add_data, add_out
from detector.cli.usage import check_keys, names_data, split_words
from detector.errors import ConfigError

EXAMPLES = (
    "detector train mish-n data=data.yaml train.epochs=50",
    "detector train mish-n data.train.annotations=train.json data.train.images=images",
    "detector train --resume runs/detect/train",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help="a YAML file or preset (mish-n, demo, ...), then overrides such as data=my.yaml train.epochs=50; "
        "detector config lists all keys",
    )
    add_data(parser)
    add_out(parser, "the run folder (default: train.project/train.run_name, such as runs/detect/train)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue an interrupted run, given by its folder; data=... names a new place of its data (default: a new "
        "run)",
    )
    parser.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="continue the run of this name if there is one, so that the same command can be repeated",
    )
    parser.add_argument(
        "--plot-schedule",
        type=Path,
        metavar="FILE.png",
        help="draw the learning rate of the whole run without training (default: no picture)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, make a few steps, print memory, speed and time of the run; nothing is kept",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 if images or boxes were skipped or used with a warning"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def experiment_words(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the names and the overrides of the experiment; `--out` sets the parent and the name of the run folder."""
    names, overrides = split_words(arguments)
    if arguments.out is not None:
        out = arguments.out.absolute()
        overrides += [f"train.project={json.dumps(str(out.parent))}", f"train.run_name={json.dumps(out.name)}"]
    return names, overrides


def check(arguments: argparse.Namespace) -> None:
    """Reject words and options that do not name one experiment.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = experiment_words(arguments)
    if len(names) > 1 or not (names or arguments.resume):
        raise ConfigError(
            f"expected one configuration, got {', '.join(names) or 'none'}; give a preset or file such as mish-n"
        )
    if names and (what := _data_given(names[0])):
        name = names[0]
        raise ConfigError(f"{name}: expected a configuration, got {what}; give detector train mish-n data={name}")
    if not names and not all(names_data([override]) for override in overrides):
        raise ConfigError(
            "--resume: expected no overrides but the new place of the data (data=FILE, data.train.images=FOLDER), "
            "since a run resumes unchanged; leave them out, or repeat the command"
        )
    if arguments.dry_run and arguments.resume:
        raise ConfigError("--dry-run: expected a new run, got --resume; leave one of them out")
    check_keys(arguments, overrides, names[0] if names else None)


def _data_given(name: str) -> str:
    """Return what a word is that names data in place of a configuration; empty where it does not."""
    path = Path(name)
    if path.is_dir():
        return "" if (path / "config.yaml").is_file() else "a folder"
    if path.suffix.lower() in (".zip", ".json", ".csv", ".data", ".tar", ".tgz", ".gz") and path.is_file():
        return "a data set"
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        is_data = re.search(r"^(names|nc)\s*:", text, re.MULTILINE)
        return "the description of a data set" if is_data and not re.search(r"^(base|model)\s*:", text, re.M) else ""
    return ""
