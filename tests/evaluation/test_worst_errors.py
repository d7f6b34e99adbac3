from __future__ import annotations

from typing import Any

import pytest

from detector.data.problems import Findings
from detector.evaluation.error_split import ErrorSplit, split_errors
from detector.evaluation.ranking import Ranking
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.evaluation.worst_errors import confident_false_positives, missed_objects, suspect_labels

BOX, WIDE, FAR = [0.0, 0, 10, 10], [20.0, 0, 40, 40], [100.0, 100, 10, 10]


def parts(
    objects: list[tuple[int, int, list[float]]], detections: list[tuple[int, int, list[float], float]], crowd: int = -1
) -> tuple[GroundTruth, Results, Ranking, ErrorSplit]:
    """Of objects (image, category, box) and detections (image, category, box, score)."""
    truth: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in (10, 20)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(n == crowd + 1)}
            for n, (i, c, b) in enumerate(objects, start=1)
        ],
    }
    records = [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in detections]
    ground_truth = GroundTruth.of_mapping(truth)
    results = checked_results(records, ground_truth, Findings("the test"))
    ranking = Ranking.of(ground_truth, results)
    return ground_truth, results, ranking, split_errors(ground_truth, results, ranking)


def test_the_most_confident_false_positives_of_each_kind_come_first() -> None:
    detections = [(10, 1, FAR, s / 10) for s in range(1, 9)] + [(10, 2, BOX, 0.35), (10, 1, BOX, 0.9)]
    found = confident_false_positives(*parts([(10, 1, BOX)], detections), num_each=3)
    assert [(m.kind, m.score) for m in found] == [
        ("classification", 0.35),
        ("background", 0.8),
        ("background", 0.7),
        ("background", 0.6),
    ]
    first = found[0]
    assert (first.image_id, first.detected_as, first.labelled_as, first.overlap) == (10, "b", "a", 1.0)
    assert first.labelled_xywh == first.detected_xywh == tuple(BOX)
    assert (found[1].labelled_xywh, found[1].overlap) == (None, None)
    assert first.to_plain()["detected_xywh"] == BOX
    assert "image" not in first.to_plain()


def test_missed_objects_are_sorted_by_size_and_low_scores_do_not_count() -> None:
    truth, _, ranking, _ = parts(
        [(10, 1, BOX), (20, 2, WIDE), (20, 1, FAR), (10, 2, [50.0, 50, 90, 90])],
        [(10, 1, BOX, 0.9), (20, 1, FAR, 0.2)],
        crowd=3,
    )
    found = missed_objects(truth, ranking, 0.5)
    assert [(m.kind, m.image_id, m.labelled_as, m.labelled_xywh) for m in found] == [
        ("missed", 20, "b", tuple(WIDE)),
        ("missed", 20, "a", tuple(FAR)),
    ]
    assert len(missed_objects(truth, ranking, 0.1)) == 1
    assert len(missed_objects(truth, ranking, 0.5, num=1)) == 1


def test_labels_are_suspected_where_a_confident_detection_contradicts_them() -> None:
    detections = [
        (10, 1, BOX, 0.9),  # right: nothing to suspect
        (10, 2, BOX, 0.95),  # another class, but its object is detected: the model's mistake
        (10, 2, [61.0, 0, 10, 10], 0.8),  # another class on an object without a match of its own class
        (10, 1, [100.0, 105, 10, 10], 0.7),  # partly on an object without a match
        (20, 1, FAR, 0.85),  # no annotation there
        (20, 2, [101.0, 100, 10, 10], 0.84),  # the same place again
        (20, 1, [150.0, 0, 10, 10], 0.3),  # too weak a contradiction
    ]
    objects = [(10, 1, BOX), (10, 1, [60.0, 0, 10, 10]), (10, 1, FAR), (20, 2, WIDE)]
    truth, results, _, _ = parts(objects, detections)
    found = suspect_labels(truth, results)
    assert [(m.kind, m.score, m.advice) for m in found] == [
        ("classification", 0.8, "is this a of class b?"),
        ("localisation", 0.7, "is the box of this a in the right place?"),
        ("missed", None, "is anything of class b here?"),  # no detection overlaps it
        ("background", 0.85, "is a label of class a missing here?"),
    ]
    assert [(m.detected_as, m.labelled_as) for m in found] == [("b", "a"), ("a", "a"), (None, "b"), ("a", None)]
    assert found[0].overlap == pytest.approx(9 / 11)
    assert found[1].overlap == pytest.approx(1 / 3)
    assert found[2].overlap is None
    assert found[3].overlap is None
    assert len(suspect_labels(truth, results, num=2)) == 2


def test_a_set_without_objects_or_detections_has_no_mistakes() -> None:
    truth, results, ranking, split = parts([], [])
    assert confident_false_positives(truth, results, ranking, split) == ()
    assert missed_objects(truth, ranking, 0.5) == ()
    assert suspect_labels(truth, results) == ()
