from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector import Detector
from detector.cli.main import run
from detector.models.checkpoint import load_model_file
from detector.structures.types import Detections


@pytest.fixture(scope="module")
def stored(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Evaluate a model; return the folder of its report and the model file with thresholds."""
    folder = tmp_path_factory.mktemp("report")
    words = ["--report", str(folder / "r"), "--store-thresholds", str(folder / "best.safetensors"), "-q"]
    assert run(["evaluate", str(trained.weights), trained.data, *words]) == 0
    return folder / "r", folder / "best.safetensors"


def test_report_folder_holds_page_metrics_results_and_pictures(stored: tuple[Path, Path]) -> None:
    names = {path.name for path in stored[0].iterdir()}
    expected = {"report.html", "metrics.json", "results.json", "classes.csv", "label_errors.json", "charts", "pictures"}
    assert names == expected
    document = json.loads((stored[0] / "metrics.json").read_text())
    assert document["analysis"]["intervals"]["AP"]["value"] == document["AP"]
    assert document["analysis"]["errors"]["AP50"] == document["AP50"]
    assert document["conditions"]["confidence"] == 0.001


def test_prediction_with_stored_thresholds_agrees_with_the_report(
    stored: tuple[Path, Path], trained: Any, tmp_path: Path
) -> None:
    folder, model = stored
    thresholds = json.loads((folder / "metrics.json").read_text())["analysis"]["thresholds"]
    file = load_model_file(model)
    promised = [thresholds["classes"][name] for name in file.class_names]
    expected = [thresholds["overall"]["confidence"] if t is None else t["confidence"] for t in promised]
    assert file.operating_point["by_class"] == expected
    assert file.operating_point["overall"] == thresholds["overall"]["confidence"]
    assert load_model_file(trained.weights).operating_point == {}
    overall_threshold = file.operating_point["overall"]
    assert isinstance(overall_threshold, float)

    def scores(confidence: str, out: str) -> dict[str, list[float]]:
        words = [
            "--confidence",
            confidence,
            "--no-pictures",
            "-q",
            "--format",
            "coco",
            "--save-dir",
            f"{tmp_path}/{out}",
        ]
        words += ["--annotations", str(trained.annotations)]
        assert run(["predict", str(model), str(trained.images), *words]) == 0
        records = json.loads((tmp_path / out / "results.json").read_text())
        names = dict(zip(file.category_ids, file.class_names, strict=True))
        found: dict[str, list[float]] = {name: [] for name in file.class_names}
        for record in records:
            found[names[record["category_id"]]].append(record["score"])
        return found

    everything, best, overall = scores("0.001", "all"), scores("best", "best"), scores("best-overall", "overall")
    for name, threshold, promise in zip(file.class_names, expected, promised, strict=True):
        assert sorted(best[name]) == sorted(s for s in everything[name] if s >= threshold)
        assert sorted(overall[name]) == sorted(s for s in everything[name] if s >= overall_threshold)
        if promise is not None:
            num_objects = next(
                c["num_objects"]
                for c in json.loads((folder / "metrics.json").read_text())["classes"]
                if c["name"] == name
            )
            assert len(best[name]) * promise["precision"] == pytest.approx(num_objects * promise["recall"], abs=1e-6)
    assert best != overall


def test_python_class_uses_the_stored_thresholds(stored: tuple[Path, Path], trained: Any) -> None:
    detector = Detector(stored[1])
    image = sorted(trained.images.iterdir())[0]
    found = detector.predict(image, confidence="best")
    assert isinstance(found, Detections)
    thresholds = load_model_file(stored[1]).operating_point["by_class"]
    assert isinstance(thresholds, list)
    assert all(score >= thresholds[label] - 1e-6 for score, label in zip(found.scores, found.labels, strict=True))
    assert len(detector.predict(image, confidence=0.0)) > len(found)


def test_confidence_best_without_stored_thresholds_is_a_usage_error(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained.weights), str(trained.images), "--confidence", "best", "--save-dir", str(tmp_path)]
    assert run(["predict", *words]) == 2
    assert "holds no thresholds; store some with detector evaluate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run(["predict", *words[:3], "highest"])
    assert ended.value.code == 2


def test_results_file_has_a_report_that_can_be_compared(
    stored: tuple[Path, Path], trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    words = ["--results", str(stored[0] / "results.json"), "--annotations", str(trained.annotations), "-q"]
    words += ["--images", str(trained.images), "--report", str(first), "--threshold-for", "precision=0.6"]
    assert run(["evaluate", *words]) == 0
    assert (first / "report.html").is_file()
    assert list((first / "pictures").iterdir())
    assert json.loads((first / "metrics.json").read_text())["analysis"]["thresholds"]["target"] == (
        "precision of at least 0.6"
    )
    capsys.readouterr()
    assert run(["compare", str(first), str(stored[0]), "--resamples", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    test = found["tests"][str(stored[0])]
    assert (test["difference"]["value"], test["p_value"]) == (0.0, 1.0)
    assert run(["compare", str(first), str(stored[0]), "--resamples", "20"]) == 0
    text = capsys.readouterr().out
    assert "no evidence of a difference" in text
    assert "p = 1 (permutation of images, 20 draws)" in text
    assert "the numbers cannot be compared" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "voc", "--report", "x"], "belong to --metric coco"),
        (["--overwrite"], "--overwrite belongs to --store-thresholds"),
        (["--threshold-for", "f1"], "--threshold-for belongs to"),
        (["--images", "x"], "--images belongs to --results"),
        (["--store-thresholds", "x.pt"], "expected NAME.safetensors"),
        (["--report", "x", "--threshold-for", "f2"], "target of thresholds: expected f1"),
    ],
)
def test_options_without_the_one_they_belong_to_are_rejected_before_evaluation(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "no-such-file.safetensors", *words]) == 2
    assert message in capsys.readouterr().err


def test_model_file_is_replaced_only_with_overwrite(
    stored: tuple[Path, Path], trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored[1].read_bytes()
    words = [str(trained.weights), trained.data, "--store-thresholds", str(stored[1])]
    assert run(["evaluate", *words]) == 2
    assert "already exists; choose another name or give --overwrite" in capsys.readouterr().err
    assert stored[1].read_bytes() == before


@pytest.mark.parametrize("words", [[], ["a"], ["a", "a"], ["a", "b", "--resamples", "0"]])
def test_comparison_of_fewer_than_two_runs_is_rejected(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *words]) == 2
    assert "detector compare: " in capsys.readouterr().err
