"""Reading COCO result records: what leaves here can be scored as written, all the rest is refused or counted.

pycocotools scores a NaN box as a perfect match and passes over a result of an unknown category in silence, so nothing
reaches a scorer that was not looked at here. The format: https://cocodataset.org/#format-results.
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
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco import other_format
from detector.data.coco_rows import identifier_of
from detector.data.problems import Findings, Problem
from detector.errors import DatasetError
from detector.evaluation.scoring_arrays import GroundTruth, Results

_SECTION = "results"
_PLAIN = frozenset((int, float))
_NUM_LISTED = 10


def read_results(
    path: Path, truth: GroundTruth, *, ignore_unknown: bool = False
) -> tuple[Results, tuple[Problem, ...]]:
    """The results of a COCO results file, as written, in float64.

    Args:
        path: a JSON list of objects with image_id, category_id, bbox (xywh) and score.
        truth: what they will be scored against.
        ignore_unknown: count and skip results of images or categories that it does not list, instead of refusing.

    Raises:
        DatasetError: the file cannot be read, or holds a result that cannot be scored; every one is named.
    """
    findings = Findings(str(path))

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            findings.accept("key given twice in one object, the last is taken", reprlib.repr(entry))
        return entry

    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=as_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(f"{path} cannot be read, {where}: {error.msg}; write it again as a JSON list") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} cannot be read, at byte {error.start}: not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except RecursionError as error:
        raise DatasetError(f"{path} cannot be read: it is nested too deep for a list of results") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(records, list):
        hint = (
            "; give the predictions, not the annotation file"
            if isinstance(records, dict) and "annotations" in records
            else ""
        )
        raise DatasetError(f"{path}: a list of results is wanted, found {type(records).__name__}{hint}")
    return checked_results(records, truth, findings, ignore_unknown), findings.problems


def checked_results(
    records: Sequence[Any], truth: GroundTruth, findings: Findings, ignore_unknown: bool = False
) -> Results:
    """Result records as columns.

    Identifiers written as "10" or 10.0 are taken for 10; odd boxes that pycocotools scores (empty, of negative size,
    given twice) are scored too; both are counted in `findings`.

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
            findings.refuse(f"{_SECTION}[{position}] must be an object, found {reprlib.repr(record)}")
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
    for key, found in zip(("image_id", "category_id"), unknown, strict=True):
        found.report(key, findings, ignore_unknown)
    results = Results(
        np.array(image_ranks, np.int64),
        np.array(category_ranks, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )
    rows = np.array(positions, np.int64)
    _look_at_boxes(results, rows, findings)
    other_format(results.boxes_xywh, truth.image_hw[results.image_ranks], lambda row: _place(int(rows[row])), findings)
    findings.raise_refusals()
    return results


@dataclass
class _Unknown:
    """The identifiers that the ground truth does not list, each with the positions of its results."""

    positions: dict[int, list[int]] = field(default_factory=dict)

    def add(self, identifier: int, position: int) -> None:
        self.positions.setdefault(identifier, []).append(position)

    def report(self, key: str, findings: Findings, ignore_unknown: bool) -> None:
        if not self.positions:
            return
        if ignore_unknown:
            rows = np.array(sorted(p for found in self.positions.values() for p in found), np.int64)
            findings.count(f"result of an unlisted {key}", "skipped", rows, _place)
            return
        listed = ", ".join(
            f"{reprlib.repr(identifier)} ({len(found)} x, first {_place(found[0])})"
            for identifier, found in list(self.positions.items())[:_NUM_LISTED]
        )
        more = f" and {len(self.positions) - _NUM_LISTED} more" if len(self.positions) > _NUM_LISTED else ""
        findings.refuse(f"{key} not in the annotation file: {listed}{more} (--ignore-unknown skips them)")


def _place(position: int) -> str:
    return f"{_SECTION}[{position}]"


def _identifier(record: dict[str, Any], key: str, position: int, findings: Findings) -> int | None:
    value = record.get(key)
    if type(value) is not bool and isinstance(value, numbers.Integral):  # NumPy's
        return int(value)
    return identifier_of(record, key, _SECTION, position, findings)


def _numbers(record: dict[str, Any], key: str, count: int, position: int, findings: Findings) -> Iterable[float] | None:
    """The finite numbers of a key; None after refusing anything else."""
    value: Any = record.get(key)
    found: Any = value if count > 1 else (value,)
    try:
        if len(found) == count and set(map(type, found)) <= _PLAIN and all(map(math.isfinite, found)):
            return found  # type: ignore[no-any-return]  # a list of Python's own numbers
        real = [v for v in found if type(v) is not bool and isinstance(v, numbers.Real) and math.isfinite(v)]
        if not isinstance(found, str) and len(real) == len(found) == count:
            return [float(v) for v in real]  # NumPy's
    except (TypeError, OverflowError):  # no sequence, or an integer beyond float64
        pass
    wanted = "4 finite numbers" if count > 1 else "a finite number"
    what = f"must be {wanted}, found {reprlib.repr(value)}" if key in record else "is missing"
    findings.refuse(f"{key} of {_place(position)} {what}")
    return None


def _look_at_boxes(results: Results, positions: npt.NDArray[np.int64], findings: Findings) -> None:
    """Refuses boxes without a finite area and counts odd ones."""
    width, height = results.boxes_xywh[:, 2], results.boxes_xywh[:, 3]
    with np.errstate(over="ignore", under="ignore"):
        areas = results.areas
    is_extreme = ~np.isfinite(areas) | ((areas == 0) & (width != 0) & (height != 0))
    for row in np.flatnonzero(is_extreme).tolist():
        box = results.boxes_xywh[row].tolist()
        findings.refuse(f"bbox of {_place(int(positions[row]))} has no area within float64, found {box}")
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
        ("result that stands in the file before, a false positive", is_repeated),
        ("score outside 0..1", is_share),
    ):
        findings.count(kind, "accepted", positions[is_odd], _place)
