"""VisDrone detection: `annotations/NAME.txt` for each `images/NAME.jpg`.

The format: https://github.com/VisDrone/VisDrone2018-DET-toolkit. A line is left, top, width, height in pixels, score (0
where the object is ignored), category, truncation, occlusion. Category 0 is an ignored region of all classes; category
11, `others`, takes no part in the evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.data.annotation_builder import NamedObject
from detector.data.foreign_listing import EVERY_CLASS, Splits, assembled
from detector.data.label_lines import list_lines, numbers_of
from detector.data.problems import shown
from detector.errors import DatasetError

CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip
_OTHERS = len(CLASSES) + 1
_NUM_WORDS = 8


def read_visdrone(
    root: Path, images: Path | None = None, files: Sequence[Path] | None = None
) -> tuple[Splits, list[str]]:
    """Read label files; a folder such as `VisDrone2019-DET-val` is a split.

    Raises:
        DatasetError: lines are wrong (all are named), or the data is refused.
    """
    num_others = list[str]()

    def read(line: str, place: str) -> NamedObject | None:
        item = read_line(line, place)
        if item is None:
            num_others.append(place)
        return item

    listing = list_lines(root, ("annotations",), read, files)
    listing.class_names = CLASSES
    if num_others:
        listing.notes.append(f"{len(num_others)} objects of category {_OTHERS} (others) are left out")
    return assembled(listing, images)


def read_line(line: str, place: str) -> NamedObject | None:
    """Return the object of a line; None for one of the category `others`.

    Raises:
        DatasetError: the line is wrong.
    """
    words = line.rstrip(",").split(",")
    if len(words) != _NUM_WORDS:
        raise DatasetError(f"{place}: expected the {_NUM_WORDS} numbers of VisDrone, got {shown(line)[:60]!r}")
    x, y, width, height, score, category, truncation, occlusion = numbers_of(words, place)
    if category not in range(_OTHERS + 1):
        raise DatasetError(f"{place}: expected a category of 0..{_OTHERS}, got {words[5]}")
    if category == _OTHERS:
        return None
    name = CLASSES[int(category) - 1] if category else EVERY_CLASS
    flags = {"truncated": truncation, "occluded": occlusion}
    extras = {key: int(value) for key, value in flags.items() if category and value in (1, 2)}
    return NamedObject(name, (x, y, x + width, y + height), place, score == 0 or not category, extras)
