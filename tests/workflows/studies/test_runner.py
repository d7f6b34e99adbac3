"""Runs of a study in separate processes: finished, failed, diverged, stopped and in shards.

These tests start a substitute program that ends as its environment says; `tests/cli/test_study.py` starts the real one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from detector.errors import ConfigError, SaveError
from detector.workflows.studies import runner
from detector.workflows.studies.plan import load_study, runs_of
from detector.workflows.studies.records import StudyFolder
from detector.workflows.studies.runner import Outcome, Shard, make_runs, open_log

PROGRAM = """
import json, os, signal, sys, time
path = sys.argv[sys.argv.index("--run") + 1]
with open(path) as file:
    record = json.load(file)
trials = path.replace("results", "trials")
os.makedirs(os.path.dirname(trials), exist_ok=True)
with open(trials, "a") as file:
    file.write(os.environ.get("RANK", "-") + os.environ.get("CUDA_VISIBLE_DEVICES", "-"))
how = record["cell"]["activation"] + str(record["seed"])
if how == os.environ.get("DIVERGES"):
    print("diverged at step 3", file=sys.stderr)
    sys.exit(6)
if how == os.environ.get("CRASHES"):
    os.kill(os.getpid(), signal.SIGKILL)
if how == os.environ.get("FAILS"):
    print("detector study: no such data", file=sys.stderr)
    sys.exit(3)
if how == os.environ.get("HANGS"):
    def stop(number, frame):
        open(path + ".saved", "w").close()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    open(path + ".hangs", "w").close()
    time.sleep(300)
record.update(state="finished", evaluations=[{"step": 1, "stats": {"top1": 0.5}}])
with open(path, "w") as file:
    json.dump(record, file)
"""


@pytest.fixture
def study(tmp_path, small_study, monkeypatch):
    """Load a study of one axis; its folder is `tmp_path / "out"`."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, str(program)))
    return load_study(str(small_study), only=["size=small"])


def made(study, tmp_path, shard: Shard | None = None) -> dict[str, Outcome]:
    outcomes: list[Outcome] = []
    make_runs(study, StudyFolder(tmp_path / "out"), shard or Shard(), told=outcomes.append)
    assert [outcome.number for outcome in outcomes] == list(range(1, len(outcomes) + 1))
    return {f"{o.planned.cell['activation']}{o.planned.seed}": o for o in outcomes}


def trials(tmp_path) -> int:
    return sum(len(path.read_text()) // 2 for path in (tmp_path / "out" / "trials").iterdir())


def test_finished_runs_are_not_repeated_and_seeds_can_be_added(study, small_study, tmp_path):
    assert {o.record.state for o in made(study, tmp_path).values()} == {"finished"}
    assert trials(tmp_path) == 4
    again = made(study, tmp_path)
    assert trials(tmp_path) == 4
    assert {o.took_s for o in again.values()} == {0.0}
    more = load_study(str(small_study), only=["size=small"], seeds=3)
    assert len(made(more, tmp_path)) == 6
    assert trials(tmp_path) == 6


def test_failed_or_killed_run_does_not_stop_the_study_and_is_retried(study, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "relu0")
    monkeypatch.setenv("CRASHES", "mish0")
    found = made(study, tmp_path)
    assert {name: o.record.state for name, o in found.items()} == {
        "relu0": "failed", "mish0": "failed", "relu1": "finished", "mish1": "finished",
    }  # fmt: skip
    assert found["relu0"].record.error == "ended with code 3: detector study: no such data"
    assert found["mish0"].record.error == "ended by signal 9"
    monkeypatch.delenv("FAILS")
    monkeypatch.delenv("CRASHES")
    again = made(study, tmp_path)
    assert {o.record.state for o in again.values()} == {"finished"}
    assert again["relu0"].record.error is None
    assert trials(tmp_path) == 6


def test_diverged_run_is_a_result_and_is_not_retried(study, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVERGES", "mish1")
    assert made(study, tmp_path)["mish1"].record.state == "diverged"
    assert "diverged at step 3" in (made(study, tmp_path)["mish1"].record.error or "")
    assert trials(tmp_path) == 4


def test_stopped_study_lets_its_run_save_and_continues_it_later(study, tmp_path, monkeypatch):
    class ToldToStop(BaseException):
        pass

    def stop(number, frame):
        raise ToldToStop

    monkeypatch.setenv("HANGS", "mish0")
    path = StudyFolder(tmp_path / "out").result_path("size=small,activation=mish,seed=0")
    before = signal.signal(signal.SIGALRM, stop)
    waiting = Path(f"{path}.hangs")
    pid = os.fork()
    if pid == 0:  # stops the test process once the run hangs
        for _ in range(1200):
            if waiting.exists():
                os.kill(os.getppid(), signal.SIGALRM)
                break
            time.sleep(0.05)
        os._exit(0)
    try:
        with pytest.raises(ToldToStop):
            made(study, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
        os.waitpid(pid, 0)
    assert Path(f"{path}.saved").exists()
    monkeypatch.delenv("HANGS")
    assert {o.record.state for o in made(study, tmp_path).values()} == {"finished"}
    assert trials(tmp_path) == 5


def test_other_settings_than_those_of_the_folder_are_rejected_before_any_run(study, small_study, tmp_path):
    made(study, tmp_path)
    with pytest.raises(ConfigError, match=r"got others: train\.clip_norm=5\.0"):
        made(load_study(str(small_study), ["train.clip_norm=5.0"], ["size=small"]), tmp_path)
    assert trials(tmp_path) == 4


def test_paths_of_imported_parts_are_absolute_in_the_record(study, tmp_path):
    outcomes: list[Outcome] = []
    make_runs(study, StudyFolder(tmp_path / "out"), Shard(0, 4), [Path("my_parts.py")], outcomes.append)
    assert outcomes[0].record.imports == (str(Path.cwd() / "my_parts.py"),)


def test_run_of_another_command_is_not_made_twice(study, tmp_path):
    folder, planned = StudyFolder(tmp_path / "out"), runs_of(study)[1]
    with open_log(folder, planned):
        with pytest.raises(
            ConfigError, match=r"another command is making the run size=small,activation=mish,seed=0; .*--shard"
        ):
            made(study, tmp_path)
        assert folder.read(planned) is None
        assert list(made(study, tmp_path, Shard(0, 2))) == ["relu0", "relu1"]
    assert len(made(study, tmp_path)) == 4
    assert trials(tmp_path) == 4


def test_unwritable_folder_is_reported(study, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("a file")
    with pytest.raises(SaveError, match=r"seed=0\.log cannot be written \(File exists\): check the disk"):
        made(study, tmp_path)


def test_shards_cover_every_run_once(study):
    runs = runs_of(study)
    parts = [Shard.parse(f"{number}/3").of(runs) for number in (1, 2, 3)]
    assert sorted(run.key for part in parts for run in part) == sorted(run.key for run in runs)
    assert Shard.of_torchrun().of(runs) == runs


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/4", "1.0/3"])
def test_invalid_shard_is_rejected(text):
    with pytest.raises(ConfigError, match="--shard: expected I/N"):
        Shard.parse(text)


def test_torchrun_gives_each_process_a_shard_and_a_gpu(study, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,7"}.items():
        monkeypatch.setenv(name, value)
    shard = Shard.of_torchrun()
    assert (shard.index, shard.count, shard.gpu) == (1, 2, "7")
    assert list(made(study, tmp_path, shard)) == ["mish0", "mish1"]
    assert {path.read_text() for path in (tmp_path / "out" / "trials").iterdir()} == {"-7"}
