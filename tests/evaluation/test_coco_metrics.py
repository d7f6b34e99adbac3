from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from detector.data.coco import read_coco
from detector.errors import ConfigError
from detector.evaluation.coco_metrics import STAT_NAMES, Backend, score_results

Twin: TypeAlias = Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]
SetOf: TypeAlias = Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]
Reference: TypeAlias = Callable[[dict[str, Any], list[dict[str, Any]]], COCOeval]
BACKENDS: tuple[Backend, ...] = ("pycocotools", "fast")
NUM_RANDOM_SETS = 30
# AP and AR that COCO's own repository publishes for its example results on the first hundred images of val2014.
PUBLISHED = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
# The same numbers for `golden_twin`, computed by pycocotools 2.0.11 alone.
TWIN = [0.34543843448233685, 0.4355640268870304, 0.38323737666089486, 0.36856592710553104]
TWIN += [0.28118400851074116, 0.5136358635863586, 0.3141219666466114, 0.4503741071566313]
TWIN += [0.4503741071566313, 0.4351768968456948, 0.3806818181818182, 0.5857142857142856]


def stats_as_minus_one(stats: dict[str, float]) -> list[float]:
    return [-1.0 if math.isnan(stats[name]) else stats[name] for name in STAT_NAMES]


def one_image(boxes: list[list[float]], **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 7, "name": "circle"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 7, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for i, b in enumerate(boxes, start=1)
        ],
        **changes,
    }


def result(box: list[float], score: float = 0.9, **changes: Any) -> dict[str, Any]:
    return {"image_id": 5, "category_id": 7, "bbox": box, "score": score, **changes}


# --- against pycocotools itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(NUM_RANDOM_SETS))
def test_the_twelve_numbers_equal_those_of_pycocotools(
    seed: int, backend: Backend, random_set: SetOf, by_pycocotools: Reference
) -> None:
    truth, results = random_set(seed)
    expected = by_pycocotools(truth, results)
    found = score_results(truth, results, backend=backend)
    np.testing.assert_allclose(stats_as_minus_one(found.stats), expected.stats, rtol=0, atol=1e-12)
    assert found.num_images == len(truth["images"])
    assert found.num_crowds == sum(a["iscrowd"] for a in truth["annotations"])
    assert found.num_objects + found.num_crowds == len(truth["annotations"])
    assert found.num_detections == len(results)


def test_the_random_sets_contain_every_case(random_set: SetOf) -> None:
    sets = [random_set(seed) for seed in range(NUM_RANDOM_SETS)]
    ap = [score_results(*pair).ap for pair in sets]
    assert 0.05 < np.nanmin(ap) < np.nanmax(ap) < 0.95  # some objects are detected, some missed
    assert sum(any(a["iscrowd"] for a in truth["annotations"]) for truth, _ in sets) > 15
    empty = [{i["id"] for i in truth["images"]} - {a["image_id"] for a in truth["annotations"]} for truth, _ in sets]
    assert sum(bool(images) for images in empty) > 15
    assert sum(len(truth["categories"]) > 1 for truth, _ in sets) > 15


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_SETS, 3))
def test_the_mean_of_the_class_aps_equals_the_ap(seed: int, random_set: SetOf) -> None:
    found = score_results(*random_set(seed))
    assert np.nanmean(list(found.class_ap.values())) == pytest.approx(found.ap, abs=1e-12)


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_SETS, 3))
def test_each_class_ap_equals_that_of_pycocotools_for_the_class_alone(
    seed: int, random_set: SetOf, by_pycocotools: Reference
) -> None:
    truth, results = random_set(seed)
    found = score_results(truth, results)
    for category in truth["categories"]:
        alone = {**truth, "categories": [category]}
        alone["annotations"] = [a for a in truth["annotations"] if a["category_id"] == category["id"]]
        records = [r for r in results if r["category_id"] == category["id"]]
        expected = by_pycocotools(alone, records).stats[0] if records else 0.0
        if any(not a["iscrowd"] for a in alone["annotations"]):
            assert found.class_ap[category["name"]] == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(found.class_ap[category["name"]])


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_SETS, 3))
def test_the_operating_point_is_where_each_class_has_its_best_f1(
    seed: int, random_set: SetOf, by_pycocotools: Reference
) -> None:
    truth, results = random_set(seed)
    precision = by_pycocotools(truth, results).eval["precision"]
    points = []
    for column in range(len(truth["categories"])):
        best = (-1.0, 0.0, 0.0)
        for row in range(101):
            p, r = float(precision[0, row, column, 0, 2]), row / 100
            f1 = 2 * p * r / (p + r) if p + r > 0 else 0.0
            if p >= 0 and f1 > best[0]:
                best = (f1, p, r)
        if best[0] >= 0:
            points.append(best)
    found = score_results(truth, results)
    assert found.precision == pytest.approx(np.mean([p for _, p, _ in points]), abs=1e-12)
    assert found.recall == pytest.approx(np.mean([r for _, _, r in points]), abs=1e-12)


