from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.data.coco import read_coco
from detector.evaluation.coco_metrics import STAT_NAMES, score_results


def truth_of(boxes: list[list[float]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (5, 8)],
        "categories": [{"id": 7, "name": "circle"}, {"id": 90, "name": "star"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 7, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for i, b in enumerate(boxes, start=1)
        ],
    }


def result(box: list[float], score: float = 0.9, **changes: Any) -> dict[str, Any]:
    return {"image_id": 5, "category_id": 7, "bbox": box, "score": score, **changes}


def score(folder: Path, truth: Any, results: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    """Return exit code, JSON and stderr of `detector evaluate --results`."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    words = ["--results", str(folder / "results.json"), "--annotations", str(folder / "truth.json"), "--json"]
    code = run(["evaluate", *words])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.out, captured.err


def test_results_file_gives_the_metrics_of_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_of([[10, 10, 40, 40], [60, 60, 30, 30], [5, 70, 20, 20]])
    results = [result([11, 10, 40, 41]), result([61, 58, 30, 30], 0.7), result([0, 0, 9, 9], 0.8, image_id=8)]
    expected = score_results(truth, results)
    code, found, _ = score(tmp_path, truth, results, capsys)
    assert code == 0
    assert 0.3 < expected.ap < 0.7
    wanted = {**expected.to_plain(), "num_skipped": 0, "conditions": None}
    assert {key: found[key] for key in wanted} == wanted
    assert found["ground_truth"] == {
        "file": str(tmp_path / "truth.json"),
        "sha256": hashlib.sha256((tmp_path / "truth.json").read_bytes()).hexdigest(),
    }
    assert found["results"]["sha256"] == hashlib.sha256((tmp_path / "results.json").read_bytes()).hexdigest()


def test_results_are_scored_in_float64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_of([[0, 0, 10, 10]])
    # An IoU above or below 0.9 by less than the precision of float32: 10 * 9 / 100.
    code, above, _ = score(tmp_path, truth, [result([0, 0, 10, 9 + 1e-9])], capsys)
    assert (code, above["AP"]) == (0, pytest.approx(0.9, abs=1e-12))
    code, below, _ = score(tmp_path, truth, [result([0, 0, 10, 9 - 1e-9])], capsys)
    assert (code, below["AP"]) == (0, pytest.approx(0.8, abs=1e-12))
    # Scores are not rounded either: the score of the false positive is higher by 1e-12.
    pair = [result([0, 0, 10, 10], 0.5), result([50, 50, 9, 9], 0.5 + 1e-12)]
    code, found, _ = score(tmp_path, truth, pair, capsys)
    assert (code, found["AP"]) == (0, pytest.approx(0.5, abs=1e-12))


def test_metric_without_ground_truth_is_printed_as_not_available(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = score(tmp_path, truth_of([]), [], capsys)
    assert (code, found["AP"], found["num_objects"]) == (0, None, 0)
    assert run(["evaluate", "--results", f"{tmp_path}/results.json", "--annotations", f"{tmp_path}/truth.json"]) == 0
    table = capsys.readouterr().out.replace(str(tmp_path), "folder")
    # Twelve metrics, precision and recall, four metrics of each of two classes, and the note about n/a.
    assert table.count("n/a") == 12 + 2 + 4 * 2 + 1
    assert table.endswith("n/a: no ground truth\n")
    assert "-1" not in table
    assert "nan" not in table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"annotations": []}', "expected a list of results, got dict"),
        (
            '[{"image_id": 5, "category_id": 7, "bbox": [NaN, 1, 2, 3], "score": 1}]',
            "bbox of results[0]: expected 4 finite",
        ),
        (
            '[{"image_id": 5, "category_id": 7, "bbox": [1, 1, 1e999, 3], "score": 1}]',
            "bbox of results[0]: expected 4 finite",
        ),
        (
            '[{"image_id": 99, "category_id": 7, "bbox": [1, 1, 2, 3], "score": 1}]',
            "image_id not in the annotation file: 99",
        ),
    ],
)
def test_results_file_that_cannot_be_scored_ends_with_exit_code_3(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, complaint = score(tmp_path, truth_of([[1, 2, 3, 4]]), content, capsys)
    assert code == 3
    assert message in complaint
    assert complaint.splitlines()[-1].startswith("detector evaluate: ")
    assert "Traceback" not in complaint


def test_missing_results_file_ends_with_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(truth_of([])))
    missing = str(tmp_path / "none.json")
    assert run(["evaluate", "--results", missing, "--annotations", str(tmp_path / "truth.json")]) == 3
    assert missing in capsys.readouterr().err
    assert run(["evaluate", "--results", missing]) == 2
    assert "--annotations" in capsys.readouterr().err


def test_boxes_skipped_in_the_ground_truth_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = [[float(x), 0.0, 5.0, 5.0] for x in range(0, 60, 5)] + [[0.0, 50.0, 5.0, 0.0]]
    code, found, told = score(tmp_path, truth_of(boxes), [], capsys)
    assert (code, found["num_objects"]) == (0, 12)
    assert "1 x box of zero width or height, skipped" in told


def test_published_example_of_coco_has_its_published_ap(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, results = (data_folder / "coco-golden" / name for name in ("instances.json", "results.json"))
    if not results.is_file():
        pytest.skip(f"{results} does not exist")
    expected = score_results(read_coco(annotations, None).ground_truth(), json.loads(results.read_text()))
    assert run(["evaluate", "--results", str(results), "--annotations", str(annotations), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [printed[name] for name in STAT_NAMES] == list(expected.stats.values())
    assert round(printed["AP"], 3) == 0.505
