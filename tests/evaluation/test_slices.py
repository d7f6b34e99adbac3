from __future__ import annotations

import contextlib
import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.problems import Findings
from detector.evaluation.confusion import confusion_matrix
from detector.evaluation.ranking import Ranking
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.evaluation.slices import (
    ASPECT_EDGES,
    SIZE_EDGES_PX,
    aspect_slices,
    crowding_slices,
    overlap_slices,
    size_slices,
)

Scored = tuple[dict[str, Any], list[dict[str, Any]]]


def columns(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[GroundTruth, Results, Ranking]:
    ground_truth = GroundTruth.of_mapping(truth)
    found = checked_results(results, ground_truth, Findings("the test"))
    return ground_truth, found, Ranking.of(ground_truth, found)


def by_range(truth: dict[str, Any], results: list[dict[str, Any]], edges: list[float]) -> list[tuple[float, float]]:
    """AP and AP50 within ranges of the key `area`, which pycocotools reads from objects and results."""
    with contextlib.redirect_stdout(io.StringIO()):
        objects, found = COCO(), COCO()
        objects.dataset = copy.deepcopy(truth)
        rows = [{**r, "id": n, "iscrowd": 0} for n, r in enumerate(copy.deepcopy(results), start=1)]
        found.dataset = {**copy.deepcopy(truth), "annotations": rows}
        objects.createIndex()
        found.createIndex()
        evaluation = COCOeval(objects, found, "bbox")
        pairs = list(itertools.pairwise(edges))
        evaluation.params.areaRng, evaluation.params.areaRngLbl = pairs, [str(p) for p in pairs]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]
    numbers = []
    for area in range(len(pairs)):
        known = [p[p > -1] for p in (precision[..., area], precision[0, ..., area])]
        ap, ap50 = (float(k.mean()) if len(k) else math.nan for k in known)
        numbers.append((ap, ap50))
    return numbers


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ap_by_size_and_aspect_equals_that_of_pycocotools_with_other_ranges(
    seed: int, random_set: Callable[[int], Scored]
) -> None:
    truth, results = random_set(seed)
    ground_truth, found, _ = columns(truth, results)
    sized = [{**r, "area": r["bbox"][2] * r["bbox"][3]} for r in results]
    expected = by_range(truth, sized, [edge**2 for edge in SIZE_EDGES_PX])
    ours = [(s.ap, s.ap50) for s in size_slices(ground_truth, found)]
    np.testing.assert_array_equal(ours, expected)
    assert np.isfinite(ours).any()

    shaped = [{**r, "area": r["bbox"][2] / r["bbox"][3]} for r in results]
    shaped_truth = {
        **truth,
        "annotations": [{**a, "area": a["bbox"][2] / a["bbox"][3]} for a in truth["annotations"]],
    }
    expected = by_range(shaped_truth, shaped, list(ASPECT_EDGES))
    np.testing.assert_array_equal([(s.ap, s.ap50) for s in aspect_slices(ground_truth, found)], expected)


def test_ap_by_crowding_equals_that_of_the_images_alone(
    random_set: Callable[[int], Scored], by_pycocotools: Callable[..., Any]
) -> None:
    truth, results = random_set(1)
    ground_truth, _, ranking = columns(truth, results)
    num = {image["id"]: 0 for image in truth["images"]}
    for annotation in truth["annotations"]:
        num[annotation["image_id"]] += not annotation["iscrowd"]
    slices = crowding_slices(ground_truth, ranking)
    assert len(slices) == 3
    assert sum(s.num_objects for s in slices) == sum(num.values())
    for part in slices:
        words = part.name.split()
        low, high = int(words[0]), int(words[2] if words[1] == "to" else words[0])
        chosen = {image for image, count in num.items() if low <= count <= high}
        kept = {
            **truth,
            "images": [i for i in truth["images"] if i["id"] in chosen],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in chosen],
        }
        stats = by_pycocotools(kept, [r for r in results if r["image_id"] in chosen]).stats
        assert (part.ap, part.ap50) == (stats[0], stats[1])


def box_set(objects: list[tuple[int, list[float]]], detections: list[tuple[int, list[float], float]]) -> Scored:
    """One image; objects (category, box), detections (category, box, score)."""
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 200, "width": 200}],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (c, box) in enumerate(objects, start=1)
        ],
    }
    return truth, [{"image_id": 1, "category_id": c, "bbox": b, "score": s} for c, b, s in detections]


def test_recall_by_overlap_counts_each_object_once() -> None:
    # Two overlap by 1/3 (5 of 15), two overlap nothing; one of each pair is detected.
    objects = [(1, [0.0, 0, 10, 10]), (2, [0.0, 5, 10, 10]), (1, [50.0, 0, 10, 10]), (1, [90.0, 0, 10, 10])]
    truth, results = box_set(objects, [(2, [0, 5, 10, 10], 0.9), (1, [50, 0, 10, 10], 0.8)])
    ground_truth, _, ranking = columns(truth, results)
    found = {s.name: (s.num_objects, s.recall) for s in overlap_slices(ground_truth, ranking)}
    assert found["no overlap"] == (2, 0.5)
    assert found["IoU 0.2 to 0.4"] == (2, 0.5)
    assert found["IoU 0 to 0.2"][0] == 0
    assert sum(num for num, _ in found.values()) == 4


def test_a_confusion_matrix_equals_that_computed_by_hand() -> None:
    objects = [(1, [0.0, 0, 10, 10]), (1, [30.0, 0, 10, 10]), (2, [60.0, 0, 10, 10]), (3, [90.0, 0, 10, 10])]
    detections = [
        (1, [0.0, 0, 10, 10], 0.9),  # right
        (2, [0.0, 0, 10, 10], 0.8),  # its object is taken: on nothing
        (2, [30.0, 1, 10, 10], 0.7),  # 1 detected as 2
        (1, [60.0, 0, 10, 10], 0.95),  # not 2 detected as 1: a right detection is matched first
        (2, [60.0, 0, 10, 9], 0.5),  # right
        (3, [90.0, 0, 10, 10], 0.1),  # below the threshold: missed
        (3, [150.0, 0, 10, 10], 0.6),  # on nothing
    ]
    ground_truth, found, ranking = columns(*box_set(objects, detections))
    matrix = confusion_matrix(ground_truth, found, ranking, 0.4)
    expected = [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [1, 1, 1, 0],
    ]
    assert matrix.tolist() == expected


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("confidence", [0.0, 0.6])
def test_a_confusion_matrix_counts_every_object_and_detection_once(
    seed: int, confidence: float, random_set: Callable[[int], Scored]
) -> None:
    truth, results = random_set(seed)
    ground_truth, found, ranking = columns(truth, results)
    matrix = confusion_matrix(ground_truth, found, ranking, confidence)
    assert matrix[:-1].sum(axis=1).tolist() == ranking.num_objects.tolist()
    is_shown = (ranking.scores >= confidence) & ~ranking.is_ignored[0]
    shown = np.bincount(ranking.labels[is_shown], minlength=len(matrix) - 1)
    assert matrix[:, :-1].sum(axis=0).tolist() == shown.tolist()
    right = np.bincount(ranking.labels[is_shown & ranking.is_right[0]], minlength=len(matrix) - 1)
    assert np.diag(matrix)[:-1].tolist() == right.tolist()
    assert matrix[-1, -1] == 0
