"""Options of `detector labels`; importing them loads no library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detector.cli.common_options import add_data, add_out, number, positive, seed
from detector.cli.usage import check_keys, names_data, narrow_to_action, require_action, require_one, split_words
from detector.errors import ConfigError

ACTIONS = {
    "suspects": "list labels that may be wrong on a page to accept, reject or redraw them",
    "apply": "write a new COCO file with the decisions that the page saved",
    "pseudo": "write detections above a threshold for each class as labels of images without labels",
    "rank": "order images without labels by the value of labelling them",
}
# The options of each action, besides those of all commands; others are rejected.
_OPTIONS = {
    "suspects": {"data", "split", "num", "results", "annotations", "images", "out"},
    "apply": {"annotations", "out"},
    "pseudo": {"data", "split", "threshold_for", "confidence", "keep_empty", "out"},
    "rank": {"num", "random", "seed", "out"},
}
# Name and help of the words of each action.
_WORDS = {
    "suspects": ("WEIGHTS key=value", "a model file, then overrides such as data=my.yaml; none with --results"),
    "apply": ("DECISIONS", "the file that the page saved"),
    **dict.fromkeys(("pseudo", "rank"), ("WEIGHTS IMAGES key=value", "a model file and images, then overrides")),
}
_DEFAULTS = {"keep_empty": False, "random": False}
EXAMPLES = (
    "detector labels suspects runs/detect/train data=data.yaml --split val --out review",
    "detector labels apply decisions.json --annotations instances_val.json --out corrected.json",
    "detector labels pseudo runs/detect/train photos/ --split val data=data.yaml --out pseudo.json",
    "detector labels rank runs/detect/train photos/ --num 100 --out next.txt",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ACTION WORDS",
        help=f"{actions}. The words are a model file (suspects), the file of decisions (apply), or a model file and "
        "images (pseudo, rank); then overrides such as data=my.yaml",
    )
    add_data(parser)
    parser.add_argument(
        "--split",
        help="suspects: the split whose labels are listed; pseudo: that thresholds are chosen on (default val)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="suspects: a COCO results file instead of a model, with --annotations and --images (default: a model)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="apply: the COCO file that the list was made from, which stays as it is; suspects: labels of --results "
        "(no default)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="suspects: folder of the images of --results (no default)"
    )
    _add_settings(parser)
    add_out(
        parser,
        "suspects: folder (default runs/detect/labels); apply, pseudo: the new COCO file (no default); rank: text file "
        "with the paths, best first (default: none)",
        metavar="PATH",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that are numbers and switches."""
    parser.add_argument(
        "--num",
        type=positive,
        metavar="N",
        help="suspects: places on the page (default 200); rank: images (default: all)",
    )
    parser.add_argument(
        "--threshold-for",
        metavar="TARGET",
        help="pseudo: target of the thresholds that are chosen on data=: f1, precision=P or recall=R (default "
        "precision=0.9)",
    )
    parser.add_argument(
        "--confidence",
        type=number,
        metavar="0..1",
        help="pseudo: one threshold for all classes (default: those of data=)",
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="pseudo: keep images without a label, as background (default: leave out)",
    )
    parser.add_argument(
        "--random", action="store_true", help="rank: random order, the baseline to compare with (default: by value)"
    )
    parser.add_argument("--seed", type=seed, help="rank: seed of the random order (default 0)")


def narrow(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Describe one action only: hide the options of the others, whose help begins with their actions."""
    action = next((word for word in words if word in ACTIONS), "")
    narrow_to_action(parser, words, ACTIONS, "detector labels {} WORDS [options]", _WORDS.get(action))


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without an action and its words, and options of other actions.

    Raises:
        ConfigError: a mistake.
    """
    words = arguments.words
    require_action(words, ACTIONS)
    action = words[0]
    known = set().union(*_OPTIONS.values())
    for name in sorted(known - _OPTIONS[action]):
        if getattr(arguments, name) != _DEFAULTS.get(name):
            owners = [each for each, options in _OPTIONS.items() if name in options]
            raise ConfigError(
                f"--{name.replace('_', '-')} belongs to {' and '.join(owners)}, got {action}; leave it out"
            )
    arguments.words = words[1:]
    names, overrides = split_words(arguments)
    arguments.words = words
    if overrides and action == "apply":
        raise ConfigError(f"apply takes no override, got {overrides[0]}; leave it out")
    check_keys(arguments, overrides)
    _check_words(action, names, arguments)
    _check_thresholds(arguments, names_data(overrides))


def _check_thresholds(arguments: argparse.Namespace, has_data: bool) -> None:
    """Reject options of thresholds that have no effect, and thresholds out of range."""
    is_chosen = arguments.threshold_for is not None or (arguments.words[0] == "pseudo" and arguments.split is not None)
    if is_chosen and (arguments.confidence is not None or not has_data):
        raise ConfigError(
            "--threshold-for and --split choose thresholds on data=; give data=DATA and leave --confidence out"
        )
    if arguments.confidence is not None and not 0 <= arguments.confidence <= 1:
        raise ConfigError(f"--confidence: expected a value within 0..1, got {arguments.confidence:g}; correct it")


def _check_words(action: str, names: Sequence[str], arguments: argparse.Namespace) -> None:
    if action in ("apply", "pseudo") and arguments.out is None:
        raise ConfigError("expected a name for the new COCO file, got none; give --out FILE.json")
    if action == "apply":
        require_one(names, "file of decisions", "decisions.json")
        if arguments.annotations is None:
            raise ConfigError(
                "expected the COCO file that the list was made from, got none; give --annotations FILE.json"
            )
    elif action == "suspects":
        with_results = [arguments.results, arguments.annotations, arguments.images]
        if any(with_results) and (names or not all(with_results)):
            raise ConfigError(
                "--results, --annotations and --images belong together and take no model; give all three and no model"
            )
        if not any(with_results):
            require_one(names, "model file", "best.safetensors")
    elif len(names) < 2:
        raise ConfigError(
            f"expected a model file and images, got {', '.join(names) or 'none'}; give best.safetensors photos/"
        )
    if arguments.seed is not None and not arguments.random:
        raise ConfigError("--seed belongs to --random; leave it out or give --random")
