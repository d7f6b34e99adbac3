from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from detector.data.coco import read_coco
from detector.evaluation.scoring_arrays import GroundTruth, shared_groups

SetOf: TypeAlias = Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]
COLUMNS = ("image_hw", "image_ranks", "category_ranks", "boxes_xywh", "areas", "is_crowd")


@pytest.mark.parametrize("seed", range(4))
def test_a_file_and_its_mapping_have_the_same_columns_and_hash(seed: int, random_set: SetOf, tmp_path: Path) -> None:
    truth, _ = random_set(seed)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    annotations = read_coco(tmp_path / "truth.json", None)
    found, expected = GroundTruth.of_annotations(annotations), GroundTruth.of_mapping(annotations.ground_truth())
    assert (found.image_ids, found.category_ids) == (expected.image_ids, expected.category_ids)
    assert found.image_ids == tuple(sorted(i["id"] for i in truth["images"]))
    assert found.class_names == expected.class_names
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.sha256 == expected.sha256


def mapping() -> dict[str, Any]:
    return {
        "images": [{"id": 2**70, "height": 4, "width": 5}, {"id": 3, "height": 6, "width": 7}, {"id": -1}],
        "categories": [{"id": 9, "name": "a"}, {"id": 1, "name": "a"}, {"id": 4, "name": "b"}],
        "annotations": [
            {"image_id": 2**70, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"image_id": 3, "category_id": 1, "bbox": [5, 6, 7, 8], "area": 50, "iscrowd": 1},
            {"image_id": 2**70, "category_id": 4, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0},
        ],
    }


def test_rows_are_ordered_by_image_with_ranks_for_ids_of_any_size() -> None:
    found = GroundTruth.of_mapping(mapping())
    assert found.image_ids == (-1, 3, 2**70)
    assert found.image_hw.tolist() == [[0, 0], [6, 7], [4, 5]]
    assert found.category_ids == (1, 4, 9)
    assert found.class_names == ("a (1)", "b", "a (9)")
    assert found.image_ranks.tolist() == [1, 2, 2]
    assert found.category_ranks.tolist() == [0, 2, 1]
    assert found.is_crowd.tolist() == [True, False, False]


def test_the_hash_covers_everything_that_a_score_depends_on() -> None:
    plain = GroundTruth.of_mapping(mapping()).sha256
    reordered = mapping()
    reordered["images"].reverse()
    reordered["annotations"] = [reordered["annotations"][i] for i in (1, 0, 2)]
    assert GroundTruth.of_mapping(reordered).sha256 == plain
    for row, key, value in (
        (0, "bbox", [1, 2, 3, 4.0000001]),
        (0, "area", 11),
        (1, "iscrowd", 0),
        (2, "category_id", 1),
        (2, "image_id", 3),
    ):
        changed = mapping()
        changed["annotations"][row][key] = value
        assert GroundTruth.of_mapping(changed).sha256 != plain, key
    fewer = mapping()
    fewer["images"].pop()
    assert GroundTruth.of_mapping(fewer).sha256 != plain


def test_shared_groups_are_returned() -> None:
    found = shared_groups(np.array([0, 0, 3, 5, 5]), np.array([0, 2, 3, 3, 6]))
    assert found == [(slice(0, 2), slice(0, 1)), (slice(2, 3), slice(2, 4))]
    assert shared_groups(np.array([], np.int64), np.array([1])) == []
    assert shared_groups(np.array([1]), np.array([], np.int64)) == []
