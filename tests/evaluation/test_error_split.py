from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from detector.data.problems import Findings
from detector.evaluation.error_split import BACKGROUND, IGNORED, KINDS, RIGHT, ErrorSplit, split_errors
from detector.evaluation.ranking import Ranking
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results

Scored = tuple[dict[str, Any], list[dict[str, Any]]]
A, B = 1, 2


def set_of(
    objects: Sequence[tuple[int, int, Sequence[float]]], detections: Sequence[tuple[int, int, Sequence[float], float]]
) -> Scored:
    """Objects (image, category, box) and detections (image, category, box, score)."""
    images = sorted({image for image, _, _ in objects} | {image for image, _, _, _ in detections})
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in images],
        "categories": [{"id": A, "name": "a"}, {"id": B, "name": "b"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, c, box) in enumerate(objects, start=1)
        ],
    }
    return truth, [{"image_id": i, "category_id": c, "bbox": box, "score": s} for i, c, box, s in detections]


def columns(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[GroundTruth, Results]:
    ground_truth = GroundTruth.of_mapping(truth)
    return ground_truth, checked_results(results, ground_truth, Findings("the test"))


def split(truth: dict[str, Any], results: list[dict[str, Any]]) -> ErrorSplit:
    ground_truth, found = columns(truth, results)
    return split_errors(ground_truth, found, Ranking.of(ground_truth, found))


BOX, OTHER, FAR = [0, 0, 10, 10], [50, 50, 10, 10], [100, 100, 10, 10]
HALF = [0, 5, 10, 10]  # overlaps BOX by 1/3


@pytest.mark.parametrize(
    ("kind", "objects", "detections", "cost"),
    [
        # One object of `a` detected at 0.5 below one error at 0.9: AP50 is 1/2, and 1 after the fix.
        ("background", [(1, A, BOX)], [(1, A, FAR, 0.9), (1, A, BOX, 0.5)], 0.5),
        ("duplicate", [(1, A, BOX), (2, A, BOX)], [(1, A, BOX, 0.9), (1, A, BOX, 0.8), (2, A, BOX, 0.7)], None),
        # Two objects, one detected: recalls to 0.5 are reached, 51 of 101; the box of the other is badly placed.
        ("localisation", [(1, A, BOX), (2, A, BOX)], [(1, A, BOX, 0.9), (2, A, HALF, 0.5)], 50 / 101),
        # The object of `b` is detected as `a`, after the only object of `a`: AP50 is (1 + 0) / 2.
        ("classification", [(1, A, BOX), (2, B, BOX)], [(1, A, BOX, 0.9), (2, A, BOX, 0.5)], 0.5),
        # `b` is missed and no longer asked for: AP50 of `a` alone.
        ("missed", [(1, A, BOX), (2, B, BOX)], [(1, A, BOX, 0.9)], 0.5),
        # Wrong class and badly placed, above the object of `a` that is detected: 1/2 becomes 1.
        ("both", [(1, A, OTHER), (1, B, BOX)], [(1, A, HALF, 0.9), (1, A, OTHER, 0.5), (1, B, BOX, 0.3)], 0.25),
    ],
)
def test_a_single_error_has_the_kind_and_cost_computed_by_hand(
    kind: str, objects: list[Any], detections: list[Any], cost: float | None
) -> None:
    found = split(*set_of(objects, detections))
    assert found.counts == {name: int(name == kind) for name in KINDS}
    if cost is None:  # the duplicate: precision 1, 1/2, 2/3 at recalls 1/2, 1/2, 1; envelope 1 to 0.5, then 2/3
        cost = 1 - (51 + 50 * 2 / 3) / 101
    assert found.costs == pytest.approx({name: cost if name == kind else 0.0 for name in KINDS}, abs=1e-12)
    assert (found.kinds == RIGHT).sum() == len(detections) - (kind != "missed")


def test_a_set_with_one_error_of_each_kind_has_the_counts_and_costs_computed_by_hand() -> None:
    """Class `a`: ten objects in images 1-10, 1-6 detected; class `b`: one, detected. The errors have higher scores."""
    objects = [(image, A, BOX) for image in range(1, 11)] + [(11, B, BOX)]
    right = [(image, A, BOX, 0.5) for image in range(1, 7)] + [(11, B, BOX, 0.5)]
    wrong = [
        (7, A, HALF, 0.95),  # localisation, of object 7
        (8, B, BOX, 0.9),  # classification, of object 8
        (12, A, FAR, 0.85),  # background
        (11, A, HALF, 0.8),  # both, of the object of `b`
        (1, A, BOX, 0.4),  # a duplicate, below
    ]  # objects 9 and 10 are missed
    found = split(*set_of(objects, [*right, *wrong]))
    assert found.counts == {
        "classification": 1,
        "localisation": 1,
        "both": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 2,
    }
    assert np.flatnonzero(found.is_missed).tolist() == [8, 9]

    def ap_of_a(num_wrong_above: int, num_right: int, num_objects: int, num_right_first: int = 0) -> float:
        """AP50 of `a`: right ones first, then wrong ones, then the rest: the last place has the best precision left."""
        recalls = np.linspace(0, 1, 101)  # COCO's, in which 0.70 is a little more than 7 / 10
        best = num_right / (num_right + num_wrong_above)
        first = (recalls <= num_right_first / num_objects) if num_right_first else np.zeros(101, bool)
        reached = recalls <= num_right / num_objects
        return float(np.where(first, 1.0, np.where(reached, best, 0.0)).mean())

    a, b = ap_of_a(3, 6, 10), 0.5  # b: a wrong one above its only object
    assert found.ap50 == pytest.approx((a + b) / 2, abs=1e-12)
    costs = {
        # The detection of 8 becomes a right one of `a`, at 0.9: after one wrong one, before two.
        "classification": (mended_classification() + 1.0) / 2,
        "localisation": (ap_of_a(2, 7, 10, 1) + b) / 2,
        "both": (ap_of_a(2, 6, 10) + b) / 2,
        "duplicate": (a + b) / 2,
        "background": (ap_of_a(2, 6, 10) + b) / 2,
        "missed": (ap_of_a(3, 6, 8) + b) / 2,
    }
    assert found.costs == pytest.approx({k: v - found.ap50 for k, v in costs.items()}, abs=1e-12)
    assert found.false_positives_cost == pytest.approx((ap_of_a(0, 6, 10) + 1) / 2 - found.ap50, abs=1e-12)
    assert found.false_negatives_cost == pytest.approx((ap_of_a(3, 6, 6) + b) / 2 - found.ap50, abs=1e-12)


def mended_classification() -> float:
    """AP50 of ten objects with wrong, right, wrong, wrong, six right: precision 1/2 at 0.1, then 7/10 at 0.7."""
    recalls = np.linspace(0, 1, 101)  # COCO's, in which 0.70 is a little more than 7 / 10
    return float(np.where(recalls <= 0.7, 0.7, 0.0).mean())


def test_the_better_of_two_errors_on_one_object_is_fixed_and_the_other_dropped() -> None:
    objects = [(1, A, BOX), (2, A, BOX)]
    low, high = (1, A, [0, 4, 10, 10], 0.3), (1, A, HALF, 0.9)
    found = split(*set_of(objects, [low, high, (2, A, BOX, 0.5)]))
    assert found.counts["localisation"] == 2
    assert found.ap50 + found.costs["localisation"] == pytest.approx(1.0, abs=1e-12)


def test_an_error_on_a_detected_object_is_dropped_when_fixed() -> None:
    found = split(*set_of([(1, A, BOX)], [(1, A, HALF, 0.9), (1, A, BOX, 0.5)]))
    assert found.counts["localisation"] == 1
    assert found.costs["localisation"] == pytest.approx(0.5, abs=1e-12)


def reference_kind(iou: np.ndarray, same: np.ndarray, used: np.ndarray) -> str:
    """TIDE's order, implemented again for one false positive."""
    if not len(iou):
        return "background"
    if 0.1 <= (iou * same).max() <= 0.5:
        return "localisation"
    if (iou * ~same).max() >= 0.5:
        return "classification"
    if (iou * same * used).max() >= 0.5:
        return "duplicate"
    return "background" if iou.max() <= 0.1 else "both"


def overlap(first: list[float], second: list[float]) -> float:
    w = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    h = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


@pytest.mark.parametrize("seed", range(10))
def test_the_split_of_random_sets_equals_that_of_a_loop(
    seed: int, random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(seed)
    if not results or not truth["annotations"]:
        pytest.skip("pycocotools scores no empty set")
    evaluation = by_pycocotools(truth, results)
    matched: dict[int, int] = {}
    used: set[int] = set()
    ignored: set[int] = set()
    for entry in evaluation.evalImgs:
        if entry is not None and entry["aRng"] == [0, 1e10]:
            for found, target, is_ignored in zip(
                entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
            ):
                matched[found] = int(target)
                ignored |= {found} if is_ignored else set()
                used |= {int(target)} if target and not is_ignored else set()
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    expected = dict.fromkeys(KINDS, 0)
    covered: set[int] = set()
    for number, record in enumerate(results, start=1):
        if number not in matched or matched[number] or number in ignored:
            continue
        near = [a for a in objects if a["image_id"] == record["image_id"]]
        iou = np.array([overlap(record["bbox"], a["bbox"]) for a in near])
        same = np.array([a["category_id"] == record["category_id"] for a in near], bool)
        kind = reference_kind(iou, same, np.array([a["id"] in used for a in near], bool))
        expected[kind] += 1
        if kind in ("localisation", "classification"):
            covered.add(near[int(np.argmax(iou * (same if kind == "localisation" else ~same)))]["id"])
    expected["missed"] = sum(a["id"] not in used and a["id"] not in covered for a in objects)
    found_split = split(truth, results)
    assert found_split.counts == expected
    assert found_split.ap50 == evaluation.stats[1]
    assert (found_split.kinds == IGNORED).sum() == len(ignored)


def test_the_cost_equals_fixing_errors_by_hand_and_scoring_with_pycocotools(
    random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(5)
    ground_truth, columns_of_results = columns(truth, results)
    ranking = Ranking.of(ground_truth, columns_of_results)
    found = split_errors(ground_truth, columns_of_results, ranking)
    order = sorted(truth["annotations"], key=lambda a: a["image_id"])  # the rows of the ground truth
    for kind, name in enumerate(KINDS[:5]):
        mended = [dict(results[row]) for row in ranking.rows]
        taken = set(np.flatnonzero(found.is_found).tolist())
        dropped = set()
        for place in np.argsort(-ranking.scores, kind="stable").tolist():
            if found.kinds[place] != kind:
                continue
            target = int(found.objects[place])
            if name not in ("classification", "localisation") or target in taken:
                dropped.add(place)
                continue
            taken.add(target)
            mended[place] |= {"bbox": order[target]["bbox"], "category_id": order[target]["category_id"]}
        kept = [record for place, record in enumerate(mended) if place not in dropped]
        assert found.ap50 + found.costs[name] == pytest.approx(by_pycocotools(truth, kept).stats[1], abs=1e-12), name
    rest = [a for row, a in enumerate(order) if not found.is_missed[row]]
    less = by_pycocotools({**truth, "annotations": rest}, results).stats[1]
    assert found.ap50 + found.costs["missed"] == pytest.approx(less, abs=1e-12)


def test_without_objects_everything_is_background_and_without_detections_everything_is_missed() -> None:
    truth, results = set_of([(1, A, BOX)], [(1, A, BOX, 0.9), (1, B, FAR, 0.8)])
    empty = split({**truth, "annotations": []}, results)
    assert empty.counts["background"] == 2
    assert (empty.kinds == BACKGROUND).all()
    assert np.isnan(empty.ap50)
    none = split(truth, [])
    assert (none.counts["missed"], none.ap50) == (1, 0.0)
