"""Records of the runs of a study."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from detector.errors import ConfigError, DatasetError
from detector.workflows.studies.plan import load_study, runs_of
from detector.workflows.studies.records import RunEvaluation, RunRecord, StudyFolder, next_evaluations, plain_stats

EVALUATIONS = (RunEvaluation(2, {"top1": 0.75}), RunEvaluation(4, {"top1": 0.5, "top5": 0.9}))


def record_of(planned, **settings) -> RunRecord:
    return RunRecord(planned.cell, planned.seed, planned.experiment, planned.overrides, **settings)


def test_record_survives_a_round_trip(tmp_path, small_study):
    planned = runs_of(load_study(str(small_study)))[0]
    folder, record = StudyFolder(tmp_path / "out"), record_of(planned, evaluations=EVALUATIONS, step_s=0.25)
    assert folder.read(planned) is None
    folder.write(planned.key, record)
    assert folder.read(planned) == record


def test_run_with_other_settings_is_rejected_with_the_differences(tmp_path, small_study):
    folder = StudyFolder(tmp_path / "out")
    planned = runs_of(load_study(str(small_study)))[0]
    folder.write(planned.key, record_of(planned))
    other = runs_of(load_study(str(small_study), ["train.clip_norm=5.0"]))[0]
    with pytest.raises(ConfigError, match=r"got others: train\.clip_norm=5\.0; give them again, or another folder"):
        folder.read(other)
    with pytest.raises(ConfigError, match="got others: classify; give them"):
        folder.read(replace(planned, experiment="elsewhere/another.yaml"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cell": {}}', '{"seed": "x"}', "\udcff"])
def test_damaged_record_is_rejected_with_its_file_name(tmp_path, small_study, text):
    folder, planned = StudyFolder(tmp_path / "out"), runs_of(load_study(str(small_study)))[0]
    path = folder.result_path(planned.key)
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=r"seed=0\.json: expected a record of a run"):
        folder.read(planned)


def test_metrics_come_from_the_final_or_the_best_evaluation(small_study):
    record = record_of(runs_of(load_study(str(small_study)))[0], evaluations=EVALUATIONS, state="finished")
    assert record.number("top1", "final") == 0.5
    assert record.number("top1", "best") == 0.75
    assert record.number("top5", "best") == 0.9  # best of the evaluations that have this metric
    assert math.isnan(record.number("AP", "final"))
    assert math.isnan(replace(record, state="begun").number("top1", "final"))


@pytest.mark.parametrize(("metric", "best"), [("entropy", 1.5), ("step_ms", 1.5), ("top1", 2.5)])
def test_best_metric_is_the_lowest_if_lower_is_better(small_study, metric, best):
    found = tuple(RunEvaluation(step, {metric: value}) for step, value in ((1, 2.5), (2, 1.5), (3, 2.0)))
    planned = runs_of(load_study(str(small_study)))[0]
    record = record_of(planned, evaluations=(*found, RunEvaluation(4, {})), state="finished")
    assert record.number(metric, "best") == best


def test_repeated_evaluation_replaces_the_old_one():
    found = next_evaluations(EVALUATIONS, RunEvaluation(4, {"top1": 0.6}))
    assert [(e.step, e.stats["top1"]) for e in found] == [(2, 0.75), (4, 0.6)]


def test_undefined_metrics_are_not_written_to_json():
    assert json.dumps(plain_stats({"AP": math.nan, "AP50": 1}), allow_nan=False) == '{"AP50": 1.0}'
