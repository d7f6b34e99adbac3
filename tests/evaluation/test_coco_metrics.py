from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco import read_coco
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import STAT_NAMES, score_results

NUM_RANDOM_SETS = 30
# AP and AR that COCO's own repository publishes for its example results on the first hundred images of val2014.
PUBLISHED = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
# The same numbers for `golden_twin`, computed by pycocotools 2.0.11 alone.
TWIN = [0.34543843448233685, 0.4355640268870304, 0.38323737666089486, 0.36856592710553104]
TWIN += [0.28118400851074116, 0.5136358635863586, 0.3141219666466114, 0.4503741071566313]
TWIN += [0.4503741071566313, 0.4351768968456948, 0.3806818181818182, 0.5857142857142856]


def random_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A data set with crowds, empty images, several classes and all areas, and results of every quality."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(10_000, int(rng.integers(3, 25)), replace=False).tolist()
    category_ids = sorted(rng.choice(90, int(rng.integers(1, 7)), replace=False).tolist())
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def box(largest: float) -> list[float]:
        w, h = np.exp(rng.uniform(np.log(4), np.log(largest), 2))
        return [float(rng.uniform(0, 640 - w)), float(rng.uniform(0, 480 - h)), float(w), float(h)]

    for image_id in image_ids:
        if rng.random() < 0.15:
            continue
        for _ in range(int(rng.integers(0, 12))):
            found = box(300)
            crowd = int(rng.random() < 0.08)
            area = found[2] * found[3] * rng.uniform(0.4, 1)
            category = int(rng.choice(category_ids))
            annotations.append({"image_id": image_id, "category_id": category, "bbox": found, "area": area})
            annotations[-1] |= {"id": len(annotations), "iscrowd": crowd}
            for _ in range(int(rng.integers(0, 4 if not crowd else 8))):
                moved = (np.array(found) + rng.normal(0, 0.12, 4) * np.array(found)[[2, 3, 2, 3]]).tolist()
                label = category if rng.random() < 0.9 else int(rng.choice(category_ids))
                results.append({"image_id": image_id, "category_id": label, "bbox": moved})
    for _ in range(int(rng.integers(0, 150))):
        label, image_id = int(rng.choice(category_ids)), int(rng.choice(image_ids))
        results.append({"image_id": image_id, "category_id": label, "bbox": box(400)})
    for record in results:
        record["score"] = round(float(rng.random()), 2) if seed % 3 == 0 else float(rng.random())  # with ties
    truth = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in image_ids],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
        "annotations": annotations,
    }
    return truth, results


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    """The installed library on its own, the way its documentation says."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


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


@pytest.mark.parametrize("seed", range(NUM_RANDOM_SETS))
def test_the_twelve_numbers_are_those_of_pycocotools(seed: int) -> None:
    truth, results = random_set(seed)
    expected = by_pycocotools(truth, results)
    found = score_results(truth, results)
    np.testing.assert_allclose(stats_as_minus_one(found.stats), expected.stats, rtol=0, atol=1e-12)
    assert found.num_images == len(truth["images"])
    assert found.num_crowds == sum(a["iscrowd"] for a in truth["annotations"])
    assert found.num_objects + found.num_crowds == len(truth["annotations"])
    assert found.num_detections == len(results)


def test_the_random_sets_hold_what_they_are_meant_to_hold() -> None:
    sets = [random_set(seed) for seed in range(NUM_RANDOM_SETS)]
    ap = [score_results(*pair).ap for pair in sets]
    assert 0.05 < np.nanmin(ap) < np.nanmax(ap) < 0.95  # neither all found nor none
    assert sum(any(a["iscrowd"] for a in truth["annotations"]) for truth, _ in sets) > 15
    empty = [{i["id"] for i in truth["images"]} - {a["image_id"] for a in truth["annotations"]} for truth, _ in sets]
    assert sum(bool(images) for images in empty) > 15
    assert sum(len(truth["categories"]) > 1 for truth, _ in sets) > 15


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_SETS, 3))
def test_the_mean_of_the_class_aps_is_the_ap(seed: int) -> None:
    found = score_results(*random_set(seed))
    assert np.nanmean(list(found.class_ap.values())) == pytest.approx(found.ap, abs=1e-12)


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_SETS, 3))
def test_each_class_ap_is_what_pycocotools_gives_for_that_class_alone(seed: int) -> None:
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
def test_the_operating_point_is_where_each_class_has_its_best_f1(seed: int) -> None:
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


def test_scoring_leaves_its_arguments_as_they_were() -> None:
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


def test_one_of_two_objects_found_has_the_ap_of_51_recall_points() -> None:
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


def test_a_hit_in_a_crowd_is_neither_right_nor_wrong() -> None:
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


def test_two_classes_of_one_name_are_both_listed() -> None:
    truth = one_image([[10, 10, 40, 40]])
    truth["categories"] = [{"id": 7, "name": "circle"}, {"id": 9, "name": "circle"}]
    truth["annotations"].append({**truth["annotations"][0], "id": 2, "category_id": 9})
    found = score_results(truth, [result([10, 10, 40, 40])])
    assert sorted(found.class_ap.values()) == pytest.approx([0.0, 1.0], abs=1e-12)
    assert len(set(found.class_ap)) == 2


# --- records that pycocotools would take -----------------------------------------------------------------------------


def test_results_that_are_all_nan_are_refused_where_pycocotools_counts_them_as_found() -> None:
    truth, results = random_set(4)
    broken = [{**r, "bbox": [math.nan] * 4} for r in results]
    assert by_pycocotools(truth, broken).stats[0] > 0.1  # what this project guards against
    with pytest.raises(DatasetError, match=r"result 0: a box of 4 finite numbers and a finite score are wanted.*nan"):
        score_results(truth, broken)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (result([1, 2, math.inf, 4]), "a box of 4 finite numbers"),
        (result([1, 2, 10**400, 4]), "image_id, category_id, bbox and score are wanted (OverflowError"),
        (result([1, 2, 3, 4], math.nan), "a finite score"),
        (result([1, 2, 3]), "a box of 4 finite numbers"),
        (result([1, 2, 3, 4, 5]), "a box of 4 finite numbers"),
        (result([1, 2, "3", 4]), "image_id, category_id, bbox and score are wanted"),
        (result([1, 2, None, 4]), "image_id, category_id, bbox and score are wanted"),
        (result(None), "image_id, category_id, bbox and score are wanted"),  # type: ignore[arg-type]  # on purpose
        (result([1, 2, 3, 4], image_id=6), "image_id 6 is not in the annotation file"),
        (result([1, 2, 3, 4], image_id="5"), "image_id '5' is not in the annotation file"),
        (result([1, 2, 3, 4], image_id=[5]), "image_id, category_id, bbox and score are wanted"),
        (result([1, 2, 3, 4], category_id=0), "category_id 0 is not in the annotation file"),
        ({"image_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}, "'category_id'"),
        ({"image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4]}, "'score'"),
        ("a text", "image_id, category_id, bbox and score are wanted"),
        (None, "image_id, category_id, bbox and score are wanted"),
    ],
)
def test_a_record_that_cannot_be_scored_is_refused_with_its_place(record: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=f"^result 1: .*{re.escape(message)}.*; correct the results file$"):
        score_results(one_image([[10, 10, 40, 40]]), [result([1, 2, 3, 4]), record])


# --- golden numbers --------------------------------------------------------------------------------------------------


def golden_twin() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Forty images with objects, crowds, near misses and false alarms, in numbers of two decimals."""
    draw = random.Random(20).random  # this one method gives the same numbers in every version of Python
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def record(image: int, category: int, box: list[float], score: float) -> None:
        rounded = [round(v, 2) for v in box]
        results.append({"image_id": image, "category_id": category, "bbox": rounded, "score": round(score, 3)})

    for image in range(10, 50):
        for _ in range(int(7 * draw())):
            side, category = 8 * 30 ** draw(), (1, 3, 90)[int(3 * draw())]
            box = [round(300 * draw(), 2), round(200 * draw(), 2), round(side, 2), round(side * (0.5 + draw()), 2)]
            area, crowd = round(box[2] * box[3] * (0.4 + 0.6 * draw()), 2), int(draw() < 0.06)
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box})
            annotations[-1] |= {"area": area, "iscrowd": crowd}
            for _ in range(int(2.2 * draw()) + 3 * crowd):
                off = 0.3 * draw() ** 2
                moved = [v + off * (draw() - 0.5) * s for v, s in zip(box, [*box[2:], *box[2:]], strict=True)]
                record(image, category if draw() < 0.95 else 3, moved, 0.3 + 0.7 * draw())
        for _ in range(int(3 * draw())):
            record(image, 90, [300 * draw(), 200 * draw(), 10 + 90 * draw(), 10 + 90 * draw()], 0.7 * draw())
    images = [{"id": image, "file_name": f"{image}.jpg", "height": 480, "width": 640} for image in range(10, 50)]
    categories = [{"id": category, "name": str(category)} for category in (1, 3, 90)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def test_the_embedded_golden_set_keeps_its_numbers() -> None:
    truth, results = golden_twin()
    assert (len(truth["annotations"]), sum(a["iscrowd"] for a in truth["annotations"]), len(results)) == (111, 5, 118)
    assert list(score_results(truth, results).stats.values()) == pytest.approx(TWIN, abs=1e-12)


def test_the_example_of_coco_itself_gets_the_published_numbers(data_folder: Path) -> None:
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
