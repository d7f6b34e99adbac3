"""Read COCO result records: every record is checked, and those that cannot be scored are rejected or counted.

pycocotools scores a NaN box as a perfect match and ignores a result of an unknown category silently, so only checked
records reach a scorer. The format: https://cocodataset.org/#format-results.
"""

from __future__ import annotations

import json
import math
import numbers
import reprlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from detector.data.coco_rows import identifier_of, other_format
from detector.data.problems import Findings, Problem
from detector.errors import DatasetError
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.io.text_file import read_text

_SECTION = "results"
_PLAIN = frozenset((int, float))
_NUM_LISTED = 10
_MAX_BYTES = 2**32


def read_results(
    path: Path, truth: GroundTruth, *, ignore_unknown: bool = False
) -> tuple[Results, tuple[Problem, ...]]:
    """Return the results of a COCO results file, as written, in float64.

    Args:
        path: a JSON list of objects with image_id, category_id, bbox (xywh) and score.
        truth: the ground truth that they will be scored against.
        ignore_unknown: count and skip results of images or categories that the ground truth does not list, instead of
            rejecting them.

    Raises:
        DatasetError: the file cannot be read, or holds results that cannot be scored; the message names them.
    """
    findings = Findings(str(path))

    def as_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            findings.accept("duplicate key in one object, the last is used", reprlib.repr(entry))
        return entry

    try:
        records = json.loads(read_text(path, "a list of results", _MAX_BYTES), object_pairs_hook=as_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(f"{path} cannot be read, {where}: {error.msg}; write it again as a JSON list") from error
    except RecursionError as error:
        raise DatasetError(f"{path} cannot be read: it is nested too deeply for a list of results") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(records, list):
        hint = (
            "; give the predictions, not the annotation file"
            if isinstance(records, dict) and "annotations" in records
            else ""
        )
        raise DatasetError(f"{path}: expected a list of results, got {type(records).__name__}{hint}")
    return checked_results(records, truth, findings, ignore_unknown), findings.problems


def checked_results(
    records: Sequence[object], truth: GroundTruth, findings: Findings, ignore_unknown: bool = False
) -> Results:
    """Return result records as columns.

    Identifiers written as "10" or 10.0 are read as 10; odd boxes that pycocotools scores (empty, of negative size,
    duplicate) are scored too; both are counted in `findings`.

    Raises:
        DatasetError: a record is incomplete or not finite, or names an image or a category that is not listed.
    """
    image_rank = {identifier: rank for rank, identifier in enumerate(truth.image_ids)}
    category_rank = {identifier: rank for rank, identifier in enumerate(truth.category_ids)}
    unknown = _Unknown(), _Unknown()
    image_ranks, category_ranks, positions = array("q"), array("q"), array("q")
    boxes, scores = array("d"), array("d")
    for position, record in enumerate(records):
        if type(record) is not dict:
            findings.refuse(f"{_place(position)}: expected an object, got {reprlib.repr(record)}")
            continue
        image_id, category_id = record.get("image_id"), record.get("category_id")
        if type(image_id) is not int:
            image_id = _identifier(record, "image_id", position, findings)
        if type(category_id) is not int:
            category_id = _identifier(record, "category_id", position, findings)
        box = _numbers(record, "bbox", 4, position, findings)
        score = _numbers(record, "score", 1, position, findings)
        if image_id is None or category_id is None or box is None or score is None:
            continue
        image, category = image_rank.get(image_id), category_rank.get(category_id)
        if image is None:
            unknown[0].add(image_id, position)
        elif category is None:
            unknown[1].add(category_id, position)
        else:
            image_ranks.append(image)
            category_ranks.append(category)
            positions.append(position)
            boxes.extend(box)
            scores.extend(score)
    for key, unlisted in zip(("image_id", "category_id"), unknown, strict=True):
        unlisted.report(key, findings, ignore_unknown)
    results = Results(
        np.array(image_ranks, np.int64),
        np.array(category_ranks, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )
    rows = np.array(positions, np.int64)
    _check_boxes(results, rows, findings)
    other_format(results.boxes_xywh, truth.image_hw[results.image_ranks], lambda row: _place(int(rows[row])), findings)
    findings.raise_refusals()
    return results


@dataclass
class _Unknown:
    """Identifiers that the ground truth does not list, each with the positions of its results."""

    positions: dict[int, list[int]] = field(default_factory=dict)

    def add(self, identifier: int, position: int) -> None:
        self.positions.setdefault(identifier, []).append(position)

    def report(self, key: str, findings: Findings, ignore_unknown: bool) -> None:
        if not self.positions:
            return
        if ignore_unknown:
            rows = np.array(sorted(p for places in self.positions.values() for p in places), np.int64)
            findings.count(f"result of an unlisted {key}", "skipped", rows, _place)
            return
        listed = ", ".join(
            f"{reprlib.repr(identifier)} ({len(places)} x, first {_place(places[0])})"
            for identifier, places in list(self.positions.items())[:_NUM_LISTED]
        )
        more = f" and {len(self.positions) - _NUM_LISTED} more" if len(self.positions) > _NUM_LISTED else ""
        findings.refuse(
            f"{key} not in the annotation file: {listed}{more} (detector evaluate --ignore-unknown skips them)"
        )


def _place(position: int) -> str:
    return f"{_SECTION}[{position}]"


def _identifier(record: dict[str, object], key: str, position: int, findings: Findings) -> int | None:
    value = record.get(key)
    if type(value) is not bool and isinstance(value, numbers.Integral):  # NumPy's
        return int(value)
    return identifier_of(record, key, _SECTION, position, findings)


def _numbers(
    record: dict[str, object], key: str, count: int, position: int, findings: Findings
) -> Iterable[float] | None:
    """Return the finite numbers of a key; None after rejecting anything else."""
    value: Any = record.get(key)
    entries: Any = value if count > 1 else (value,)
    try:
        if len(entries) == count and set(map(type, entries)) <= _PLAIN and all(map(math.isfinite, entries)):
            return cast("Iterable[float]", entries)  # a list of Python's own numbers
        real = [v for v in entries if type(v) is not bool and isinstance(v, numbers.Real) and math.isfinite(v)]
        if not isinstance(entries, str) and len(real) == len(entries) == count:
            return [float(v) for v in real]  # NumPy's
    except (TypeError, OverflowError):  # not a sequence, or an integer beyond float64
        pass
    expected = "4 finite numbers" if count > 1 else "a finite number"
    problem = f": expected {expected}, got {reprlib.repr(value)}" if key in record else " is missing"
    findings.refuse(f"{key} of {_place(position)}{problem}")
    return None


def _check_boxes(results: Results, positions: npt.NDArray[np.int64], findings: Findings) -> None:
    """Reject boxes without a finite area and count odd ones."""
    width, height = results.boxes_xywh[:, 2], results.boxes_xywh[:, 3]
    with np.errstate(over="ignore", under="ignore"):
        areas = results.areas
    is_extreme = ~np.isfinite(areas) | ((areas == 0) & (width != 0) & (height != 0))
    for row in np.flatnonzero(is_extreme).tolist():
        box = results.boxes_xywh[row].tolist()
        findings.refuse(f"bbox of {_place(int(positions[row]))}: expected an area within float64, got {box}")
    is_negative = (width < 0) | (height < 0)
    is_empty = ~is_negative & ((width == 0) | (height == 0))
    columns = np.column_stack([results.image_ranks, results.category_ranks, results.scores, results.boxes_xywh])
    order = np.lexsort(columns.T[::-1])
    is_repeated = np.zeros(len(results), np.bool_)
    is_repeated[order[1:]] = (columns[order[1:]] == columns[order[:-1]]).all(axis=1)
    is_share = (results.scores < 0) | (results.scores > 1)
    for kind, is_odd in (
        ("box of negative width or height, a false positive", is_negative),
        ("box of zero width or height, a false positive", is_empty),
        ("duplicate result, a false positive", is_repeated),
        ("score outside 0..1", is_share),
    ):
        findings.count(kind, "accepted", positions[is_odd], _place)
