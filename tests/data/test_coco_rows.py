from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as runs

from detector.data.coco_rows import CROWD, FROM_POLYGONS, FROM_RUNS, IGNORE, WITHOUT_BOX, Rows
from detector.data.problems import Findings


def rows_of(*entries: dict[str, Any]) -> Rows:
    rows, findings = Rows(), Findings("x")
    for position, entry in enumerate(entries):
        rows.add(position, {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]} | entry, findings)
    findings.raise_refusals()
    return rows


def box_of(segmentation: Any) -> tuple[list[float], int]:
    rows = rows_of({"bbox": None, "segmentation": segmentation})
    return rows.boxes.tolist(), rows.flags[0]


def test_an_annotation_becomes_a_row_of_numbers() -> None:
    rows = rows_of({"id": 7}, {"image_id": 5, "bbox": [0.5, 1, 2.5, 10**400], "area": 3, "iscrowd": 1}, {"ignore": 1})
    assert (rows.image_ids, rows.category_ids) == ({1: 0, 5: 1}, {2: 0})
    assert rows.image_ranks.tolist() == [0, 1, 0]
    assert rows.boxes.tolist()[:4] == [1, 2, 3, 4]
    assert not math.isfinite(rows.boxes[7])
    assert math.isnan(rows.areas[0])
    assert rows.areas[1] == 3
    assert rows.flags.tolist() == [0, CROWD, IGNORE]
    assert [rows.name(row) for row in range(3)] == ["annotation 7", "annotations[1]", "annotations[2]"]


def test_an_id_that_an_earlier_row_has_is_found() -> None:
    ids = [5, None, 2**63, -(2**63), 5, None, 2**63, 5, -(2**63), 2**80, -(2**63) + 1]
    rows = rows_of(*({"id": identifier} for identifier in ids))
    assert rows.repeated().tolist() == [4, 6, 7, 8]
    assert rows.name(9) == "annotation 1208925819614629174706176"
    assert rows.name(8) == "annotation -9223372036854775808"
    assert rows.name(5) == "annotations[5]"
    assert Rows().repeated().tolist() == []


@pytest.mark.parametrize("seed", range(40))
def test_the_box_around_run_lengths_is_that_of_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 40, 2).tolist()
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.integers(1, 4)):
        top, left = int(random.integers(height)), int(random.integers(width))
        mask[top : top + int(random.integers(1, height + 1)), left : left + int(random.integers(1, width + 1))] = 1
    if seed % 2:
        mask &= random.random(mask.shape) < 0.7
    if not mask.any():
        mask[0, 0] = 1
    encoded = runs.encode(np.asfortranarray(mask))
    reference = np.array(runs.toBbox(encoded), dtype=np.float64).tolist()
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff([0, *changes, len(flat)]).tolist()
    for how in (encoded["counts"].decode(), counts, [*counts, 0]):
        assert box_of({"size": [height, width], "counts": how}) == (reference, FROM_RUNS)


@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"size": [4, 4]},
        {"size": [4], "counts": [16]},
        {"size": [4, 4], "counts": [16]},
        {"size": [4, 4], "counts": [0, 15]},
        {"size": [4, 4], "counts": [0, 17]},
        {"size": [4, 4], "counts": [-1, 17]},
        {"size": [4, 4], "counts": [0, True, 15]},
        {"size": [4, 4.0], "counts": [0, 16]},
        {"size": [-4, -4], "counts": [0, 16]},
        {"size": [2**40, 2**40], "counts": [0, 2**80]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "~~~~"},
        {"size": [4, 4], "counts": "o" * 100},
        {"size": [4, 4], "counts": "\u0100"},
        {"size": [4, 4], "counts": None},
        {"size": None, "counts": [0, 16]},
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, math.nan]],
        [[1, 2, 3, 4, 5, math.inf]],
        [[1, 2, 3, 4, 5, 10**400]],
        [1, 2, 3, 4, 5, 6],
        "RLE",
        7,
        None,
    ],
)
def test_an_invalid_mask_gives_no_box(mask: Any) -> None:
    numbers, flags = box_of(mask)
    assert np.isnan(numbers).all()
    assert flags == WITHOUT_BOX


def test_the_box_around_polygons_holds_all_of_them() -> None:
    assert box_of([[10, 20, 30, 20, 30.5, 45], [5, 30, 6, 30, 6, 31]]) == ([5, 20, 25.5, 25], FROM_POLYGONS)


def test_a_mask_is_not_read_where_there_is_a_box() -> None:
    rows = rows_of({"segmentation": [[10, 20, 30, 20, 30, 45]]}, {"bbox": [1, 2, 3], "segmentation": [[1] * 6]})
    assert rows.flags.tolist() == [0, WITHOUT_BOX]
