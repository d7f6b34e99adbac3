from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from detector.data.problems import Findings
from detector.evaluation.matching import fast_curves, match
from detector.evaluation.precision_recall import LIMITS, pycocotools_curves
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results

SetOf: TypeAlias = Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]
Twin: TypeAlias = Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]
Reference: TypeAlias = Callable[[dict[str, Any], list[dict[str, Any]]], COCOeval]
NUM_SETS = 100  # of each of two kinds
ARRAYS = ("precision", "recall", "scores")


def columns_of(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[GroundTruth, Results]:
    ground_truth = GroundTruth.of_mapping(truth)
    return ground_truth, checked_results(results, ground_truth, Findings("a test"))


@pytest.mark.parametrize("first_seed", range(0, NUM_SETS, 10))
@pytest.mark.parametrize("kind", ["random_set", "tied_set"])
def test_every_number_equals_that_of_pycocotools_to_the_last_bit(
    kind: str, first_seed: int, request: pytest.FixtureRequest, by_pycocotools: Reference
) -> None:
    draw: SetOf = request.getfixturevalue(kind)
    for seed in range(first_seed, first_seed + 10):
        truth, results = draw(seed)
        if not results:  # which pycocotools cannot load
            continue
        expected, found = by_pycocotools(truth, results).eval, fast_curves(*columns_of(truth, results))
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), expected[name], err_msg=f"{kind} {seed} {name}")


@pytest.mark.parametrize("kind", ["random_set", "tied_set"])
@pytest.mark.parametrize("limits", [(1,), (2, 3, 5), (1, 10, 100, 300)])
def test_other_limits_equal_those_of_pycocotools(
    limits: tuple[int, ...], kind: str, request: pytest.FixtureRequest
) -> None:
    draw: SetOf = request.getfixturevalue(kind)
    for seed in range(4):
        columns = columns_of(*draw(seed))
        expected, found = pycocotools_curves(*columns, limits), fast_curves(*columns, limits)
        assert found.limits == expected.limits == limits
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_tied_sets_contain_many_ties(tied_set: SetOf) -> None:
    """Sets in which a detection has several objects of the same highest overlap, and objects on the ends of a range."""
    num_ties = num_ends = num_crowds = 0
    for seed in range(NUM_SETS):
        truth, _ = tied_set(seed)
        boxes = [(a["image_id"], a["category_id"], *a["bbox"]) for a in truth["annotations"]]
        num_ties += len(boxes) - len(set(boxes))
        num_ends += sum(a["area"] in (1024, 9216) for a in truth["annotations"])
        num_crowds += sum(a["iscrowd"] for a in truth["annotations"])
    assert min(num_ties, num_ends, num_crowds) > 50


def test_the_embedded_fixture_is_scored_as_by_pycocotools(golden_twin: Twin) -> None:
    columns = columns_of(*golden_twin())
    for name in ARRAYS:
        expected = getattr(pycocotools_curves(*columns), name)
        np.testing.assert_array_equal(getattr(fast_curves(*columns), name), expected)


def test_the_example_of_coco_itself_is_scored_as_by_pycocotools(data_folder: Path) -> None:
    folder = data_folder / "coco-golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    texts = (json.loads((folder / name).read_text()) for name in ("instances.json", "results.json"))
    columns = columns_of(*texts)
    for name in ARRAYS:
        expected = getattr(pycocotools_curves(*columns), name)
        np.testing.assert_array_equal(getattr(fast_curves(*columns), name), expected)


def test_matches_name_the_object_of_each_detection() -> None:
    truth = {
        "images": [{"id": i} for i in (3, 4)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"image_id": 4, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
            {"image_id": 3, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
            {"image_id": 3, "category_id": 1, "bbox": [50, 50, 40, 40], "area": 1600, "iscrowd": 1},
        ],
    }
    results = [
        {"image_id": 3, "category_id": 1, "bbox": [0, 0, 10, 9], "score": 0.3},
        {"image_id": 3, "category_id": 1, "bbox": [0, 0, 10, 8], "score": 0.6},
        {"image_id": 3, "category_id": 1, "bbox": [60, 60, 5, 5], "score": 0.1},
        {"image_id": 4, "category_id": 1, "bbox": [0, 0, 9, 10], "score": 0.2},
    ]
    found = match(*columns_of(truth, results))
    assert found.rows.tolist() == [1, 0, 2, 3]  # by image, then by score
    assert found.turns.tolist() == [0, 1, 2, 0]
    # The objects of image 3 come first: the first detection takes object 0 up to an IoU of 0.8, the second from there.
    assert found.truth_rows[0, 0].tolist() == [0, -1, 1, 2]
    assert found.truth_rows[0, 7].tolist() == [-1, 0, 1, 2]  # 0.85
    assert found.is_ignored[0, 0].tolist() == [False, False, True, False]  # in the crowd
    assert found.is_truth_ignored[0].tolist() == [False, True, False]
    assert found.is_truth_ignored[2].tolist() == [True, True, True]  # no object is of medium size without being a crowd


def test_a_set_without_detections_or_without_objects_has_curves(random_set: SetOf) -> None:
    truth, results = random_set(1)
    for columns in (columns_of(truth, []), columns_of({**truth, "annotations": []}, results)):
        for name in ARRAYS:
            expected = getattr(pycocotools_curves(*columns), name)
            np.testing.assert_array_equal(getattr(fast_curves(*columns), name), expected)
    assert LIMITS == (1, 10, 100)
