"""`detector study`, with real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detector.cli.main import run
from detector.workflows.studies import runner

STUDY = """\
title: a small one
experiment: classify
overrides:
  - "data={name: drawn, num_train: 20, num_val: 10, image_size: 32}"
  - loader.batch_size=10
  - model.width=0.125
  - model.depth=0.1
  - train.iterations=2
  - train.evaluations=1
  - train.precision=fp32
  - device=cpu
axes:
  activation: {relu: [model.activation=relu], mish: [model.activation=mish]}
compare: activation
baseline: relu
metric: top1
seeds: 1
"""


@pytest.fixture
def study(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def test_study_makes_and_reports_its_runs_once(study, tmp_path, capfd):
    out = tmp_path / "my study"  # with a space
    assert run(["study", str(study), "--out", str(out)]) == 0
    told = capfd.readouterr()
    assert "1/2 activation=relu,seed=0: top1 " in told.err
    assert "Descriptive only" in told.out
    assert f"report: {out / 'report.html'}" in told.out
    assert (out / "runs" / "activation=mish,seed=0" / "results.csv").is_file()
    before = {path: path.read_bytes() for path in (out / "results").iterdir()}
    assert len(before) == 2
    assert run(["study", str(study), "--out", str(out), "--json"]) == 0
    told = capfd.readouterr()
    assert told.err.count("(done before)") == 2
    summary = json.loads(told.out)
    assert [cell["num_runs"] for cell in summary["cells"]] == [1, 1]
    assert summary["comparisons"][0]["effect"]["num_pairs"] == 1
    assert {path: path.read_bytes() for path in (out / "results").iterdir()} == before


def test_failed_run_is_reported_and_gives_exit_code_1(study, tmp_path, capfd):
    study.write_text(study.read_text().replace("metric: top1", "metric: AP"))
    assert run(["study", str(study), "--out", str(tmp_path / "out"), "--only", "activation=relu"]) == 1
    told = capfd.readouterr()
    assert "failed, detector study: metric: expected one of" in told.err
    assert "1 run failed; each is left out" in told.out


def test_last_torchrun_process_reports_failed_runs(study, tmp_path, capfd, monkeypatch):
    """Torchrun stops all processes when one ends with an error, so only the last one may."""
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, code in (("0", 0), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        assert run(["study", str(study), "--out", str(tmp_path / "out")]) == code
    assert "2 runs failed; each is left out" in capfd.readouterr().out


def test_dry_run_counts_and_estimates_without_writing(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["study", "depth", "--dry-run", "--out", str(out), "--only", "layers=10,40", "--seeds", "2"]
    assert run(command) == 0
    told = capsys.readouterr().out
    assert "2 layers x 3 activation x 2 seeds = 12 runs; 0 are done" in told
    assert "12 to make at 40 s each (as stated in the study, on one core): about 8 min" in told
    assert run([*command, "--shard", "1/3"]) == 0
    assert "12 runs, 4 of them in this part" in capsys.readouterr().out
    assert not out.exists()


def test_report_only_makes_no_run(study, tmp_path, capsys):
    assert run(["study", str(study), "--out", str(tmp_path / "out"), "--report-only"]) == 0
    assert "None of 2 runs is done yet." in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected one study, got none"),
        (["depth", "classify"], "expected one study, got depth, classify"),
        (["dept"], "did you mean 'depth'"),
        (["depth", "--seeds", "0"], "--seeds: expected at least 1"),
        (["depth", "--shard", "3/2"], "--shard: expected I/N"),
        (["depth", "--report-only", "--dry-run"], "--report-only: expected neither --dry-run nor --shard"),
        (["depth", "model.activation=gelu"], "use --only to choose among its values"),
    ],
)
def test_wrong_arguments_are_rejected(words, told, capsys):
    assert run(["study", *words]) == 2
    assert told in capsys.readouterr().err


def test_tool_runs_the_command():
    tool = Path(__file__).parents[2] / "tools" / "study.py"
    done = subprocess.run([sys.executable, str(tool), "--help"], capture_output=True, text=True, check=True)
    assert "--shard I/N" in done.stdout


def test_costs_are_measured_with_the_environment_of_each_value(study, tmp_path, capfd):
    text = study.read_text().replace("metric: top1", "metric: step_ms\nmeasure: cost")
    text = text.replace("train.iterations=2", "train.iterations=6")
    study.write_text(text + "environment: {mish: {DETECTOR_MISH: native}}\n")
    out = tmp_path / "out"
    assert run(["study", str(study), "--out", str(out)]) == 0
    assert "2/2 activation=mish,seed=0: step_ms " in capfd.readouterr().err
    for path in (out / "results").iterdir():
        record = json.loads(path.read_text())
        assert record["state"] == "finished"
        assert record["num_steps"] == 6
        (evaluation,) = record["evaluations"]
        assert 0 < evaluation["stats"]["step_ms"] == pytest.approx(record["step_s"] * 1e3)
        assert evaluation["stats"]["peak_mb"] > 50
    assert not any((out / "runs").glob("*/weights")), "a study of costs keeps no weights"


def test_study_of_costs_rejects_shards(study, tmp_path, capsys):
    study.write_text(study.read_text().replace("metric: top1", "metric: step_ms\nmeasure: cost"))
    assert run(["study", str(study), "--out", str(tmp_path), "--shard", "1/2"]) == 2
    assert "got --shard; leave it out" in capsys.readouterr().err


def test_too_few_steps_to_time_are_reported(study, tmp_path, capfd):
    study.write_text(study.read_text().replace("metric: top1", "metric: step_ms\nmeasure: cost"))
    assert run(["study", str(study), "--out", str(tmp_path / "out"), "--only", "activation=relu"]) == 1
    assert "expected train.iterations above 3, got 2" in capfd.readouterr().err
