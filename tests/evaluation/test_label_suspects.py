from __future__ import annotations

from typing import Any

import pytest

from detector.data.problems import Findings
from detector.evaluation.label_suspects import Suspect, rank_suspects
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth

BOX, BESIDE, FAR = [50.0, 50, 20, 20], [60.0, 50, 20, 20], [150.0, 150, 20, 20]


def listed(
    labels: list[tuple[int, list[float]]],
    detections: list[tuple[int, list[float], float]],
    crowds: tuple[int, ...] = (),
) -> tuple[Suspect, ...]:
    """Of labels (category, box) and detections (category, box, score) in image 10 of two."""
    truth: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in (10, 20)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": n, "image_id": 10, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(n - 1 in crowds)}
            for n, (c, b) in enumerate(labels, start=1)
        ],
    }
    records = [{"image_id": 10, "category_id": c, "bbox": b, "score": s} for c, b, s in detections]
    ground_truth = GroundTruth.of_mapping(truth)
    return rank_suspects(ground_truth, checked_results(records, ground_truth, Findings("the test")))


def test_a_supported_label_is_hardly_suspect() -> None:
    (only,) = listed([(1, BOX)], [(1, BOX, 0.9)])
    assert (only.kind, only.suspicion) == ("extra", pytest.approx(0.08))


@pytest.mark.parametrize(
    ("detection", "kind"),
    [((2, BOX, 0.9), "class"), ((1, BESIDE, 0.9), "place"), ((1, FAR, 0.9), "missing")],
)
def test_a_contradiction_is_proposed(detection: tuple[int, list[float], float], kind: str) -> None:
    found = listed([(1, BOX)], [detection])
    proposal = next(suspect for suspect in found if suspect.kind == kind)
    assert (proposal.proposed_category_id, proposal.proposed_bbox, proposal.score) == (
        detection[0],
        tuple(detection[1]),
        pytest.approx(0.9),
    )
    assert proposal.bbox == (None if kind == "missing" else tuple(BOX))
    assert sorted(suspect.kind for suspect in found) == (["extra", "missing"] if kind == "missing" else [kind])
    assert proposal.image_id == 10


def test_a_label_without_any_detection_is_suspect_and_the_list_falls() -> None:
    found = listed([(1, BOX), (2, FAR)], [(2, FAR, 0.7)])
    assert [(suspect.kind, suspect.category_id) for suspect in found] == [("extra", 1), ("extra", 2)]
    assert found[0].suspicion > found[1].suspicion


def test_a_detection_of_another_label_is_no_sign_of_a_wrong_place() -> None:
    found = listed([(1, BOX), (1, BESIDE)], [(1, BESIDE, 0.9)])
    assert {suspect.kind for suspect in found} == {"extra"}


def test_a_place_is_listed_once_and_low_scores_are_not() -> None:
    found = listed([], [(1, BOX, 0.9), (2, BOX, 0.8), (1, [51.0, 50, 20, 20], 0.7), (1, FAR, 0.05)])
    assert [(suspect.kind, suspect.score) for suspect in found] == [("missing", pytest.approx(0.9))]


def test_crowd_regions_and_detections_in_them_are_not_listed() -> None:
    assert listed([(1, [40.0, 40, 60, 60])], [(1, BOX, 0.9)], crowds=(0,)) == ()
