"""Options for several views of each image; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import number, whole_number


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; each sets a key of the section `views`."""
    group = parser.add_argument_group("several views of each image")
    group.add_argument(
        "--tile",
        type=whole_number,
        metavar="PX",
        help="cut images into overlapping squares of this side (default: whole images)",
    )
    group.add_argument(
        "--overlap", type=number, metavar="0..0.9", help="share of a tile that the next tile also covers (default 0.2)"
    )
    group.add_argument("--no-whole", action="store_true", help="do not add a view of the whole image to the tiles")
    group.add_argument("--flip", action="store_true", help="add a flipped version of each view")
    group.add_argument(
        "--scales", metavar="S,S", help="add views on canvases of these relative sizes, such as 0.83,1,1.17 (default 1)"
    )
    group.add_argument(
        "--merge",
        choices=("nms", "fusion"),
        help="merge boxes of several views by keeping the best (nms) or by their mean (fusion) (default nms)",
    )
