"""Label files of pose estimation in the format of the YOLO family: a box and then key points on each line.

A line holds a class, a box and K key points of two numbers, x and y, or of three, with the visibility 0, 1 or 2. A line
of a class and the corners of a polygon can have as many numbers. The key `kpt_shape` of a data.yaml, K and 2 or 3,
decides; without it, the lines of the data set do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.data.problems import Findings

NUM_OF_BOX = 5  # a class and a box
_NUM_SEARCHED_FILES, _NUM_LINES = 2000, 1000
_TOLERANCE = 0.02  # of the image; key points are drawn and rounded apart from their box
# Lines of key points without visibility that look like one by chance; a small object in a polygon of four corners does
# so in half of the cases.
_MIN_LINES = {2: 20, 3: 3}


def num_key_point_numbers(files: Iterable[Path], findings: Findings) -> int | None:
    """Return how many numbers follow the box on lines with key points, or None if the lines hold polygons.

    The answer is added to the findings if any line leaves a choice.

    Args:
        files: the label files, which may be missing.
        findings: counts the lines that were looked at.
    """
    lines = list(_long_lines(files))
    counts = {len(numbers) for numbers, _ in lines}
    if len(counts) != 1:
        return None
    table, count = np.array([numbers for numbers, _ in lines]), counts.pop() - NUM_OF_BOX
    fitting = [size for size in (3, 2) if count % size == 0 and _are_key_points(table, size)]
    if not fitting:
        return None
    is_polygon = count % 2 == 0 and len(lines) < _MIN_LINES[fitting[0]]
    reading = "polygons" if is_polygon else f"boxes with {count // fitting[0]} key points, whose boxes are taken"
    kind = f"line of {count + NUM_OF_BOX} numbers, read as {reading}; kpt_shape in the description decides"
    places = [place for _, place in lines]
    findings.count(kind, "accepted", np.arange(len(lines)), lambda row: places[row])
    return None if is_polygon else count


def _long_lines(files: Iterable[Path]) -> Iterator[tuple[list[float], str]]:
    """Yield the numbers of the first lines that hold more than a box, each with its place."""
    num_lines = 0
    for file, _ in zip(files, range(_NUM_SEARCHED_FILES), strict=False):
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):  # reported when the labels are read
            continue
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if len(words) <= NUM_OF_BOX:
                continue
            try:
                yield [float(word) for word in words], f"{file}:{number}"
            except ValueError:  # counted when the labels are read
                continue
            num_lines += 1
            if num_lines == _NUM_LINES:
                return


def _are_key_points(table: npt.NDArray[np.float64], size: int) -> bool:
    """Return whether every line (N, 5 + K * size) is a box with key points inside it, at least one of them visible."""
    boxes, points = table[:, 1:NUM_OF_BOX], table[:, NUM_OF_BOX:].reshape(len(table), -1, size)
    centres, sides = boxes[:, None, :2], boxes[:, None, 2:]
    starts, ends = centres - sides / 2 - _TOLERANCE, centres + sides / 2 + _TOLERANCE
    is_box = (sides > 0).all() and (starts >= -2 * _TOLERANCE).all() and (ends <= 1 + 2 * _TOLERANCE).all()
    is_set = points[..., 2] > 0 if size == 3 else (points != 0).any(axis=2)
    is_inside = ((points[..., :2] >= starts) & (points[..., :2] <= ends)).all(axis=2)
    is_flagged = size == 2 or bool(np.isin(points[..., 2], (0, 1, 2)).all())
    return bool(is_box and is_flagged and (is_inside | ~is_set).all() and is_set.any(axis=1).all())
