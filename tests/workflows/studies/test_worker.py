"""One run of a study."""

from __future__ import annotations

import csv
import json

import pytest

from detector.errors import ConfigError
from detector.io.machine import peak_bytes
from detector.workflows.studies import worker
from detector.workflows.studies.plan import load_study, runs_of
from detector.workflows.studies.records import RunRecord, StudyFolder
from detector.workflows.studies.worker import make_run


@pytest.fixture
def begun(tmp_path, small_study):
    """Return a function that writes the record of a run to be made and returns its folder and key."""

    def begin(name: str = "out", overrides: tuple[str, ...] = ()) -> tuple[StudyFolder, str]:
        folder, planned = StudyFolder(tmp_path / name), runs_of(load_study(str(small_study), overrides))[1]
        folder.write(planned.key, RunRecord(planned.cell, 1, planned.experiment, planned.overrides))
        return folder, planned.key

    return begin


def make(folder: StudyFolder, key: str, **settings) -> tuple[bool, dict]:
    settings = {"metric": "top1", "keep_weights": False, **settings}
    finished = make_run(folder.result_path(key), folder.runs, **settings)
    return finished, json.loads(folder.result_path(key).read_text())


def test_run_records_metrics_and_costs_and_keeps_no_weights(begun):
    folder, key = begun()
    finished, record = make(folder, key)
    assert finished
    assert record["state"] == "finished"
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [2, 4]
    with (folder.runs / key / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["metrics/top1"]) for row in rows] == pytest.approx(
        [evaluation["stats"]["top1"] for evaluation in record["evaluations"]], abs=1e-5
    )
    assert record["num_steps"] == 4
    assert record["num_epochs"] == 1.0
    assert 0 < record["step_s"] < record["total_s"]
    assert 50e6 < record["peak_bytes"] <= peak_bytes()
    assert not (folder.runs / key / "weights").exists()
    assert "seed: 1\n" in (folder.runs / key / "config.yaml").read_text()


def test_interrupted_run_resumes_to_the_same_metrics(begun):
    folder, key = begun()
    whole = make(folder, key, keep_weights=True)[1]
    assert (folder.runs / key / "weights" / "best.safetensors").is_file()
    folder, key = begun("stopped")
    asked = iter([False, False, True])
    finished, record = make(folder, key, should_stop=lambda: next(asked))
    assert not finished
    assert record["state"] == "begun"
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [2]
    finished, record = make(folder, key)
    assert finished
    assert record["evaluations"] == whole["evaluations"]


def test_save_with_other_settings_is_restarted(begun):
    folder, key = begun()
    assert not make(folder, key, should_stop=lambda: True)[0]
    other, _ = begun("other", ("train.clip_norm=5.0",))
    begun_record = other.result_path(key).read_text()
    folder.result_path(key).write_text(begun_record)
    finished, record = make(folder, key)
    assert finished
    assert record["num_steps"] == 4


def test_run_with_a_deleted_record_is_repeated(begun):
    folder, key = begun()
    whole = make(folder, key, keep_weights=True)[1]
    begun()  # writes the record again, without results
    finished, record = make(folder, key)
    assert finished
    assert record["evaluations"] == whole["evaluations"]


def test_save_of_another_version_is_restarted(begun, monkeypatch):
    folder, key = begun()
    assert not make(folder, key, should_stop=lambda: True)[0]

    def refuse(run, asked):
        raise ConfigError("unknown key 'train.novelty'")

    monkeypatch.setattr(worker, "open_run", refuse)
    assert make(folder, key)[0]


def test_unknown_metric_is_rejected_with_the_known_ones(begun):
    folder, key = begun()
    with pytest.raises(ConfigError, match=r"metric: expected one of top1, .*, got 'AP'"):
        make(folder, key, metric="AP")


def test_run_without_evaluations_is_rejected(begun):
    folder, key = begun(overrides=("train.evaluations=0",))
    with pytest.raises(ConfigError, match="expected runs with evaluations"):
        make(folder, key)