def test_scoring_leaves_its_arguments_as_they_were(random_set: SetOf) -> None:
    truth, results = random_set(1)
    before = copy.deepcopy((truth, results))
    score_results(truth, results)
    assert (truth, results) == before


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_one_perfect_box_has_an_ap_of_one() -> None:
    found = score_results(one_image([[10, 10, 40, 40]]), [result([10, 10, 40, 40])])
    assert {name: value for name, value in found.stats.items() if not math.isnan(value)} == pytest.approx(
        {"AP": 1, "AP50": 1, "AP75": 1, "APm": 1, "AR1": 1, "AR10": 1, "AR100": 1, "ARm": 1}, abs=1e-12
    )
    assert (found.precision, found.recall) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert found.class_ap == {"circle": pytest.approx(1.0, abs=1e-12)}


def test_one_of_two_objects_detected_has_the_ap_of_51_recall_points() -> None:
    found = score_results(one_image([[10, 10, 40, 40], [60, 60, 30, 30]]), [result([10, 10, 40, 40])])
    # Precision is 1 at the recalls 0, 0.01 .. 0.50, which are 51 of 101 points, and 0 beyond.
    assert found.ap == pytest.approx(51 / 101, abs=1e-12)
    assert found.stats["AR100"] == pytest.approx(0.5, abs=1e-12)
    assert (found.precision, found.recall) == pytest.approx((1.0, 0.5), abs=1e-12)


def test_a_box_of_iou_two_thirds_counts_at_the_four_lowest_thresholds() -> None:
    found = score_results(one_image([[0, 0, 60, 40]]), [result([0, 0, 40, 40])])
    assert found.ap == pytest.approx(4 / 10, abs=1e-12)  # 0.50, 0.55, 0.60, 0.65
    assert (found.stats["AP50"], found.stats["AP75"]) == (pytest.approx(1.0), 0.0)


def test_a_false_alarm_above_the_hit_halves_the_precision() -> None:
    records = [result([70, 70, 20, 20], 0.95), result([10, 10, 40, 40], 0.9)]
    assert score_results(one_image([[10, 10, 40, 40]]), records).ap == pytest.approx(0.5, abs=1e-12)


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong() -> None:
    truth = one_image([[10, 10, 40, 40], [50, 50, 50, 50]])
    truth["annotations"][1]["iscrowd"] = 1
    records = [result([60, 60, 20, 20], 0.95), result([10, 10, 40, 40], 0.9)]
    found = score_results(truth, records)
    assert found.ap == pytest.approx(1.0, abs=1e-12)
    assert (found.num_objects, found.num_crowds) == (1, 1)


def test_no_results_have_an_ap_of_zero() -> None:
    found = score_results(one_image([[10, 10, 40, 40]]), [])
    assert (found.ap, found.stats["AR100"], found.precision, found.recall) == (0.0, 0.0, 0.0, 0.0)
    assert found.class_ap == {"circle": 0.0}
    assert math.isnan(found.stats["APl"])  # there is no large object to miss


@pytest.mark.parametrize("records", [[], [result([10, 10, 40, 40])]])
def test_without_ground_truth_there_is_no_number(records: list[dict[str, Any]]) -> None:
    found = score_results(one_image([]), records)
    assert all(math.isnan(value) for value in found.stats.values())
    assert math.isnan(found.precision)
    assert math.isnan(found.recall)
    plain = found.to_plain()
    assert [plain[name] for name in STAT_NAMES] == [None] * 12
    assert plain["class_ap"] == {"circle": None}
    json.dumps(plain, allow_nan=False)


def test_two_classes_of_the_same_name_are_both_listed() -> None:
    truth = one_image([[10, 10, 40, 40]])
    truth["categories"] = [{"id": 7, "name": "circle"}, {"id": 9, "name": "circle"}]
    truth["annotations"].append({**truth["annotations"][0], "id": 2, "category_id": 9})
    found = score_results(truth, [result([10, 10, 40, 40])])
    assert sorted(found.class_ap.values()) == pytest.approx([0.0, 1.0], abs=1e-12)
    assert len(set(found.class_ap)) == 2


# --- other limits, sizes, classes, and the facts reported with the numbers --------------------------------------------


