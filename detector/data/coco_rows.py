"""Annotations of a COCO file as columns of numbers, the readers of single values, and the checks of boxes.

Only numbers are kept of an annotation, because a large file has a million of them.
"""

from __future__ import annotations

import math
import re
import reprlib
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.problems import Findings
from detector.structures.boxes import xywh_to_xyxy

_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,40}\s*")
_LARGEST_EXACT = 2.0**53  # from here on a float represents several whole numbers
_MIN_POLYGON_NUMBERS = 6  # three corners
_NO_ID = -(2**63)  # marks a missing id; a written id of this value is stored with the larger ones
_NUMBERS = frozenset((int, float))
_NAN_BOX, _INFINITE_BOX = (math.nan,) * 4, (math.inf,) * 4

# COCO files hold coordinates of two decimals, so a corner, which is the sum of two, may be off by this many pixels.
ROUNDING_PX = 0.01
# From these shares of the boxes on, the file is assumed to hold another box format.
_XYXY_SHARE, _NORMALISED_SHARE = 0.2, 0.5

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


def without_rows(
    keep: npt.NDArray[np.bool_],
    is_wrong: npt.NDArray[np.bool_],
    kind: str,
    place_of: Callable[[int], str],
    findings: Findings,
) -> npt.NDArray[np.bool_]:
    """Return `keep`, bool (A,), without the wrong rows, and count these as skipped."""
    findings.count(kind, "skipped", np.flatnonzero(keep & is_wrong), place_of)
    return keep & ~is_wrong


def other_format(
    boxes_xywh: npt.NDArray[np.float64],
    image_hw: npt.NDArray[np.int64],
    place_of: Callable[[int], str],
    findings: Findings,
) -> str:
    """Return a hint at the format that the boxes seem to have, or an empty text; count them as accepted.

    Args:
        boxes_xywh: float64 (A, 4), as written.
        image_hw: int64 (A, 2), the size of the image of each box; 0, 0 where it is unknown.
        place_of: returns the place of a row for a message.
        findings: counts such boxes.
    """
    limit = np.where(image_hw > 0, image_hw, np.inf)[:, ::-1] + ROUNDING_PX
    start, size = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        overflows = (start + size > limit).any(axis=1)
        are_corners = overflows & (size > start).all(axis=1) & (size <= limit).all(axis=1)
        are_shares = ((boxes_xywh >= 0) & (boxes_xywh <= 1)).all(axis=1) & (size > 0).all(axis=1)
    if overflows.sum() > _XYXY_SHARE * len(boxes_xywh) and 2 * are_corners.sum() > overflows.sum():
        kind, rows = "box that looks like xyxy, expected xywh", np.flatnonzero(are_corners)
    elif are_shares.sum() > _NORMALISED_SHARE * len(boxes_xywh):
        kind, rows = "box that looks normalised to 0..1, expected pixels", np.flatnonzero(are_shares)
    else:
        return ""
    findings.count(kind, "accepted", rows, place_of)
    return f"{len(rows)} x {kind}"


def usable_boxes(
    boxes_xywh: npt.NDArray[np.float64],
    image_hw: npt.NDArray[np.int64],
    place_of: Callable[[int], str],
    findings: Findings,
) -> npt.NDArray[np.bool_]:
    """Return a mask of the boxes that can be used: bool (A,).

    Args:
        boxes_xywh: float64 (A, 4), as written.
        image_hw: int64 (A, 2), the size of the image of each box; 0, 0 where it is unknown.
        place_of: returns the place of a row for a message.
        findings: counts the boxes that cannot be used.
    """
    limit = np.where(image_hw > 0, image_hw, np.inf)[:, [1, 0, 1, 0]]
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are detected below
        corners = xywh_to_xyxy(boxes_xywh)
        is_finite = np.isfinite(corners.astype(np.float32))
        visible = np.clip(corners, 0, limit).astype(np.float32)  # the box that training uses
    keep: npt.NDArray[np.bool_] = np.ones(len(boxes_xywh), dtype=np.bool_)
    wrong: tuple[tuple[str, Any], ...] = (
        ("box with a number that is not finite", ~is_finite.all(axis=1)),
        ("box of negative width or height", (width < 0) | (height < 0)),
        ("box of zero width or height", (width == 0) | (height == 0)),
        ("box wholly outside the image", (corners[:, 2:] <= 0).any(axis=1) | (corners >= limit)[:, :2].any(axis=1)),
        ("box too thin to have an area in single precision", (visible[:, 2:] <= visible[:, :2]).any(axis=1)),
    )
    for kind, is_wrong in wrong:
        keep = without_rows(keep, is_wrong, kind, place_of, findings)
    is_partly_outside = (corners < -ROUNDING_PX).any(axis=1) | (corners > limit + ROUNDING_PX).any(axis=1)
    findings.count("box partly outside the image", "accepted", np.flatnonzero(keep & is_partly_outside), place_of)
    return keep
