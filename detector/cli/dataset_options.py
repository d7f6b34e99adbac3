"""Options of `detector dataset`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

DATA_HELP = "a data set: FILE.yaml, shapes, a data.yaml or .data file, or a COCO FILE.json and its folder of images"
_ACTIONS = {
    "to-coco": "write COCO files from any supported data set, a Pascal VOC folder, or a CSV file and its images",
    "to-yolo": "write text labels, images and a data.yaml",
    "to-darknet": "write text labels beside the images, lists and a .data file",
    "split": "divide the images of one split, each class in the same shares",
    "merge": "merge several data sets, matching classes by name",
    "subset": "keep some classes or images",
    "remap": "rename, merge and leave out classes",
}


_SHARES = "train=0.8,val=0.2"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
    parser.add_argument("words", nargs="*", metavar="ACTION DATA", help=f"{actions}. DATA is {DATA_HELP}")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="folder of the result, new or empty")
    parser.add_argument("--link", action="store_true", help="to-yolo, to-darknet: link images instead of copying them")
    parser.add_argument(
        "--difficult",
        choices=("ignore", "keep", "drop"),
        default="ignore",
        help="to-coco from VOC: treatment of difficult objects (default ignore: in training and in evaluation)",
    )
    parser.add_argument("--shares", default=_SHARES, metavar="S", help=f"split: the splits to make (default {_SHARES})")
    parser.add_argument(
        "--from-split", default="train", metavar="NAME", help="split: the split to divide (default train)"
    )
    parser.add_argument(
        "--group",
        metavar="HOW",
        help="split: keep images of a group in one split; the group is the folder (folder) or the text that a regular "
        "expression matches in the file name (its first group, if it has one)",
    )
    parser.add_argument("--classes", metavar="A,B", help="subset: the classes to keep")
    parser.add_argument("--num", type=int, metavar="N", help="subset: draw this many images from each split")
    parser.add_argument("--keep-empty", action="store_true", help="subset: keep images that have none of the classes")
    parser.add_argument("--map", type=Path, metavar="FILE", help="remap: a YAML file of old: new; or words old=new")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
