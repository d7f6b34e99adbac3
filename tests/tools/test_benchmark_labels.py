from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.problems import Findings
from detector.evaluation.label_suspects import Suspect
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from benchmark_labels import damaged, interval, num_found, shares_found  # noqa: E402


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    """Objects of drawn images, and the detections of `yolox-nano` after 150 steps of training on other such images."""
    content: dict[str, Any] = json.loads((ROOT / "tests/fixtures/drawn_objects.json").read_text())
    return content


def test_damaged_labels_of_drawn_shapes_come_first_in_the_list(drawn: dict[str, Any]) -> None:
    results = checked_results(drawn["detections"], GroundTruth.of_mapping(drawn), Findings("the test"))
    found = shares_found(drawn, results, num_draws=6)
    assert found["list"] >= 5 * found["random"]
    assert found["list"] > 0.6


def test_a_tenth_of_the_boxes_is_damaged_in_three_ways(drawn: dict[str, Any]) -> None:
    before = json.dumps(drawn)
    labels, damages = damaged(drawn, np.random.default_rng(0))
    assert json.dumps(drawn) == before
    assert [kind for kind, _, _ in damages].count("removed") == len(drawn["annotations"]) - len(labels["annotations"])
    assert len(damages) == round(0.1 * len(drawn["annotations"]))
    for kind, row, after in damages:
        assert (after is None) == (kind == "removed")
        if after is not None:
            assert (after["bbox"] != row["bbox"], after["category_id"] != row["category_id"]) == (
                kind == "moved",
                kind == "swapped",
            )


def test_a_damage_is_found_at_its_label_or_at_its_true_place() -> None:
    row = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10]}
    moved = {**row, "bbox": [50, 50, 10, 10]}
    damages = [("moved", row, moved), ("removed", row, None)]
    label = Suspect("extra", 0.5, 0, 1, 2, (50.0, 50.0, 10.0, 10.0))
    proposal = Suspect("missing", 0.5, 0, 1, None, None, 2, (1.0, 0.0, 10.0, 10.0), 0.5)
    elsewhere = Suspect("missing", 0.5, 1, 2, None, None, 2, (1.0, 0.0, 10.0, 10.0), 0.5)
    assert num_found(damages, [label]) == {"moved": 1, "removed": 0, "swapped": 0}
    assert num_found(damages, [proposal]) == {"moved": 1, "removed": 1, "swapped": 0}
    assert num_found(damages, [elsewhere]) == {"moved": 0, "removed": 0, "swapped": 0}


def test_interval_of_a_mean_follows_students_t() -> None:
    low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert interval(np.array([1.0])) == (-np.inf, np.inf)
