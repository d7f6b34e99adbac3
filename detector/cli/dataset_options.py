"""Options of `detector dataset`; importing them loads no library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detector.cli.common_options import add_data, add_out, positive, seed, whole_number
from detector.cli.usage import DATA_HELP, check_data_words, narrow_to_action, require_action
from detector.errors import ConfigError

_ACTIONS = {
    "to-coco": "write COCO files from a data set in any of the supported formats",
    "to-yolo": "write text labels, images and a data.yaml",
    "to-darknet": "write text labels beside the images, lists and a .data file",
    "to-shards": "write tar shards of images and annotations, in the layout of WebDataset",
    "index": "build an index of large COCO files, for data.index=FOLDER, and print the boxes of each class",
    "split": "divide the images of one split, each class in the same shares",
    "merge": "merge several data sets, matching classes by name",
    "subset": "keep some classes or images",
    "remap": "rename, merge and leave out classes",
}


_SHARES = "train=0.8,val=0.2"

EXAMPLES = (
    "detector dataset to-coco VOC_FOLDER --out data/mine",
    "detector dataset split data.yaml --shares train=0.8,val=0.2 --out data/parts",
    "detector dataset remap data.yaml van=car truck=car --out data/cars",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
    parser.add_argument("words", nargs="*", metavar="ACTION DATA", help=f"{actions}. DATA is {DATA_HELP}")
    add_data(parser)
    add_out(parser, "folder of the result, new or empty (no default)", aliases=("--to",))
    parser.add_argument("--link", action="store_true", help="to-yolo, to-darknet: link images instead of copying them")
    parser.add_argument(
        "--relative",
        action="store_true",
        help="to-darknet: write relative paths, so that the folder can be moved; start Darknet in it",
    )
    parser.add_argument(
        "--difficult",
        choices=("ignore", "keep", "drop"),
        help="to-coco from VOC, DOTA, labelme: treatment of difficult objects (default ignore: they are crowd regions)",
    )
    parser.add_argument(
        "--first-pixel",
        type=whole_number,
        choices=(0, 1),
        help="to-coco from VOC: the number of the first pixel (default: 0 where the files show it, else 1 as in VOC)",
    )
    parser.add_argument(
        "--shard-mb",
        type=positive,
        default=256,
        metavar="N",
        help="to-shards: megabytes from which on the next shard begins (default 256)",
    )
    parser.add_argument("--shares", default=_SHARES, metavar="S", help=f"split: the splits to make (default {_SHARES})")
    parser.add_argument(
        "--from-split", default="train", metavar="NAME", help="split: the split to divide (default train)"
    )
    parser.add_argument(
        "--group",
        metavar="HOW",
        help="split: keep images of a group in one split; the group is the folder (folder), the images that look the "
        "same (duplicates) or the text that a regular expression matches in the file name (its first group, if it has "
        "one) (default: each image alone)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="split: divide the splits of --shares and --from-split together; other splits stay (default: an error)",
    )
    parser.add_argument("--classes", metavar="A,B", help="subset: the classes to keep (default: all)")
    parser.add_argument(
        "--num", type=whole_number, metavar="N", help="subset: draw N images from each split (default: all)"
    )
    parser.add_argument("--keep-empty", action="store_true", help="subset: keep images that have none of the classes")
    parser.add_argument("--map", type=Path, metavar="FILE", help="remap: YAML of old: new (default: words old=new)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draws (default 0)")


def narrow(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Describe one action only: hide the options of the others, whose help begins with their actions."""
    narrow_to_action(parser, words, _ACTIONS, "detector dataset {} DATA --out FOLDER [options]", ("DATA", DATA_HELP))


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without an action, a data set and a folder for the result.

    Raises:
        ConfigError: a mistake.
    """
    words = arguments.words
    require_action(words, _ACTIONS)
    if arguments.out is None:
        raise ConfigError("expected a folder for the result, got none; give --out FOLDER")
    if words[0] in ("to-coco", "to-yolo", "to-darknet", "to-shards", "index", "split", "subset"):
        check_data_words(arguments, words[1:])
