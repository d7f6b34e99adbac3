from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detector.data.problems import Findings
from detector.errors import ConfigError
from detector.evaluation.confidence import RankedScores, Target, calibrate, choose_threshold, choose_thresholds
from detector.evaluation.ranking import Ranking
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth

Scored = tuple[dict[str, Any], list[dict[str, Any]]]


def counts(scores: list[float], right: list[int], num_objects: int) -> RankedScores:
    return RankedScores(np.array(scores, np.float64), np.array(right, np.bool_), num_objects)


def ranking_of(truth: dict[str, Any], results: list[dict[str, Any]]) -> Ranking:
    ground_truth = GroundTruth.of_mapping(truth)
    return Ranking.of(ground_truth, checked_results(results, ground_truth, Findings("the test")))


def test_precision_recall_and_f1_at_a_threshold_equal_those_of_counting() -> None:
    some = counts([0.9, 0.8, 0.8, 0.3], [1, 0, 1, 1], 5)
    precision, recall, f1 = some.at(np.array([0.95, 0.9, 0.8, 0.5, 0.3, 0.0]))
    np.testing.assert_array_equal(precision, [np.nan, 1, 2 / 3, 2 / 3, 3 / 4, 3 / 4])
    np.testing.assert_array_equal(recall, [0, 1 / 5, 2 / 5, 2 / 5, 3 / 5, 3 / 5])
    np.testing.assert_allclose(f1, [0, 2 / 6, 4 / 8, 4 / 8, 6 / 9, 6 / 9], rtol=1e-15)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("text", ["f1", "precision=0.7", "recall=0.3"])
def test_the_threshold_equals_the_best_of_all_scores_with_pycocotools_matches(
    seed: int, text: str, random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(seed)
    if not results or not truth["annotations"]:
        pytest.skip("pycocotools scores no empty set")
    target = Target.parse(text)
    ranking = ranking_of(truth, results)
    overall, by_class = choose_thresholds(ranking, target)
    scored: list[tuple[int, float, bool]] = []
    for entry in by_pycocotools(truth, results).evalImgs:
        if entry is not None and entry["aRng"] == [0, 1e10]:
            for score, match, ignored in zip(
                entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
            ):
                if not ignored:
                    scored.append((entry["category_id"], score, match > 0))
    categories = sorted(c["id"] for c in truth["categories"])
    for found, wanted in [(overall, categories), *((t, [c]) for t, c in zip(by_class, categories, strict=True))]:
        own = [(score, right) for category, score, right in scored if category in wanted]
        num = sum(a["category_id"] in wanted and not a["iscrowd"] for a in truth["annotations"])
        if not own or not num:
            assert found is None
            continue
        assert found is not None
        tried = []
        for threshold in sorted({score for score, _ in own}, reverse=True):
            kept = [right for score, right in own if score >= threshold]
            tried.append((sum(kept) / len(kept), sum(kept) / num, 2 * sum(kept) / (len(kept) + num), len(kept)))
        if text == "f1":
            expected = max(tried, key=lambda row: row[2])
        else:
            reaching, gained = (0, 1) if text.startswith("precision") else (1, 0)
            enough = [row for row in tried if row[reaching] >= (target.value or 0)]
            assert found.is_reached == bool(enough)
            expected = max(enough or tried, key=lambda row: row[gained if enough else reaching])
        assert (found.precision, found.recall, found.f1) == pytest.approx(expected[:3], abs=1e-12)
        assert sum(score >= found.confidence for score, _ in own) == expected[3]


def test_a_threshold_is_midway_between_kept_and_dropped_scores() -> None:
    found = choose_threshold(counts([0.9, 0.8, 0.4], [1, 1, 0], 2), Target())
    assert found is not None
    assert found.confidence == pytest.approx(0.6, abs=1e-15)
    assert (found.precision, found.recall, found.f1) == (1, 1, 1)
    lowest = choose_threshold(counts([0.9, 0.8], [1, 1], 2), Target())
    assert lowest is not None
    assert lowest.confidence == 0.8


def test_an_unreachable_target_gives_the_nearest_threshold() -> None:
    found = choose_threshold(counts([0.9, 0.8, 0.4], [0, 1, 1], 4), Target("precision", 0.9))
    assert found is not None
    assert (found.is_reached, found.precision) == (False, 2 / 3)
    found = choose_threshold(counts([0.9, 0.8, 0.4], [0, 1, 1], 4), Target("recall", 0.9))
    assert found is not None
    assert (found.is_reached, found.recall) == (False, 0.5)
    assert choose_threshold(counts([], [], 4), Target()) is None
    assert choose_threshold(counts([0.5], [0], 0), Target()) is None


@pytest.mark.parametrize("text", ["f2", "precision", "precision=", "precision=1.2", "recall=0", "f1=0.5", "recall=nan"])
def test_an_unknown_target_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected f1, precision=0\.9 or recall=0\.8"):
        Target.parse(text)


def test_the_calibration_error_equals_a_sum_over_bins() -> None:
    rng = np.random.default_rng(0)
    scores = np.sort(np.concatenate([rng.random(500), [0.0, 0.1, 0.2, 0.3, 0.7, 1.0]]))[::-1]
    right = rng.random(len(scores)) < scores**2
    found = calibrate(RankedScores(scores, right, 300))
    error, largest, total = 0.0, 0.0, 0
    for b in range(10):
        own = [(s, r) for s, r in zip(scores, right, strict=True) if min(int(s * 10 + 1e-9), 9) == b]
        gap = abs(math.fsum(s for s, _ in own) - sum(r for _, r in own))
        assert found.counts[b] == len(own)
        error, largest, total = error + gap, max(largest, gap / len(own)), total + len(own)
    assert total == len(scores) == found.counts.sum()
    assert found.error == pytest.approx(error / total, abs=1e-12)
    assert found.largest_error == pytest.approx(largest, abs=1e-12)
    assert found.excess == pytest.approx(scores.mean() - right.mean(), abs=1e-12)
    assert found.excess > 0.1


def test_calibrated_scores_have_almost_no_error_and_the_lowest_score_is_applied() -> None:
    rng = np.random.default_rng(1)
    scores = np.sort(rng.random(200_000))[::-1]
    honest = calibrate(RankedScores(scores, rng.random(len(scores)) < scores, 1))
    assert honest.error < 0.005
    upper = calibrate(RankedScores(scores, np.zeros(len(scores), np.bool_), 1), lowest=0.6)
    assert upper.counts[:6].sum() == 0
    assert upper.error == pytest.approx(0.8, abs=0.01)
    assert math.isnan(calibrate(counts([], [], 3)).error)
