"""Annotations of a COCO file as columns of numbers, and the readers of single values.

Only numbers are kept of an annotation, because a large file has a million of them.
"""

from __future__ import annotations

import math
import re
import reprlib
from array import array

import numpy as np
import numpy.typing as npt

from detector.data.problems import Findings

_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,40}\s*")
_LARGEST_EXACT = 2.0**53  # from here on a float represents several whole numbers
_MIN_POLYGON_NUMBERS = 6  # three corners
_NO_ID = -(2**63)  # marks a missing id; a written id of this value is stored with the larger ones
_NUMBERS = frozenset((int, float))
_NAN_BOX, _INFINITE_BOX = (math.nan,) * 4, (math.inf,) * 4

# Flags of a row, as bits.
CROWD, IGNORE, FROM_POLYGONS, FROM_RUNS, WITHOUT_BOX = 1, 2, 4, 8, 16


def identifier_of(entry: dict[str, object], key: str, section: str, position: int, findings: Findings) -> int | None:
    """Return a whole number, also from "10" and 10.0; None after refusing anything else."""
    value = entry.get(key)
    if type(value) is int:  # not isinstance: true is not an identifier
        return value
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT
    is_text = isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) is not None
    if isinstance(value, (str, float)) and (is_whole or is_text):
        findings.accept("identifier written as text or with a decimal point", f"{key} of {section}[{position}]")
        return int(value)
    fault = "is missing" if key not in entry else f"must be a whole number, got {reprlib.repr(value)}"
    findings.refuse(f"{key} of {section}[{position}] {fault}")
    return None


