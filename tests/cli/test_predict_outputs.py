"""Files that `detector predict` writes, and several views of each image on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.evaluation.coco_metrics import STAT_NAMES
from detector.media.images import read_image

VIEWS = ["--tile", "48", "--overlap", "0.3", "--flip", "--scales", "1,1.5"]


def predict(trained: Any, folder: Path, *words: str) -> int:
    return run(["predict", str(trained.weights), str(trained.images), *words, "--save-dir", str(folder), "--quiet"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_format_holds_the_same_detections(trained: Any, tmp_path: Path) -> None:
    words = ["--format", "json,csv", "--format", "jsonl", "--format", "txt,json", "--crops", "--confidence", "0.05"]
    assert predict(trained, tmp_path, *words) == 0
    records = json.loads((tmp_path / "predictions.json").read_text("utf-8"))
    found = [d for record in records for d in record["detections"]]
    assert len(records) == 6
    assert len(found) > 3
    lines = (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"]]
    assert [(row["class"], float(row["score"]), float(row["xmax"])) for row in rows] == [
        (d["class"], d["score"], d["box_xyxy"][2]) for d in found
    ]
    labels = [line for path in sorted((tmp_path / "labels").iterdir()) for line in path.read_text().splitlines()]
    classes = (tmp_path / "classes.txt").read_text().splitlines()
    assert [classes[int(line.split()[0])] for line in labels] == [d["class"] for d in found]
    crops = [path for path in names_in(tmp_path) if path.startswith("crops/")]
    assert len(crops) == len(found)
    assert {path.split("/")[1] for path in crops} == {d["class"] for d in found}
    pictures = sorted(path.name for path in tmp_path.glob("*.jpg"))
    assert pictures == sorted(Path(record["source"]).name for record in records)
    assert read_image(tmp_path / pictures[0]).shape == (64, 64, 3)


def test_unknown_format_is_refused_with_the_nearest_name(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(trained, tmp_path / "out", "--format", "json,cvs") == 2
    assert "--format: no format is named 'cvs'; did you mean 'csv'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_existing_labels_are_not_overwritten(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/000001.txt").write_text("0 0.5 0.5 1 1\n")
    assert predict(trained, tmp_path, "--format", "txt") == 3
    assert "labels holds files, which are not overwritten; choose another folder" in capsys.readouterr().err
    assert names_in(tmp_path) == ["labels/000001.txt"]
    assert (tmp_path / "labels/000001.txt").read_text() == "0 0.5 0.5 1 1\n"


def test_coco_with_other_formats_has_the_thresholds_of_evaluate_and_no_pictures(trained: Any, tmp_path: Path) -> None:
    words = ["--annotations", str(trained.annotations)]
    assert predict(trained, tmp_path / "both", *words, "--format", "jsonl,coco") == 0
    assert predict(trained, tmp_path / "alone", *words, "--format", "coco") == 0
    assert names_in(tmp_path / "both") == ["predictions.jsonl", "results.json"]
    results = json.loads((tmp_path / "both/results.json").read_text())
    assert results == json.loads((tmp_path / "alone/results.json").read_text())
    lines = (tmp_path / "both/predictions.jsonl").read_text().splitlines()
    assert sum(len(json.loads(line)["detections"]) for line in lines) == len(results)


@pytest.mark.parametrize("merge", ["nms", "fusion"])
def test_predict_and_evaluate_agree_on_several_views(
    merge: str, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = [*VIEWS, "--merge", merge]
    words = ["evaluate", str(trained.weights), trained.data, *looks, "--save-dir", str(tmp_path / "evaluate")]
    assert run([*words, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["conditions"]["views"] == (
        "tiles of 48 px overlapping by 0.3 and the whole; mirrored too; scales 1, 1.5; "
        f"merged by {merge} above IoU 0.55"
    )
    annotated = ["--annotations", str(trained.annotations), "--format", "coco"]
    assert predict(trained, tmp_path / "predict", *looks, *annotated) == 0
    results = tmp_path / "predict/results.json"
    assert json.loads(results.read_text()) == json.loads((tmp_path / "evaluate/results.json").read_text())
    assert run(["evaluate", "--results", str(results), "--annotations", str(trained.annotations), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert [scored[name] for name in STAT_NAMES] == [measured[name] for name in STAT_NAMES]
    plain = ["evaluate", str(trained.weights), trained.data, "--save-dir", str(tmp_path / "plain"), "--json"]
    assert run(plain) == 0
    assert json.loads(capsys.readouterr().out)["AP"] != measured["AP"]


def test_darknet_metric_refuses_several_views(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(trained.weights), trained.data, "--metric", "darknet", "--save-dir", str(tmp_path)]
    assert run([*words, "--flip"]) == 2
    assert "expected one plain view of each image, got views: the whole; mirrored too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tile", "8"], "views.tile: expected at least 32"),
        (["--scales", "1,x"], "views.scales"),
        (["--scales", "99"], "99"),
        (["--overlap", "0.3"], "--overlap and --no-whole belong to images in tiles"),
        (["--no-whole", "--flip"], "--overlap and --no-whole belong to images in tiles"),
        (["--merge", "fusion"], "--merge belongs to several views"),
    ],
)
def test_impossible_views_are_refused(
    words: list[str], complaint: str, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(trained, tmp_path / "out", *words) == 2
    assert complaint in capsys.readouterr().err
