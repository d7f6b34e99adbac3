"""Options of `detector train`; importing them loads no library."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

from detector.cli.common_options import add_data, add_out, positive
from detector.cli.usage import check_keys, names_data, split_words
from detector.errors import ConfigError

EXAMPLES = (
    "detector train mish-n data=data.yaml train.epochs=50",
    "detector train mish-n data.train.annotations=train.json data.train.images=images",
    "detector train --resume runs/detect/train",
    "detector train mish-n data=data.yaml --folds 5",
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
        "--folds",
        type=positive,
        metavar="N",
        help="cross-validation: divide the training split into N folds, train a run without each of them, and score "
        "all images together, each predicted by the run that did not see it (default: one run)",
    )
    parser.add_argument(
        "--group",
        metavar="HOW",
        help="with --folds: keep images of a group in one fold: folder, duplicates or a regular expression, as in "
        "detector dataset split (default: each image alone)",
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
    if arguments.folds is None and arguments.group is not None:
        raise ConfigError("--group: expected --folds too, got --group alone; give --folds N, or leave it out")
    if arguments.folds is not None:
        _check_folds(arguments)
    if arguments.dry_run and arguments.resume:
        raise ConfigError("--dry-run: expected a new run, got --resume; leave one of them out")
    check_keys(arguments, overrides, names[0] if names else None)


def _check_folds(arguments: argparse.Namespace) -> None:
    """Reject a number of folds that divides nothing, and options of a single run.

    Raises:
        ConfigError: a mistake.
    """
    if arguments.folds < 2:
        raise ConfigError(f"--folds: expected at least 2, got {arguments.folds}; give --folds 5")
    for option, value in (
        ("--resume", arguments.resume),
        ("--dry-run", arguments.dry_run),
        ("--plot-schedule", arguments.plot_schedule),
    ):
        if value:
            raise ConfigError(
                f"{option}: expected a single run, got --folds; leave one of them out (--continue goes on with the "
                f"folds that are missing)"
            )


def _data_given(name: str) -> str:
    """Return what a word is that names data in place of a configuration; empty where it does not."""
    path = Path(name)
    if os.path.isdir(name):  # unlike Path.is_dir, false for an impossible file name
        return "" if (path / "config.yaml").is_file() else "a folder"
    if not os.path.isfile(name):
        return ""
    if path.suffix.lower() in (".zip", ".json", ".csv", ".data", ".tar", ".tgz", ".gz"):
        return "a data set"
    if path.suffix.lower() in (".yaml", ".yml"):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        is_data = re.search(r"^(names|nc)\s*:", text, re.MULTILINE)
        return "the description of a data set" if is_data and not re.search(r"^(base|model)\s*:", text, re.M) else ""
    return ""
