from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from detector.data.problems import Findings
from detector.errors import ConfigError
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.evaluation.voc_ap import average_precision, is_first, voc_map

SetOf: TypeAlias = Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]


def columns_of(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[GroundTruth, Results]:
    ground_truth = GroundTruth.of_mapping(truth)
    return ground_truth, checked_results(results, ground_truth, Findings("a test"))


def one_image(boxes: list[list[float]], difficult: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "circle"}, {"id": 2, "name": "star"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": int(i in difficult)}
            for i, b in enumerate(boxes)
        ],
    }


def result(box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "bbox": box, "score": score}


# --- against the steps of the development kit, implemented one by one -------------------------------------------------


def overlap(a: list[float], b: list[float]) -> float:
    """The kit's, with pixels counted at both ends, on the corners of which `a` and `b` were made."""
    corners = [(x + 1, y + 1, x + w, y + h) for x, y, w, h in (a, b)]
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners
    w, h = min(ax2, bx2) - max(ax1, bx1) + 1, min(ay2, by2) - max(ay1, by1) + 1
    if w <= 0 or h <= 0:
        return 0.0
    union = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - w * h
    return w * h / union


def by_the_kit(truth: dict[str, Any], results: list[dict[str, Any]], category: int, points: int) -> float:
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    num_wanted = sum(not a["iscrowd"] for a in objects)
    found = [r for r in results if r["category_id"] == category]
    found.sort(key=lambda r: -r["score"])  # stable
    taken: set[int] = set()
    right, wrong = [], []
    for detection in found:
        best, best_index = -math.inf, -1
        for index, target in enumerate(objects):
            if target["image_id"] == detection["image_id"]:
                value = overlap(detection["bbox"], target["bbox"])
                if value > best:
                    best, best_index = value, index
        is_right = is_wrong = False
        if best >= 0.5:
            if not objects[best_index]["iscrowd"]:
                is_right, is_wrong = best_index not in taken, best_index in taken
                taken.add(best_index)
        else:
            is_wrong = True
        right.append(is_right)
        wrong.append(is_wrong)
    if not num_wanted:
        return math.nan
    tp, fp = np.cumsum(right), np.cumsum(wrong)
    recall = tp / num_wanted
    precision = np.array([t / (t + f) if t + f else 0.0 for t, f in zip(tp, fp, strict=True)])
    if points == 11:
        levels = [precision[recall >= k / 10] for k in range(11)]
        return float(sum(p.max() if len(p) else 0.0 for p in levels) / 11)
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = [i for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return float(sum((recall[i] - recall[i - 1]) * precision[i] for i in steps))


@pytest.mark.parametrize("points", [0, 11])
@pytest.mark.parametrize("kind", ["random_set", "tied_set"])
def test_ap_equals_the_steps_of_the_development_kit(kind: str, points: int, request: pytest.FixtureRequest) -> None:
    draw: SetOf = request.getfixturevalue(kind)
    num_known = 0
    for seed in range(15):
        truth, results = draw(seed)
        found = voc_map(*columns_of(truth, results), points=points)
        expected = [by_the_kit(truth, results, c["id"], points) for c in truth["categories"]]
        np.testing.assert_allclose([c.ap for c in found.classes], expected, rtol=0, atol=1e-12)
        known = [value for value in expected if not math.isnan(value)]
        assert found.mean_ap == pytest.approx(np.mean(known), abs=1e-12)
        num_known += len(known)
    assert num_known > 20


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_one_of_two_objects_detected_is_half_the_area_and_six_of_eleven_points() -> None:
    columns = columns_of(one_image([[0, 0, 10, 10], [50, 50, 10, 10]]), [result([0, 0, 10, 10], 0.9)])
    assert voc_map(*columns).classes[0].ap == pytest.approx(1 / 2, abs=1e-12)
    assert voc_map(*columns, points=11).classes[0].ap == pytest.approx(6 / 11, abs=1e-12)


def test_an_overlap_of_exactly_one_half_is_a_match() -> None:
    truth = one_image([[0, 0, 10, 10]])
    assert voc_map(*columns_of(truth, [result([0, 0, 10, 5], 0.9)])).mean_ap == 1.0
    assert voc_map(*columns_of(truth, [result([0, 0, 10, 4.999], 0.9)])).mean_ap == 0.0
    assert voc_map(*columns_of(truth, [result([0, 0, 10, 5], 0.9)]), iou_threshold=0.51).mean_ap == 0.0


def test_a_second_detection_of_an_object_is_wrong_even_if_another_object_is_free() -> None:
    """COCO's matching would take the other object."""
    truth = one_image([[0, 0, 10, 10], [0, 2, 10, 10]])
    results = [result([0, 0, 10, 10], 0.9), result([0, 0.5, 10, 10], 0.8)]
    assert voc_map(*columns_of(truth, results)).mean_ap == pytest.approx(0.5, abs=1e-12)


def test_a_difficult_object_counts_neither_as_missed_nor_as_wrong() -> None:
    truth = one_image([[0, 0, 10, 10], [50, 50, 10, 10]], difficult=(1,))
    difficult = [result([50, 50, 10, 10], 0.95), result([50, 50, 10, 9], 0.94)]
    found = voc_map(*columns_of(truth, [*difficult, result([0, 0, 10, 10], 0.9)]))
    assert (found.mean_ap, found.num_objects, found.num_difficult) == (1.0, 1, 1)
    # Unlike a crowd of COCO, it is matched like any box: a box inside it does not match.
    inside = [result([55, 55, 3, 3], 0.95), result([0, 0, 10, 10], 0.9)]
    assert voc_map(*columns_of(truth, inside)).mean_ap == pytest.approx(0.5, abs=1e-12)


def test_a_class_without_objects_has_no_ap_and_is_not_in_the_mean() -> None:
    found = voc_map(*columns_of(one_image([[0, 0, 10, 10]]), [result([0, 0, 10, 10], 0.9)]))
    assert [c.name for c in found.classes] == ["circle", "star"]
    assert math.isnan(found.classes[1].ap)
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert (plain["metric"], plain["mean_ap"], plain["classes"][1]["ap"]) == ("voc", 1.0, None)


def test_a_set_without_objects_or_detections_is_scored() -> None:
    assert math.isnan(voc_map(*columns_of(one_image([]), [result([0, 0, 1, 1], 0.9)])).mean_ap)
    assert voc_map(*columns_of(one_image([[0, 0, 1, 1]]), [])).mean_ap == 0.0


@pytest.mark.parametrize("points", [1, 10, 101, -1])
def test_other_numbers_of_points_are_rejected(points: int) -> None:
    with pytest.raises(
        ConfigError, match=f"expected 11 points of recall, or 0 for the area under the curve, got {points}"
    ):
        voc_map(*columns_of(one_image([]), []), points=points)


def test_recalls_that_fall_on_a_point_reach_it() -> None:
    """3 of 10 detected reach the point 0.3, whatever 3 x 0.1 is in binary."""
    assert average_precision(np.array([True] * 3), 10, 11) == pytest.approx(4 / 11, abs=1e-12)
    assert average_precision(np.array([True] * 7), 10, 11) == pytest.approx(8 / 11, abs=1e-12)


def test_the_first_detection_of_each_object_is_marked() -> None:
    assert is_first(np.array([4, -1, 2, 4, -1, 2, 0])).tolist() == [True, False, True, False, False, False, True]
    assert is_first(np.array([], np.int64)).tolist() == []
