"""KITTI object detection: `label_2/000000.txt` for each `image_2/000000.png`.

The format: the development kit of the KITTI object benchmark. A line is type, truncated, occluded, alpha, left, top,
right, bottom (edges in pixels, 0 is the left edge of the image), and seven numbers in 3D that are not read, and a score
in results. `DontCare` regions hold objects that are not labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.data.annotation_builder import NamedObject
from detector.data.foreign_listing import EVERY_CLASS, Splits, assembled
from detector.data.label_lines import list_lines, numbers_of
from detector.data.problems import shown
from detector.errors import DatasetError

_NUM_WORDS = (15, 16)


def read_kitti(root: Path, images: Path | None = None, files: Sequence[Path] | None = None) -> tuple[Splits, list[str]]:
    """Read label files; the folders `training` and `testing`, or `ImageSets/train.txt` and so on, are splits.

    Raises:
        DatasetError: lines are wrong (all are named), or the data is refused.
    """
    return assembled(list_lines(root, ("label_2", "labels", "label"), read_line, files), images)


def read_line(line: str, place: str) -> NamedObject:
    """Return the object of a line.

    Raises:
        DatasetError: the line is wrong.
    """
    words = line.split()
    if len(words) not in _NUM_WORDS:
        raise DatasetError(f"{place}: expected a type and 14 numbers of KITTI, got {shown(line)[:60]!r}")
    numbers = numbers_of(words[1:], place)
    is_region = words[0] == "DontCare"
    flags = zip(("truncated", "occluded"), numbers, strict=False)
    extras = (
        {} if is_region else {key: int(value) if value == int(value) else value for key, value in flags if value > 0}
    )
    x1, y1, x2, y2 = numbers[3:7]
    return NamedObject(EVERY_CLASS if is_region else words[0], (x1, y1, x2, y2), place, is_region, extras)
