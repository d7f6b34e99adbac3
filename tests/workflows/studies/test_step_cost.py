"""Costs of steps, measured in turns."""

from __future__ import annotations

import io
import sys

import pytest

from detector.workflows.studies import runner
from detector.workflows.studies.plan import load_study, runs_of
from detector.workflows.studies.records import RunRecord, StudyFolder, read_record
from detector.workflows.studies.runner import Shard
from detector.workflows.studies.step_cost import make_cost_run, make_cost_runs

# Program that answers as often as its environment says, with a pause before each answer.
PROGRAM = """
import os, sys, time
for _ in range(int(os.environ["DETECTOR_NUM_ANSWERS"])):
    sys.stdin.readline()
    time.sleep(0.3)
    print(1.0, flush=True)
"""


@pytest.fixture
def study(small_study):
    """Load a study of the cost of two activations."""
    text = small_study.read_text().replace("metric: top1", "metric: step_ms\nmeasure: cost")
    text = text.replace("train.iterations=4", "train.iterations=6")
    environment = "environment: {relu: {DETECTOR_NUM_ANSWERS: '1'}, mish: {DETECTOR_NUM_ANSWERS: '3'}}\n"
    small_study.write_text(text + environment)
    return load_study(str(small_study), only=["size=small"], seeds=1)


def test_cost_run_without_all_of_its_turns_is_not_finished(study, tmp_path, monkeypatch):
    folder, planned = StudyFolder(tmp_path / "out"), runs_of(study)[0]
    path = folder.result_path(planned.key)
    folder.write(planned.key, RunRecord(planned.cell, 0, planned.experiment, planned.overrides))
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 4))
    assert not make_cost_run(path, folder.runs)
    assert read_record(path).state == "begun"
    (folder.runs / path.stem / "weights").mkdir(parents=True)
    (folder.runs / path.stem / "weights" / "last.safetensors").write_bytes(b"of a run that was killed")
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 7))  # one for each step and one for the end
    assert make_cost_run(path, folder.runs)
    assert read_record(path).state == "finished"
    assert not any(folder.runs.iterdir())


def test_process_that_dies_between_turns_is_a_failed_run(study, tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, str(program)))
    states: list[str] = []
    make_cost_runs(
        study, StudyFolder(tmp_path / "out"), Shard(), told=lambda outcome: states.append(outcome.record.state)
    )
    assert states == ["failed", "failed"]
