from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from detector.data.problems import Findings, Problem
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.results_file import checked_results, read_results
from detector.evaluation.scoring_arrays import GroundTruth, Results

SetOf: TypeAlias = Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]
Reference: TypeAlias = Callable[[dict[str, Any], list[dict[str, Any]]], COCOeval]
HUGE = 2**70  # an id that takes more than 64 bits
TRUTH = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (HUGE, 5, 8)],
    "categories": [{"id": 90, "name": "star"}, {"id": 7, "name": "circle"}],
    "annotations": [{"id": 0, "image_id": 5, "category_id": 7, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}],
}


def result(box: Any = (1, 2, 3, 4), score: Any = 0.9, **changes: Any) -> dict[str, Any]:
    return {"image_id": 5, "category_id": 7, "bbox": list(box), "score": score, **changes}


def checked(records: Any, **settings: Any) -> tuple[Results, tuple[Problem, ...]]:
    findings = Findings("results.json")
    return checked_results(records, GroundTruth.of_mapping(TRUTH), findings, **settings), findings.problems


def test_results_become_columns_in_their_order_with_nothing_rounded() -> None:
    box = [1e-9, 2 / 3, 1e5 + 1e-9, 0.1]
    found, problems = checked([result(), result(box, 0.5 + 1e-12, image_id=HUGE, category_id=90)])
    assert (found.image_ranks.tolist(), found.category_ranks.tolist()) == ([0, 2], [0, 1])
    assert found.boxes_xywh.tolist() == [[1.0, 2.0, 3.0, 4.0], box]
    assert found.scores.tolist() == [0.9, 0.5 + 1e-12]
    assert problems == ()
    assert found.to_records(GroundTruth.of_mapping(TRUTH))[1] == result(box, 0.5 + 1e-12, image_id=HUGE, category_id=90)


