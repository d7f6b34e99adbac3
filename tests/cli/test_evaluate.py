"""Metrics of `detector evaluate` besides COCO's numbers, and the facts reported with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.data.coco import read_coco
from detector.evaluation.coco_metrics import Backend, score_results
from detector.evaluation.darknet_map import darknet_map
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth
from detector.evaluation.voc_ap import voc_map


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = run(words)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("backend", ["fast", "pycocotools"])
def test_both_back_ends_score_a_model_and_conditions_are_reported(
    backend: Backend, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained.weights), trained.data, "--backend", backend, "--limits", "1,300"]
    text = printed([*words, "--save-dir", str(tmp_path)], capsys)
    document = json.loads((tmp_path / "metrics.json").read_text())
    annotations = read_coco(trained.annotations, None)
    truth = GroundTruth.of_annotations(annotations)
    results, _ = read_results(tmp_path / "results.json", truth)
    expected = score_results(truth, results, backend=backend, other_limits=(300,))
    plain = json.loads(json.dumps(expected.to_plain()))
    assert {key: document[key] for key in plain} == plain
    assert document["conditions"] == {
        "confidence": 0.001,
        "nms": "plain",
        "iou": 0.7,
        "max_detections": 300,
        "class_agnostic": False,
        "input_hw": [64, 64],
        "fit": "letterbox",
        "arithmetic": "opencv",
        "views": None,
        "precision": "fp32",
        "min_per_class": 300,
    }
    sha256 = hashlib.sha256(trained.annotations.read_bytes()).hexdigest()
    assert document["ground_truth"] == {"file": str(trained.annotations), "sha256": sha256}
    for wanted in (
        f"ground truth {trained.annotations}, sha256 {sha256}",
        "confidence 0.001, suppression plain above IoU 0.7, at most 300 per image or 300 per class; "
        "input 64 x 64, letterbox, resized as by opencv",
        f"{expected.num_images} images, {expected.num_objects} objects ({expected.num_by_size['small']} small",
        f"{expected.num_detections} detections",
        f"scored by {expected.backend}",
        f"ground truth as scored: sha256 {truth.sha256}",
        f"AP@maxDets=300 {expected.other_limits['AP@maxDets=300']:.3f}",
    ):
        assert wanted in text, wanted
    for row in expected.classes:
        cells = next(line for line in text.splitlines() if line.startswith(row.name)).split()
        assert cells[-2:] == [str(row.num_objects), str(row.num_detections)]
    assert expected.ap > 0.1


@pytest.mark.parametrize("points", [0, 11])
def test_model_and_its_results_file_have_the_same_voc_ap(
    points: int, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--metric", "voc", "--points", str(points), "--match-iou", "0.6"]
    text = printed(["evaluate", str(trained.weights), trained.data, *options, "--save-dir", str(tmp_path)], capsys)
    truth = GroundTruth.of_annotations(read_coco(trained.annotations, None))
    results, _ = read_results(tmp_path / "results.json", truth)
    expected = voc_map(truth, results, points=points, iou_threshold=0.6)
    how = "11-point" if points else "area under the curve"
    assert f"Pascal VOC mAP ({how}, IoU 0.6) {expected.mean_ap:.4f}" in text
    files = ["--results", str(tmp_path / "results.json"), "--annotations", str(trained.annotations)]
    scored = json.loads(printed(["evaluate", *files, *options, "--json"], capsys))
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert (scored["metric"], scored["mean_ap"], scored["classes"]) == ("voc", expected.mean_ap, measured["classes"])
    assert expected.mean_ap > 0.1


def test_darknet_metric_uses_the_thresholds_of_darknet(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained.weights), trained.data, "--metric", "darknet", "--points", "101"]
    text = printed([*words, "--save-dir", str(tmp_path)], capsys)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    truth = GroundTruth.of_annotations(read_coco(trained.annotations, None))
    results, _ = read_results(tmp_path / "results.json", truth)
    expected = darknet_map(truth, results, points=101)
    assert f"Darknet mAP@0.50 (101 points) {expected.mean_ap:.6f}, or {100 * expected.mean_ap:.2f}%" in text
    assert "suppression plain above IoU 0.45, no limit; input 64 x 64" in text
    assert (measured["mean_ap"], measured["num_detections"]) == (expected.mean_ap, len(results))
    assert measured["conditions"]["confidence"] == pytest.approx(0.005, abs=1e-8)
    assert expected.mean_ap > 0.1


def small_files(folder: Path) -> list[str]:
    truth = {
        "images": [{"id": 5, "file_name": "5.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 7, "name": "circle"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    }
    known = {"image_id": 5, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 0.5}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps([known, {**known, "image_id": 6}, known]))
    return ["--results", str(folder / "results.json"), "--annotations", str(folder / "truth.json")]


def test_results_of_unlisted_images_are_skipped_and_counted_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(tmp_path)
    assert run(["evaluate", *files]) == 3
    assert "image_id not in the annotation file: 6 (1 x, first results[1])" in capsys.readouterr().err
    assert run(["evaluate", *files, "--ignore-unknown", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["AP"], found["num_detections"], found["num_skipped"]) == (pytest.approx(1.0, abs=1e-12), 2, 1)
    assert "1 x result of an unlisted image_id, skipped (results[1])" in captured.err
    assert "1 x duplicate result, a false positive, accepted (results[2])" in captured.err
    assert run(["evaluate", *files, "--ignore-unknown", "--strict", "-q"]) == 5


def test_metrics_of_a_results_file_are_written_to_the_save_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [*small_files(tmp_path), "--ignore-unknown"]
    shown = json.loads(printed(["evaluate", *files, "--json", "--save-dir", str(tmp_path / "new")], capsys))
    assert json.loads((tmp_path / "new/metrics.json").read_text()) == shown
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "voc", "--backend", "fast"], "--backend belongs to --metric coco, got voc"),
        (["--metric", "darknet", "--limits", "300"], "--limits belongs to --metric coco, got darknet"),
        (["--points", "11"], "--points belongs to --metric darknet and voc, got coco"),
        (["--match-iou", "0.5"], "--match-iou belongs to --metric darknet and voc, got coco"),
        (
            ["--metric", "voc", "--match-iou", "1.5"],
            "--metric voc: match_iou: expected a number between 0 and 1, got 1.5",
        ),
        (
            ["--metric", "voc", "--points", "101"],
            "expected 11 points of recall, or 0 for the area under the curve, got 101",
        ),
        (["--metric", "darknet", "--points", "1"], "expected 0 or at least 2 points of recall, got 1"),
        (["--limits", "0"], "--limits: expected numbers of at least 1 such as 300,1000, got '0'"),
        (["--limits", "many"], "--limits: expected numbers of at least 1 such as 300,1000, got 'many'"),
    ],
)
def test_option_that_the_metric_does_not_have_is_rejected(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in complaint(["evaluate", *small_files(tmp_path), "--ignore-unknown", *options], capsys)


def test_ignore_unknown_without_a_results_file_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ignore-unknown belongs to --results" in complaint(
        ["evaluate", "a.safetensors", "--ignore-unknown"], capsys
    )
