from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.evaluation.coco_metrics import STAT_NAMES
from detector.media.images import read_image
from detector.models.checkpoint import load_model_file, load_training_state

ROOT = Path(__file__).parents[2]


def printed(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    """Return the JSON that a command prints, and check its exit code."""
    capsys.readouterr()
    found = run([*words, "--json"])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return json.loads(captured.out)


def numbers_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of `evaluate` without the origin of the detections."""
    return {key: value for key, value in document.items() if key not in ("conditions", "results", "model")}


# --- predict and evaluate agree --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [[], ["evaluate.iou=0.5", "evaluate.confidence=0.02", "evaluate.batch_size=5"]])
def test_predict_and_evaluate_give_exactly_the_same_results_and_metrics(
    overrides: list[str], trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = printed(
        ["evaluate", str(trained.weights), trained.data, *overrides, "--save-dir", str(tmp_path / "evaluate")], capsys
    )
    words = ["predict", str(trained.weights), str(trained.images), *overrides, "--save-dir", str(tmp_path / "predict")]
    assert run([*words, "--format", "coco", "--annotations", str(trained.annotations)]) == 0
    results = tmp_path / "predict/results.json"
    assert json.loads(results.read_text()) == json.loads((tmp_path / "evaluate/results.json").read_text())
    scored = printed(["evaluate", "--results", str(results), "--annotations", str(trained.annotations)], capsys)
    assert [scored[name] for name in STAT_NAMES] == [measured[name] for name in STAT_NAMES]
    assert numbers_of(scored) == numbers_of(measured)
    assert 0.1 < measured["AP"] < 1
    assert not list((tmp_path / "predict").glob("*.jpg"))


def test_model_file_has_the_metrics_of_evaluate(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = printed(["val", str(trained.weights), "--save-dir", str(tmp_path)], capsys)
    noted = load_model_file(trained.weights).metrics
    assert noted == {name: measured[name] for name in STAT_NAMES if measured[name] is not None}


def test_categories_missing_in_the_annotation_file_are_left_out_of_both_results(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(trained.annotations.read_text())
    kept = content["categories"][::2]
    ids = {category["id"] for category in kept}
    annotations = [a for a in content["annotations"] if a["category_id"] in ids]
    assert 0 < len(annotations) < len(content["annotations"])
    few = tmp_path / "few.json"
    few.write_text(json.dumps({**content, "categories": kept, "annotations": annotations}))
    data = f"data.val={{annotations: {few}, images: {trained.images}}}"
    measured = printed(["evaluate", str(trained.weights), data, "--save-dir", str(tmp_path / "evaluate")], capsys)
    words = ["predict", str(trained.weights), str(trained.images), "--save-dir", str(tmp_path / "predict")]
    assert run([*words, "--format", "coco", "--annotations", str(few)]) == 0
    scored = printed(
        ["evaluate", "--results", str(tmp_path / "predict/results.json"), "--annotations", str(few)], capsys
    )
    assert numbers_of(scored) == numbers_of(measured)
    assert measured["AP"] > 0.05


# --- a complete run --------------------------------------------------------------------------------------------------


def test_trained_model_can_be_evaluated_and_used_for_prediction(
    tiny_words: list[str],
    tiny_shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # results go to the working directory, not to the folder of the model
    summary = printed(["train", *tiny_words, "train.iterations=4", "train.evaluations=2"], capsys)
    folder = tmp_path / "runs/train"
    assert summary["run"] == str(folder)
    assert summary["weights"] == str(folder / "weights/best.safetensors")
    assert summary["num_skipped"] == 0
    assert summary["metrics"]["num_images"] == 6
    for name in (
        "config.yaml",
        "results.csv",
        "train_batch0.jpg",
        "weights/best.safetensors",
        "weights/last.safetensors",
    ):
        assert (folder / name).stat().st_size > 0
    measured = printed(["evaluate", summary["weights"]], capsys)
    assert measured["AP"] == summary["best_ap"]
    assert (tmp_path / "runs/detect/val/results.json").is_file()

    images = tmp_path / "images"
    images.mkdir()
    for name in ("000001.jpg", "000002.jpg"):
        shutil.copy(tiny_shapes / "images/val" / name, images / name)
    assert run(["predict", str(folder / "weights/last.safetensors"), str(images), "--confidence", "0"]) == 0
    records = json.loads((tmp_path / "runs/detect/predict/predictions.json").read_text())
    assert [Path(record["source"]).name for record in records] == ["000001.jpg", "000002.jpg"]
    assert all(record["detections"] for record in records)
    for name in ("000001.jpg", "000002.jpg"):
        assert read_image(tmp_path / "runs/detect/predict" / name).shape == (64, 64, 3)


def test_stdout_is_json_and_progress_is_on_stderr(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(trained.weights), str(trained.images), "--save-dir", str(tmp_path), "--no-pictures"]
    assert run([*words, "--json"]) == 0
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert records == json.loads((tmp_path / "predictions.json").read_text())
    assert len(records) == 6
    assert sum(len(record["detections"]) for record in records) > 0
    assert "6 images, 0 skipped" in captured.err
    assert run([*words, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert captured.err == ""


# --- interruption ----------------------------------------------------------------------------------------------------


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start `detector train` in its own process group, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "detector", "train", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step "):
            return
    pytest.fail("".join(seen))


# A step takes a second, so that the signal arrives before the last one on a busy machine too.
SLOW_STEPS = """
import time
from detector.training import trainer
whole = trainer.Trainer._optimise
def slow(self, group):
    whole(self, group)
    time.sleep(1)
trainer.Trainer._optimise = slow
"""


@pytest.mark.parametrize(
    ("number", "code", "to_group", "workers"),
    [(signal.SIGTERM, 143, True, 2), (signal.SIGINT, 130, False, 0)],
)
def test_signal_saves_the_run_which_can_be_resumed(
    number: int, code: int, to_group: bool, workers: int, tiny_words: list[str], tmp_path: Path
) -> None:
    words = [*tiny_words, "train.iterations=20", "train.evaluations=1", f"loader.workers={workers}"]
    (tmp_path / "slow_steps.py").write_text(SLOW_STEPS)
    with start([*words, "--import", "slow_steps.py"], tmp_path) as process:
        wait_for_steps(process)
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, told = process.communicate(timeout=300)
    assert process.returncode == code, told
    run_folder = tmp_path / "runs/train"
    assert f"stopped and saved; continue with: detector train --resume {run_folder}" in told
    assert "Traceback" not in told
    stopped_at = load_training_state(run_folder / "weights/last.safetensors")["step"]
    assert 0 < stopped_at < 20
    assert run(["train", "--resume", str(run_folder), "--quiet"]) == 0
    assert load_training_state(run_folder / "weights/last.safetensors")["step"] == 20
    assert (run_folder / "weights/best.safetensors").is_file()
    assert not (tmp_path / "runs/train2").exists()


def test_same_command_resumes_and_other_settings_are_rejected(
    tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *tiny_words, "train.iterations=2"]
    resume = ["--resume", str(tmp_path / "runs/train")]
    assert run(words) == 0
    assert run([*words, *resume]) == 0
    capsys.readouterr()
    assert run([*words, *resume, "optimizer.lr=0.5", "model.width=0.25"]) == 2
    complaint = capsys.readouterr().err
    assert "got 2 differences" in complaint
    assert "optimizer.lr: 0.5 here" in complaint
    assert "model.width: 0.25 here, 0.125 there" in complaint
    assert run(["train", *resume, "optimizer.lr=0.5"]) == 2
    assert run(["train", "--resume", str(tmp_path / "none")]) == 4


def test_run_in_the_default_folder_can_be_resumed(
    tiny_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", *(w for w in tiny_words if "project" not in w), "train.iterations=1", "--quiet"]
    assert run(words) == 0
    assert (tmp_path / "runs/detect/train/weights/last.safetensors").is_file()
    assert run([*words, "--resume", "runs/detect/train"]) == 0


# --- entry points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["tools/train.py"],
        ["tools/evaluate.py"],
        ["tools/predict.py"],
        ["-m", "detector"],
        ["-m", "detector", "train"],
    ],
)
def test_every_entry_point_prints_help(command: list[str]) -> None:
    words = [sys.executable, "-X", "importtime", *command, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stderr.splitlines()
    assert (done.returncode, [line for line in lines if not line.startswith("import time:")]) == (0, [])
    assert done.stdout.startswith("usage: ")
    assert "exit codes" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "argparse" in imported
    assert "torch" not in imported  # so that help is fast; test_promises.py measures the time
