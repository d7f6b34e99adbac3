from __future__ import annotations

import json
from pathlib import Path

import pytest

from detector.cli.main import run
from detector.media.images import read_image


def test_plot_schedule_draws_the_schedule_without_training(
    tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.png"
    assert run(["train", *tiny_words, "train.iterations=200", "--plot-schedule", str(picture)]) == 0
    assert read_image(picture).shape == (440, 1000, 3)
    assert not (tmp_path / "runs").exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"schedule: {picture}" in captured.err


@pytest.mark.parametrize(
    ("name", "code", "complaint"),
    [
        ("plan.jpg", 2, "--plot-schedule: expected a file that ends in .png"),
        ("none/plan.png", 1, "the picture cannot be written, No such file"),
    ],
)
def test_unusable_path_of_the_plot_is_rejected(
    name: str, code: int, complaint: str, tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *tiny_words, "--plot-schedule", str(tmp_path / name)]) == code
    assert complaint in capsys.readouterr().err


def test_dry_run_prints_the_planned_run(
    tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *tiny_words, "train.iterations=30", "train.evaluations=3", "--dry-run"]
    assert run(words) == 0
    text = capsys.readouterr().out
    for part in ("parameters, 6 classes", "6 images, ", "3 times, first after step 10", "30 steps of 6 images", "GiB"):
        assert part in text
    assert text.endswith("dry run: no files were kept\n")
    assert not (tmp_path / "runs").exists()
    assert run([*words, "--json", "--plot-schedule", str(tmp_path / "plan.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_steps"], found["evaluated_at"]) == (30, [10, 20, 30])
    assert (tmp_path / "plan.png").stat().st_size > 0


def test_dry_run_without_a_val_split_reports_it(tiny_words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *tiny_words, "train.iterations=2", "data.val=null", "--dry-run"]) == 0
    assert "evaluation  none: no val split is configured" in capsys.readouterr().out


def test_dry_run_with_resume_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--resume", str(tmp_path), "--dry-run"]) == 2
    assert "--dry-run: expected a new run, got --resume" in capsys.readouterr().err


def test_invalid_config_stops_the_dry_run(tiny_words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *tiny_words, "input.size=65", "--dry-run"]) == 2
    assert "input.size" in capsys.readouterr().err