def crowded(num_boxes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image of many objects, all detected below as many false positives."""
    boxes = [[float(20 * (i % 30)), float(20 * (i // 30)), 10.0, 10.0] for i in range(num_boxes)]
    alarms = [result([box[0] + 10, box[1] + 10, 9.0, 9.0], 0.9 - i * 1e-6) for i, box in enumerate(boxes)]
    return one_image(boxes), [*alarms, *(result(box, 0.5 - i * 1e-6) for i, box in enumerate(boxes))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_limit_is_labelled_and_does_not_change_ap(backend: Backend) -> None:
    truth, results = crowded(80)
    plain = score_results(truth, results, backend=backend)
    found = score_results(truth, results, backend=backend, other_limits=(300, 10, 120))
    assert found.stats == plain.stats
    assert plain.other_limits == {}
    assert list(found.other_limits) == [
        f"{name}@maxDets={limit}" for limit in (120, 300) for name in ("AP", "AP50", "AP75", "AR")
    ]  # 10 is COCO's own
    # 20 of 80 objects are among the first 100, 40 among the first 120, all among the first 300.
    assert found.stats["AR100"] == pytest.approx(20 / 80, abs=1e-12)
    assert found.other_limits["AR@maxDets=120"] == pytest.approx(40 / 80, abs=1e-12)
    assert found.other_limits["AR@maxDets=300"] == pytest.approx(1.0, abs=1e-12)
    assert found.stats["AP"] == pytest.approx(26 * 20 / 100 / 101, abs=1e-12)  # precision 20 / 100 at 26 recalls
    assert found.other_limits["AP@maxDets=300"] == pytest.approx(80 / 160, abs=1e-12)
    assert found.num_beyond_limit == 60


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_low_limit_does_not_replace_the_limit_of_100(backend: Backend) -> None:
    truth, results = crowded(80)
    found = score_results(truth, results, backend=backend, other_limits=(20,))
    assert found.stats == score_results(truth, results).stats
    assert found.other_limits["AR@maxDets=20"] == 0.0


def test_a_limit_of_zero_detections_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"limits: expected numbers of detections of at least 1, got \[300, 0\]"):
        score_results(one_image([]), [], other_limits=(300, 0))


def test_objects_are_counted_by_size_without_crowds() -> None:
    truth = one_image([[0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 50, 50], [0, 0, 97, 97], [0, 0, 98, 98]])
    truth["annotations"][4]["iscrowd"] = 1
    assert score_results(truth, []).num_by_size == {"small": 1, "medium": 2, "large": 1}


def test_each_class_has_its_numbers_objects_and_detections() -> None:
    truth = one_image([[0, 0, 60, 40], [10, 50, 20, 20]])
    truth["categories"] = [{"id": 9, "name": "star"}, {"id": 7, "name": "circle"}]
    results = [result([0, 0, 40, 40], 0.8), result([70, 70, 5, 5], 0.3, category_id=9)]
    circle, star = score_results(truth, results).classes
    assert (circle.name, circle.category_id, circle.num_objects, circle.num_detections) == ("circle", 7, 2, 1)
    # Detected at four of ten thresholds, at half the recall: 51 of 101 points.
    assert (circle.ap, circle.ap50, circle.ap75) == pytest.approx((0.4 * 51 / 101, 51 / 101, 0.0), abs=1e-12)
    assert circle.ar == pytest.approx(0.4 * 0.5, abs=1e-12)
    assert (star.name, star.num_objects, star.num_detections) == ("star", 0, 1)
    assert math.isnan(star.ap)


def test_back_end_lowest_score_and_hash_are_reported_with_the_numbers() -> None:
    truth, results = one_image([[10, 10, 40, 40]]), [result([10, 10, 40, 40], 0.125), result([1, 1, 4, 4], 0.5)]
    found = score_results(truth, results)
    assert found.lowest_score == 0.125
    assert found.backend.startswith("fast, overlaps of pycocotools 2.")
    assert score_results(truth, results, backend="pycocotools").backend.startswith("pycocotools 2.")
    plain = found.to_plain()
    assert plain["ground_truth_sha256"] == found.ground_truth_sha256
    assert len(found.ground_truth_sha256) == 64
    assert {"num_images", "num_objects", "num_crowds", "num_detections", "backend", "lowest_score"} <= set(plain)
    assert math.isnan(score_results(truth, []).lowest_score)


# --- golden numbers --------------------------------------------------------------------------------------------------


def test_the_embedded_golden_set_keeps_its_numbers(golden_twin: Twin) -> None:
    truth, results = golden_twin()
    assert (len(truth["annotations"]), sum(a["iscrowd"] for a in truth["annotations"]), len(results)) == (111, 5, 118)
    for backend in BACKENDS:
        found = score_results(truth, results, backend=backend)
        assert list(found.stats.values()) == pytest.approx(TWIN, abs=1e-12)


def test_the_example_of_coco_itself_gets_the_published_numbers(data_folder: Path, by_pycocotools: Reference) -> None:
    folder = data_folder / "coco-golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    annotations = folder / "instances.json"
    truth, results = read_coco(annotations, None).ground_truth(), json.loads((folder / "results.json").read_text())
    found = score_results(truth, results)
    assert [round(found.stats[name], 3) for name in STAT_NAMES] == PUBLISHED
    expected = by_pycocotools(json.loads(annotations.read_text()), results)
    assert list(found.stats.values()) == pytest.approx(expected.stats.tolist(), abs=1e-12)
    assert (found.num_images, found.num_objects + found.num_crowds, found.num_crowds) == (100, 839, 9)