def number_of(value: object) -> float | None:
    """Return a number, infinite where it is too large for a float; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


class Rows:
    """Annotations of a file, one row each, without those that are refused.

    Attributes:
        image_ids: rank by id of all images that annotations name, in the order of first occurrence.
        category_ids: rank by id of all categories that annotations name.
        image_ranks: int64, rank of the image of each row.
        category_ranks: int64, rank of the category of each row.
        boxes: float64, x, y, width and height of each row; NaN where there is no box.
        areas: float64; NaN where the file gives none.
        flags: int8, bits of the constants of this module.
    """

    def __init__(self) -> None:
        self.image_ids: dict[int, int] = {}
        self.category_ids: dict[int, int] = {}
        self.image_ranks, self.category_ranks = array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.flags = array("b")
        self._ids, self._positions = array("q"), array("q")
        self._large_ids: dict[int, int] = {}  # id by row, where it needs more than 64 bits

    def __len__(self) -> int:
        return len(self.flags)

    def add(self, position: int, entry: object, findings: Findings) -> None:
        """Add the annotation at a position of the list in the file."""
        if type(entry) is not dict:
            findings.refuse(f"annotations[{position}] must be an object, got {reprlib.repr(entry)}")
            return
        image_id, category_id, own_id = entry.get("image_id"), entry.get("category_id"), entry.get("id")
        if type(image_id) is not int:
            image_id = identifier_of(entry, "image_id", "annotations", position, findings)
        if type(category_id) is not int:
            category_id = identifier_of(entry, "category_id", "annotations", position, findings)
        if type(own_id) is not int and own_id is not None:
            own_id = identifier_of(entry, "id", "annotations", position, findings)
        crowd = entry.get("iscrowd")
        flags = CROWD if crowd == 1 else 0
        if crowd not in (0, 1, None):  # true and false are 1 and 0
            findings.refuse(f"iscrowd of annotations[{position}] must be 0 or 1, got {reprlib.repr(crowd)}")
        if image_id is None or category_id is None:
            return
        box = entry.get("bbox")
        if type(box) is list and len(box) == 4 and set(map(type, box)) <= _NUMBERS:
            try:
                self.boxes.fromlist(box)
            except OverflowError:
                self.boxes.extend(_INFINITE_BOX)
        else:
            around, how = _box_of_mask(entry.get("segmentation") if box is None or box == [] else None)
            self.boxes.extend(around)
            flags |= how
        if entry.get("ignore"):
            flags |= IGNORE
        area = number_of(entry.get("area"))
        self.areas.append(area if area is not None and 0 <= area < math.inf else math.nan)
        if own_id is None:
            own_id = _NO_ID
        elif not _NO_ID < own_id < -_NO_ID:
            self._large_ids[len(self)] = own_id
            own_id = _NO_ID
        self._ids.append(own_id)
        self._positions.append(position)
        self.image_ranks.append(self.image_ids.setdefault(image_id, len(self.image_ids)))
        self.category_ranks.append(self.category_ids.setdefault(category_id, len(self.category_ids)))
        self.flags.append(flags)

    def name(self, row: int) -> str:
        """Return an annotation as a message names it: by its id, or by its position where it has none."""
        if self._ids[row] == _NO_ID and row not in self._large_ids:
            return f"annotations[{self._positions[row]}]"
        return f"annotation {reprlib.repr(self._large_ids.get(row, self._ids[row]))}"

    def repeated(self) -> npt.NDArray[np.int64]:
        """Return the rows that have the id of an earlier row."""
        ids = np.array(self._ids, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        is_repeated = (ids[order[1:]] == ids[order[:-1]]) & (ids[order[1:]] != _NO_ID)
        first_row: dict[int, int] = {}
        large = [row for row, identifier in self._large_ids.items() if first_row.setdefault(identifier, row) != row]
        return np.sort(np.concatenate([order[1:][is_repeated], np.array(large, dtype=np.int64)]))


def _box_of_mask(mask: object) -> tuple[tuple[float, ...], int]:
    """Return the box around a mask, and the flag of its source."""
    if isinstance(mask, dict):
        box, how = _box_around_runs(mask), FROM_RUNS
    else:
        box, how = _box_around(mask), FROM_POLYGONS
    return (_NAN_BOX, WITHOUT_BOX) if box is None else (box, how)


def _box_around(polygons: object) -> tuple[float, ...] | None:
    """Return x, y, width, height around polygons, lists of x1, y1, x2, y2, ...; None for anything else."""
    if not isinstance(polygons, list) or not polygons:
        return None
    corners: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < _MIN_POLYGON_NUMBERS or len(polygon) % 2:
            return None
        corners += [math.nan if number is None else number for number in map(number_of, polygon)]
    if not all(map(math.isfinite, corners)):
        return None
    left, top = min(corners[0::2]), min(corners[1::2])
    return left, top, max(corners[0::2]) - left, max(corners[1::2]) - top


def _box_around_runs(mask: dict[str, object]) -> tuple[float, ...] | None:
    """Return x, y, width, height around a mask of run lengths, or None for anything else.

    Runs go column by column and begin with the background.

    The format: `counts`, a list or the text that pycocotools writes (common/maskApi.c, rleToString), and `size`, which
    is height and width.
    """
    counts, size = mask.get("counts"), mask.get("size")
    counts = _runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return None
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return None
    height, width = size
    if sum(counts) != height * width or sum(counts) >= -_NO_ID:
        return None
    bounds = np.cumsum([0, *counts], dtype=np.int64)
    starts, ends = bounds[1:-1:2], bounds[2::2]
    starts, ends = starts[ends > starts], ends[ends > starts] - 1
    if not len(starts):
        return None
    is_tall = starts // height < ends // height  # a run over two columns touches the bottom and the top edge
    left, right = int(starts.min() // height), int(ends.max() // height)
    top = 0 if is_tall.any() else int((starts % height).min())
    bottom = height - 1 if is_tall.any() else int((ends % height).max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def _runs_of_text(text: str) -> list[int] | None:
    """Return run lengths from the text of pycocotools.

    A character holds five bits; from the third run on, a number is the difference from the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs
