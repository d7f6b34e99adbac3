"""Number of the first pixel in the XML files of Pascal VOC: 1 as in the challenge, or 0, where corners are edges.

Some programs write the edges of a box, others count pixels from 1. One pixel matters for small objects, so that the
files themselves decide: coordinates that only one of both can have, text labels of the same boxes, and the program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from detector.data.annotation_builder import ListedObjects
from detector.data.problems import shown

# The text of <database> in files of LabelImg and CVAT, and of Roboflow.
_PROGRAMS_WITH_EDGES = re.compile(r"unknown|unspecified|roboflow", re.IGNORECASE)
_MOST_TWINS = 50
_LARGEST_ERROR_PX = 0.3  # of shares with few digits


def first_pixel_of(images: Sequence[ListedObjects], programs: Sequence[str], root: Path) -> tuple[int, str]:
    """Return the number of the first pixel, 0 or 1, and the reason.

    Args:
        images: all images with their objects as written.
        programs: the text of <database> of each file, empty where there is none.
        root: the folder of the data set, where text labels of the same images may be.
    """
    corners = [item.source_xyxy for image in images for item in image.objects]
    if any(min(numbers[:2]) < 1 for numbers in corners):
        return 0, "some coordinates are 0"
    if any(not value.is_integer() for numbers in corners for value in numbers if math.isfinite(value)):
        return 0, "some coordinates have decimals"
    shifts = _shifts(images, root)
    for number in (0, 1):
        if shifts and all(abs(shift - number) < _LARGEST_ERROR_PX for shift in shifts):
            return number, f"text labels of the same boxes begin {number} px before xmin"
    if programs and all(_PROGRAMS_WITH_EDGES.search(program) for program in programs):
        return (
            0,
            f"<database> is {shown(programs[0])!r}, as LabelImg, CVAT and Roboflow write it (--first-pixel 1 if not)",
        )
    return 1, "nothing tells that pixels count from 0 (--first-pixel 0 if they do)"


def _shifts(images: Sequence[ListedObjects], root: Path) -> list[float]:
    """Return by how many pixels the boxes of text labels of the YOLO family begin before those of the XML files."""
    shifts: list[float] = []
    with_twin = (
        (image, lines)
        for image in images
        if image.objects and all(image.listed_hw) and (lines := _twin(image, root)) is not None
    )
    for image, lines in islice(with_twin, _MOST_TWINS):
        height, width = image.listed_hw
        lefts = sorted((float(x) - float(w) / 2) * width for _, x, _, w, _ in lines)
        tops = sorted((float(y) - float(h) / 2) * height for _, _, y, _, h in lines)
        for axis, starts in enumerate((lefts, tops)):
            written = sorted(item.source_xyxy[axis] for item in image.objects)
            shifts += [own - other for own, other in zip(written, starts, strict=False)]
    return shifts


def _twin(image: ListedObjects, root: Path) -> list[list[str]] | None:
    """Return the words of the lines of a text label file with as many boxes as the image; None without such a file."""
    stem = Path(image.file_name).stem
    for path in (
        *(folder / f"{stem}.txt" for folder in (root, root / "labels")),
        Path(image.place).with_suffix(".txt"),
    ):
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(lines) == len(image.objects) and all(len(line) == 5 and list(map(float, line)) for line in lines):
                return lines
        except (OSError, ValueError):
            continue
    return None
