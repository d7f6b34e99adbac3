from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detector.data.problems import Findings
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.ranking import Ranking, mean_precision, weighted_precision
from detector.evaluation.resampling import bootstrap, draw_weights, over_seeds, paired_test
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth

Scored = tuple[dict[str, Any], list[dict[str, Any]]]


def ranking_of(truth: dict[str, Any], results: list[dict[str, Any]]) -> Ranking:
    ground_truth = GroundTruth.of_mapping(truth)
    return Ranking.of(ground_truth, checked_results(results, ground_truth, Findings("the test")))


def resampled(truth: dict[str, Any], results: list[dict[str, Any]], weights: np.ndarray) -> Scored:
    """The set in which each image, by ascending id, is repeated by its weight, copies after one another."""
    images: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for image, weight in zip(sorted(truth["images"], key=lambda i: i["id"]), weights.tolist(), strict=True):
        for _ in range(weight):
            new = len(images) + 1
            images.append({**image, "id": new})
            copies += [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == image["id"]]
            records += [{**r, "image_id": new} for r in results if r["image_id"] == image["id"]]
    annotations = [{**a, "id": number} for number, a in enumerate(copies, start=1)]
    return {**truth, "images": images, "annotations": annotations}, records


def untied(seed: int) -> int:
    """A seed of `random_set` without equal scores, whose order within an image is undefined."""
    return seed if seed % 3 else seed + 1


