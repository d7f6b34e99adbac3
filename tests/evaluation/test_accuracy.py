from __future__ import annotations

import json
import math

import numpy as np
import pytest

from detector.evaluation.accuracy import classification_metrics

NAMES = tuple("abcdefg")


def reference(logits: list[list[float]], labels: list[int], top: int) -> float:
    """The share of rows whose class is among the `top` first of a stable sort, by falling score."""
    right = 0
    for row, label in zip(logits, labels, strict=True):
        if all(math.isfinite(score) for score in row):
            right += label in sorted(range(len(row)), key=lambda index: -row[index])[:top]
    return right / len(labels)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_accuracy_confusion_and_entropy_equal_a_plain_loop_also_with_equal_scores(levels: int) -> None:
    rng = np.random.default_rng(levels)
    logits = rng.integers(0, levels, (60, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 60)
    found = classification_metrics(logits, labels, NAMES)
    rows, wanted = logits.astype(float).tolist(), labels.tolist()
    assert found.headline == found.stats["top1"] == reference(rows, wanted, 1)
    assert found.stats["top5"] == reference(rows, wanted, 5)
    confusion = np.zeros((7, 7), np.int64)
    entropy = 0.0
    for row, label in zip(rows, wanted, strict=True):
        confusion[label, row.index(max(row))] += 1
        entropy += math.log(sum(math.exp(score - row[label]) for score in row)) if levels < 1000 else 0.0
    assert found.confusion.tolist() == confusion.tolist()
    if levels < 1000:
        assert found.stats["entropy"] == pytest.approx(entropy / 60, rel=1e-12)
    for index, row in enumerate(found.classes):
        assert (row.name, row.num_images) == (NAMES[index], wanted.count(index))
        assert row.num_right == confusion[index, index]
        assert row.accuracy == confusion[index, index] / wanted.count(index)
    assert found.stats["mean_class"] == pytest.approx(sum(row.accuracy for row in found.classes) / 7, rel=1e-12)


def test_huge_scores_do_not_overflow() -> None:
    found = classification_metrics(np.array([[1e4, -1e4], [3e4, 3e4]]), np.array([1, 0]), ("a", "b"))
    assert found.stats["entropy"] == pytest.approx((2e4 + math.log(2)) / 2, rel=1e-12)


def test_an_image_with_nan_scores_is_wrong_and_in_no_column() -> None:
    logits = np.eye(3)
    logits[1, 1], logits[2, 0] = np.nan, -np.inf
    found = classification_metrics(logits, np.arange(3), ("a", "b", "c"))
    assert found.stats["top1"] == 1 / 3
    assert (found.num_images, found.num_without_answer, int(found.confusion.sum())) == (3, 2, 1)
    assert [row.accuracy for row in found.classes] == [1.0, 0.0, 0.0]


def test_top5_is_reported_only_with_more_than_five_classes() -> None:
    scores = np.zeros((2, 5))
    assert "top5" not in classification_metrics(scores, np.zeros(2, np.int64), NAMES[:5]).stats
    assert "metrics/top5" in classification_metrics(np.zeros((2, 6)), np.zeros(2, np.int64), NAMES[:6]).columns()


def test_without_images_numbers_are_nan_and_null_in_json() -> None:
    found = classification_metrics(np.zeros((0, 2)), np.zeros(0, np.int64), ("a", "b"))
    assert math.isnan(found.headline)
    plain = json.loads(json.dumps(found.to_plain()))
    assert (plain["top1"], plain["classes"][0]["accuracy"], plain["confusion"]) == (None, None, [[0, 0], [0, 0]])


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    found = classification_metrics(np.array([[2.0, 1.0]]), np.zeros(1, np.int64), ("a", "b"))
    assert math.isnan(found.classes[1].accuracy)
    assert found.stats["mean_class"] == 1.0
