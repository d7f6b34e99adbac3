"""`detector tune`: its command line, and a small search with real runs."""

from __future__ import annotations

import json

import pytest

from detector.cli.main import run

TINY = (
    "data={name: drawn, num_train: 20, num_val: 12, image_size: 32}",
    *("loader.batch_size=10", "model.width=0.125", "model.depth=0.1", "train.iterations=2", "train.evaluations=1"),
    *("train.precision=fp32", "device=cpu"),
)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected one configuration, got none"),
        (["mish-n"], "--search: expected at least one key"),
        (["mish-n", "--search", "optimizer.lr=1..2", "--minutes", "0"], "--minutes above 0"),
        (["mish-n", "--search", "optimizer.lr=1..2", "--held-out", "0.95"], "--held-out within 0.1..0.9"),
        (["mish-n", "--search", "optimizer.lr=1..2", "optimiser.lr=1"], "unknown key 'optimiser'"),
        (["mish-n", "--search", "optimizer.lr"], "expected a key and its values"),
        (["mish-n", "--search", "optimizer.lrr=1..2"], "unknown key 'optimizer.lrr'"),
    ],
)
def test_wrong_arguments_are_rejected(words, told, capsys, tmp_path):
    assert run(["tune", *words, *(["--out", str(tmp_path / "out")] if words else [])]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_checks_the_search_and_writes_nothing(tmp_path, capsys):
    words = ["tune", "mish-n", "data=shapes", "--search", "loss.box=4..9", "--dry-run", "--out", str(tmp_path / "out")]
    assert run(words) == 0
    assert "search: loss.box=4..9" in capsys.readouterr().out
    assert run([*words, "--search", "augment.mosaic=0.5..1.5"]) == 2
    assert "--search augment.mosaic: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tune.yaml").write_text("experiment: demo\noverrides: []\nsearch: [loss.box=1..2]\n")
    assert run(words) == 2
    assert "expected the search that the folder began with" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_search_with_real_runs_is_reported(tmp_path, capfd):
    pytest.importorskip("optuna")
    out = tmp_path / "my search"
    words = ["tune", "classify", *TINY, "--search", "optimizer.lr=1e-4..1e-1,log", "--metric", "top1", "--seeds", "1"]
    assert run([*words, "--trials", "2", "--out", str(out)]) == 0
    told = capfd.readouterr()
    assert "trial 1: optimizer.lr=" in told.err
    assert f"report: {out / 'report.html'}" in told.out
    assert run([*words, "--trials", "2", "--out", str(out), "--json"]) == 0
    plain = json.loads(capfd.readouterr().out)
    assert [trial["state"] for trial in plain["trials"]] == ["finished"] * 2
    assert (out / "best.yaml").is_file()