@pytest.mark.parametrize("seed", range(12))
def test_weights_of_one_give_the_bits_of_pycocotools(
    seed: int, random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(seed)
    if not results or not truth["annotations"]:
        pytest.skip("pycocotools scores no empty set")
    found = bootstrap(ranking_of(truth, results), num_resamples=2)
    assert [i.value for i in found.stats.values()] == by_pycocotools(truth, results).stats[:3].tolist()
    by_class = score_results(truth, results).classes
    assert [i.value for i in found.class_ap] == pytest.approx([c.ap for c in by_class], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_each_resample_has_the_ap_of_pycocotools_for_the_set_with_copied_images(
    seed: int, random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(untied(seed))
    ranking = ranking_of(truth, results)
    weights = draw_weights(len(truth["images"]), 8, seed)
    compared = 0
    for row, precision in zip(weights, weighted_precision(ranking, weights, weights), strict=True):
        drawn_truth, drawn = resampled(truth, results, row)
        if not drawn or not drawn_truth["annotations"]:
            continue
        stats = by_pycocotools(drawn_truth, drawn).stats
        expected = np.where(stats[:3] < 0, np.nan, stats[:3])
        found = [mean_precision(precision), mean_precision(precision[0]), mean_precision(precision[5])]
        np.testing.assert_array_equal(found, expected)
        compared += 1
    assert compared >= 6


def test_the_interval_equals_that_of_brute_force_resampling(
    random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(4)
    found = bootstrap(ranking_of(truth, results), num_resamples=60, seed=3)
    drawn = []
    for row in draw_weights(len(truth["images"]), 60, 3):
        ap = by_pycocotools(*resampled(truth, results, row)).stats[0]
        drawn.append(ap)
    low, high = np.quantile(np.array(drawn, np.float64), [0.025, 0.975])
    interval = found.stats["AP"]
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
    assert interval.deviation == pytest.approx(np.std(drawn, ddof=1), abs=1e-12)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("seed", [1, 4])
def test_the_interval_of_small_objects_is_around_the_ap_that_is_reported(
    seed: int, random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(seed)
    ground_truth = GroundTruth.of_mapping(truth)
    detections = checked_results(results, ground_truth, Findings("the test"))
    small = Ranking.of(ground_truth, detections, area=1)
    assert len(small.object_images)
    found = bootstrap(ranking_of(truth, results), small, num_resamples=100)
    interval, plain = found.stats["APs"], bootstrap(ranking_of(truth, results), num_resamples=100)
    assert interval.value == by_pycocotools(truth, results).stats[3]
    assert interval.low <= interval.value <= interval.high
    assert {name: found.stats[name] for name in plain.stats} == plain.stats
    none = Ranking.of(ground_truth, detections, area=1)
    none = dataclasses.replace(none, object_images=none.object_images[:0], object_ends=none.object_ends * 0)
    assert "APs" not in bootstrap(ranking_of(truth, results), none, num_resamples=2).stats


def test_every_resample_has_as_many_images_as_the_set_and_a_seed_repeats_it() -> None:
    weights = draw_weights(37, 500, 1)
    assert (weights.sum(axis=1) == 37).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(37), abs=0.2)
    np.testing.assert_array_equal(weights, draw_weights(37, 500, 1))
    assert not np.array_equal(weights, draw_weights(37, 500, 2))


def test_the_interval_covers_the_true_value_at_about_the_nominal_rate() -> None:
    """Images of one object that is detected with probability 0.6: AP of many images is known, of 60 it varies."""
    rng = np.random.default_rng(0)

    def drawn_set(num_images: int) -> Scored:
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 50, "width": 50} for i in range(num_images)]
        objects = [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
            for i in range(num_images)
        ]
        results = [
            {"image_id": i, "category_id": 1, "bbox": [0 if hit else 30, 0, 10, 10], "score": float(rng.random())}
            for i, hit in enumerate(rng.random(num_images) < 0.6)
        ]
        return {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": objects}, results

    true_ap = bootstrap(ranking_of(*drawn_set(20_000)), num_resamples=2).stats["AP"].value
    intervals = [bootstrap(ranking_of(*drawn_set(60)), num_resamples=200).stats["AP"] for _ in range(60)]
    share = np.mean([i.low <= true_ap <= i.high for i in intervals])
    assert 0.82 <= share <= 1.0  # the 95 % interval; percentile intervals of small sets are a little too short


def worsened(results: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The same results with some moved away."""
    rng = np.random.default_rng(seed)
    moved = copy.deepcopy(results)
    for record in moved:
        if rng.random() < share:
            record["bbox"][0] += 1.5 * record["bbox"][2]
    return moved


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_paired_test_equals_that_of_brute_force(
    seed: int, random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(seed)
    other = worsened(results, 0.3, seed)
    image_ids = sorted(image["id"] for image in truth["images"])
    found = paired_test(ranking_of(truth, other), ranking_of(truth, results), num_resamples=20, seed=7)

    def ap(images: dict[str, Any], records: list[dict[str, Any]]) -> float:
        return float(by_pycocotools(images, records).stats[0])

    own = ap(truth, results) - ap(truth, other)
    assert found.difference.value == pytest.approx(own, abs=1e-12)
    swaps = np.random.default_rng(7).integers(0, 2, (20, len(image_ids)), dtype=np.int32)
    count = 0
    for row in swaps:
        is_swapped = dict(zip(image_ids, row.tolist(), strict=True))
        first = [r for r in other if not is_swapped[r["image_id"]]] + [r for r in results if is_swapped[r["image_id"]]]
        second = [r for r in results if not is_swapped[r["image_id"]]] + [r for r in other if is_swapped[r["image_id"]]]
        count += abs(ap(truth, second) - ap(truth, first)) >= abs(own) - 1e-12
    assert found.p_value == (1 + count) / 21
    weights = draw_weights(len(image_ids), 20, 7)
    drawn = [ap(*resampled(truth, results, row)) - ap(*resampled(truth, other, row)) for row in weights]
    assert (found.difference.low, found.difference.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-12)
    assert found.share_better == np.mean(np.array(drawn) > 0)


def test_a_model_is_not_better_than_itself_but_better_than_a_degraded_copy(random_set: Callable[[int], Scored]) -> None:
    truth, results = random_set(4)
    ranking = ranking_of(truth, results)
    same = paired_test(ranking, ranking, num_resamples=50)
    assert (same.difference.value, same.p_value, same.share_better) == (0.0, 1.0, 0.5)
    ruin = paired_test(ranking_of(truth, worsened(results, 1.0, 0)), ranking, num_resamples=200)
    assert ruin.p_value < 0.03
    assert ruin.share_better > 0.99
    back = paired_test(ranking, ranking_of(truth, worsened(results, 1.0, 0)), num_resamples=200)
    assert back.difference.value == -ruin.difference.value
    assert back.p_value == ruin.p_value


def test_p_values_of_equal_models_are_uniform() -> None:
    """Two models that differ by chance alone: about one in five pairs has a p-value below 0.2."""
    rng = np.random.default_rng(5)
    num_images = 40
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 50, "width": 50} for i in range(num_images)]
    objects = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
        for i in range(num_images)
    ]
    truth = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": objects}

    def drawn_ranking() -> Ranking:
        hits = rng.random(num_images) < 0.6
        boxes = [[0 if hit else 30, 0, 10, 10] for hit in hits]
        scores = rng.random(num_images)
        records = [
            {"image_id": i, "category_id": 1, "bbox": boxes[i], "score": float(scores[i])} for i in range(num_images)
        ]
        return ranking_of(truth, records)

    p_values = [paired_test(drawn_ranking(), drawn_ranking(), num_resamples=99).p_value for _ in range(100)]
    assert 0.08 < np.mean(np.array(p_values) <= 0.2) < 0.34  # 0.2 plus or minus three and a half deviations
    assert 0.35 < np.mean(np.array(p_values) <= 0.5) < 0.65


def test_results_on_other_images_are_rejected(random_set: Callable[[int], Scored]) -> None:
    with pytest.raises(DatasetError, match="same ground truth"):
        paired_test(ranking_of(*random_set(1)), ranking_of(*random_set(2)))


def test_a_set_without_objects_has_no_interval(random_set: Callable[[int], Scored]) -> None:
    truth, results = random_set(1)
    found = bootstrap(ranking_of({**truth, "annotations": []}, results), num_resamples=5)
    assert all(math.isnan(i.value) and math.isnan(i.low) for i in found.stats.values())
    assert str(found.stats["AP"]) == "n/a"


def test_mean_and_deviation_over_seeds() -> None:
    found = over_seeds([0.5, 0.6, 0.7])
    assert (found.mean, found.deviation, found.low, found.high) == pytest.approx((0.6, 0.1, 0.5, 0.7), abs=1e-15)
    assert found.num_runs == 3
    assert math.isnan(over_seeds([0.5]).deviation)