def test_numbers_of_numpy_are_accepted() -> None:
    record = {"image_id": np.int64(5), "category_id": np.int32(7), "score": np.float32(0.5)}
    found, problems = checked([{**record, "bbox": np.array([1, 2, 3, 4], np.float32)}])
    assert (found.boxes_xywh.tolist(), found.scores.tolist(), problems) == ([[1, 2, 3, 4]], [0.5], ())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (result([1, 2, math.nan, 4]), "bbox of results[1]: expected 4 finite numbers, got [1, 2, nan, 4]"),
        (result([1, 2, math.inf, 4]), "bbox of results[1]: expected 4 finite numbers"),
        (result([1, 2, 10**400, 4]), "bbox of results[1]: expected 4 finite numbers"),
        (result([1, 2, 3]), "bbox of results[1]: expected 4 finite numbers, got [1, 2, 3]"),
        (result([1, 2, 3, 4, 5]), "bbox of results[1]: expected 4 finite numbers"),
        (result([]), "bbox of results[1]: expected 4 finite numbers, got []"),
        (result([1, 2, "3", 4]), "bbox of results[1]: expected 4 finite numbers"),
        (result([1, 2, None, 4]), "bbox of results[1]: expected 4 finite numbers"),
        (result([1, 2, True, 4]), "bbox of results[1]: expected 4 finite numbers"),
        (result(bbox=None), "bbox of results[1]: expected 4 finite numbers, got None"),
        (result(bbox="1234"), "bbox of results[1]: expected 4 finite numbers, got '1234'"),
        (result([[1, 2], [3, 4]]), "bbox of results[1]: expected 4 finite numbers"),
        (result([1, 2, 1e200, 1e200]), "bbox of results[1]: expected an area within float64"),
        (result([1, 2, 1e-200, 1e-200]), "bbox of results[1]: expected an area within float64"),
        (result(score=math.nan), "score of results[1]: expected a finite number, got nan"),
        (result(score=-math.inf), "score of results[1]: expected a finite number, got -inf"),
        (result(score="0.5"), "score of results[1]: expected a finite number, got '0.5'"),
        (result(score=True), "score of results[1]: expected a finite number, got True"),
        (result(score=[0.5]), "score of results[1]: expected a finite number, got [0.5]"),
        (result(image_id=6), "image_id not in the annotation file: 6 (1 x, first results[1])"),
        (result(category_id=0), "category_id not in the annotation file: 0 (1 x, first results[1])"),
        (result(image_id=10.5), "image_id of results[1] must be a whole number, got 10.5"),
        (result(image_id=True), "image_id of results[1] must be a whole number, got True"),
        (result(image_id=[5]), "image_id of results[1] must be a whole number, got [5]"),
        (result(image_id=None), "image_id of results[1] must be a whole number, got None"),
        ({"image_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}, "category_id of results[1] is missing"),
        ({"image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4]}, "score of results[1] is missing"),
        ({"image_id": 5, "category_id": 7, "score": 1}, "bbox of results[1] is missing"),
        ("a text", "results[1]: expected an object, got 'a text'"),
        (None, "results[1]: expected an object, got None"),
        ([5, 7, [1, 2, 3, 4], 0.5], "results[1]: expected an object"),
    ],
)
def test_a_record_that_cannot_be_scored_is_rejected_with_its_position(record: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=rf"^results\.json cannot be used, 1 error: .*{re.escape(message)}"):
        checked([result(), record])


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    records = [result([1, 2, 3]), result(score=None), *[result(image_id=6)] * 3, *[result(category_id=1)] * 2]
    with pytest.raises(DatasetError) as caught:
        checked(records)
    text = str(caught.value)
    assert "4 errors" in text
    assert "results[0]" in text
    assert "results[1]" in text
    assert "6 (3 x, first results[2])" in text
    assert "category_id not in the annotation file: 1 (2 x, first results[5])" in text


def test_unknown_images_and_categories_are_skipped_and_counted_on_request() -> None:
    records = [result(image_id=6), result(), result(category_id=1), result(image_id=9, category_id=1)]
    found, problems = checked(records, ignore_unknown=True)
    assert len(found) == 1
    assert [(p.kind, p.outcome, p.count, p.examples) for p in problems] == [
        ("result of an unlisted image_id", "skipped", 2, ("results[0]", "results[3]")),
        ("result of an unlisted category_id", "skipped", 1, ("results[2]",)),
    ]


@pytest.mark.parametrize(
    ("records", "kind", "count"),
    [
        ([result(image_id="5"), result(score=0.1)], "identifier written as text or with a decimal point", 1),
        ([result(category_id=7.0)], "identifier written as text or with a decimal point", 1),
        ([result(), result([1, 2, 0, 4])], "box of zero width or height, a false positive", 1),
        ([result(), result([1, 2, -3, 4])], "box of negative width or height, a false positive", 1),
        ([result(), result(score=0.1), result()], "duplicate result, a false positive", 1),
        ([result()] * 101, "duplicate result, a false positive", 100),
        ([result(score=97)], "score outside 0..1", 1),
        ([result([20, 30, 95, 90]), result()], "box that looks like xyxy, expected xywh", 1),
        ([result([0.2, 0.3, 0.5, 0.4])], "box that looks normalised to 0..1, expected pixels", 1),
    ],
)
def test_odd_but_unambiguous_records_are_kept_and_counted(records: list[Any], kind: str, count: int) -> None:
    found, problems = checked(records)
    assert len(found) == len(records)
    assert [(p.kind, p.outcome, p.count) for p in problems] == [(kind, "accepted", count)]


def test_the_same_box_of_another_class_image_or_score_is_not_a_duplicate() -> None:
    records = [result(), result(category_id=90), result(image_id=8), result(score=0.8), result([1, 2, 3, 5])]
    assert checked(records)[1] == ()


def test_odd_boxes_are_scored_as_by_pycocotools(random_set: SetOf, by_pycocotools: Reference) -> None:
    truth, results = random_set(4)
    for position, record in enumerate(results):
        x, y, w, h = record["bbox"]
        record["bbox"] = ([x, y, 0.0, h], [x + w, y, -w, h], [x + w, y + h, -w, -h], [x, y, w, h])[position % 4]
    results += results[:40]
    found = score_results(truth, results).stats
    assert list(found.values()) == pytest.approx(by_pycocotools(truth, results).stats.tolist(), abs=1e-12)
    assert found["AP"] > 0.01


def test_nan_results_are_rejected_although_pycocotools_counts_them_as_matches(
    random_set: SetOf, by_pycocotools: Reference
) -> None:
    truth, results = random_set(4)
    broken = [{**r, "bbox": [math.nan] * 4} for r in results]
    assert by_pycocotools(truth, broken).stats[0] > 0.1  # the error that the check prevents
    for backend in ("pycocotools", "fast"):
        with pytest.raises(DatasetError, match=r"bbox of results\[0\]: expected 4 finite numbers, got \[nan"):
            score_results(truth, broken, backend=backend)  # type: ignore[arg-type]  # a plain text


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read, line 1, column 1: Expecting value"),
        (b'[{"image_id": 5},\n {]', "cannot be read, line 2, column 3"),
        (b"[" * 100_000, "cannot be read: it is nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "cannot be read: Exceeds the limit"),
        (b"[\xff\xfe]", "is not UTF-8 text at byte 1"),
        (b'{"annotations": []}', "expected a list of results, got dict; give the predictions"),
        (b"17", "expected a list of results, got int"),
        (b"[17]", "results[0]: expected an object, got 17"),
        (b'[{"image_id": 5, "category_id": 7, "bbox": [NaN, 1, 2, 3], "score": 1}]', "expected 4 finite numbers"),
        (b'[{"image_id": 5, "category_id": 7, "bbox": [1, 1, 1e999, 3], "score": 1}]', "expected 4 finite numbers"),
    ],
)
def test_a_file_that_is_not_a_list_of_results_is_rejected_with_its_name(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        read_results(path, GroundTruth.of_mapping(TRUTH))


def test_a_missing_file_and_a_folder_are_rejected(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DatasetError, match=f"cannot be read: {reason}"):
            read_results(path, GroundTruth.of_mapping(TRUTH))


def test_a_byte_order_mark_is_ignored_and_a_duplicate_key_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    text = '[{"image_id": 8, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}]'
    path.write_text(text, encoding="utf-8-sig")
    found, problems = read_results(path, GroundTruth.of_mapping(TRUTH))
    assert found.image_ranks.tolist() == [0]
    assert [(p.kind, p.count) for p in problems] == [("duplicate key in one object, the last is used", 1)]


def test_a_file_and_its_records_give_the_same_columns(tmp_path: Path, random_set: SetOf) -> None:
    truth, results = random_set(2)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    ground_truth = GroundTruth.of_mapping(truth)
    found, problems = read_results(path, ground_truth)
    assert problems == ()
    assert found.to_records(ground_truth) == results
