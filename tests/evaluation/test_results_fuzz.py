"""Mutated COCO results are scored or refused in one error, quickly and in bounded memory."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.errors import DatasetError
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth

VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 0.5, 1.5, 1e300, -1e300, 1e-320, 2**31, 2**63, -(2**64), 10**400, float("nan")),
    *(float("-inf"), "", "7", " 3 ", "x", "\ud800", [], {}, [1], [1, 2, 3, 4], [1e308] * 4, [[1, 2, 3, 4]], {"id": 1}),
]
TOKENS = (*'{}[],:"\\0-. \n', "e9", "null", "NaN", "1e999", "\0", "[" * 5000, "9" * 5000, "\ufeff", '"score": 1, ')


def mutated(generator: random.Random) -> bytes:
    """Return a results file with values, keys, records or bytes changed."""
    records: list[Any] = [
        {"image_id": 1 + i % 4, "category_id": 1 + i % 2, "bbox": [5, 6, 10 + i, 20], "score": 0.9 - i / 50}
        for i in range(20)
    ]
    for _ in range(generator.randint(0, 3)):
        at, value = generator.randrange(len(records)), copy.deepcopy(generator.choice(VALUES))
        record = records[at]
        if not isinstance(record, dict) or generator.random() < 0.1:
            records[at] = value
        elif generator.random() < 0.3 and isinstance(record.get("bbox"), list) and record["bbox"]:
            record["bbox"][generator.randrange(len(record["bbox"]))] = value
        else:
            record[generator.choice(("image_id", "category_id", "bbox", "score", "x"))] = value
    text = json.dumps(records if generator.random() < 0.95 else generator.choice((records[0], *VALUES)))
    if generator.random() < 0.4:
        at = generator.randrange(len(text) + 1)
        text = text[:at] + generator.choice(TOKENS) + text[at + generator.randint(0, 30) :]
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("num", [300, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_mutated_results_are_scored_or_refused(
    num: int, tmp_path: Path, bounded: Callable[[], AbstractContextManager[None]]
) -> None:
    truth = GroundTruth(
        image_ids=(1, 2, 3, 4),
        category_ids=(1, 2),
        class_names=("a", "b"),
        image_hw=np.full((4, 2), 100),
        image_ranks=np.arange(4),
        category_ranks=np.arange(4) % 2,
        boxes_xywh=np.full((4, 4), 20.0),
        is_crowd=np.zeros(4, np.bool_),
        areas=np.full(4, 400.0),
    )
    generator, path = random.Random(num), tmp_path / "results.json"
    num_scored = 0
    for number in range(num):
        content = mutated(generator)
        path.write_bytes(content)
        try:
            with bounded():
                results, _ = read_results(path, truth, ignore_unknown=number % 2 == 0)
                if number % 10 == 0:
                    score_results(truth, results)
            num_scored += 1
        except DatasetError:
            pass
    assert 0.1 * num < num_scored < num
