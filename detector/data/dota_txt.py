"""DOTA: `labelTxt/NAME.txt` for each `images/NAME.png`, four corners of a turned box, of which the outline is used.

The format: https://captain-whu.github.io/DOTA/dataset.html. A line is x1 y1 x2 y2 x3 y3 x4 y4 in pixels, the class and
whether it is difficult; lines such as `imagesource:GoogleEarth` and `gsd:0.14` come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.data import outlines
from detector.data.annotation_builder import NamedObject
from detector.data.foreign_listing import Splits, assembled
from detector.data.label_lines import list_lines, numbers_of
from detector.data.problems import shown
from detector.errors import DatasetError

_HEADS = ("imagesource:", "gsd:", "acquisition dates:")


def read_dota(
    root: Path, images: Path | None = None, difficult: str = "ignore", files: Sequence[Path] | None = None
) -> tuple[Splits, list[str]]:
    """Read label files; the folders `train`, `val` and `test` are splits.

    Raises:
        DatasetError: lines are wrong (all are named), or the data is refused.
    """
    return assembled(list_lines(root, ("labeltxt", "labels", "annfiles"), read_line, files), images, difficult)


def read_line(line: str, place: str) -> NamedObject | None:
    """Return the object of a line; None for a line before the objects.

    Raises:
        DatasetError: the line is wrong.
    """
    if line.lower().startswith(_HEADS):
        return None
    words = line.split()
    if len(words) not in (9, 10):
        raise DatasetError(f"{place}: expected 8 numbers, a class and 0 or 1 of DOTA, got {shown(line)[:60]!r}")
    numbers = numbers_of(words[:8], place)
    is_difficult = len(words) == 10 and numbers_of(words[9:], place) != [0]
    corners = outlines.of_points(zip(numbers[::2], numbers[1::2], strict=True))
    return NamedObject(words[8], corners, place, extras={"difficult": 1} if is_difficult else {})
