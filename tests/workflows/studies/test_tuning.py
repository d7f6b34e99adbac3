"""Searches: trials in processes of their own, pruned, interrupted and continued, and the study on held-out images.

A substitute program ends each run at once with a metric that follows from its settings; `tests/cli/test_tune.py` starts
the real one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from detector.errors import ConfigError, DetectorError
from detector.tasks.task import load_experiment
from detector.workflows.studies import runner
from detector.workflows.studies.records import StudyFolder
from detector.workflows.studies.search_space import SearchedKey, Value
from detector.workflows.studies.trials import Budget, Trial
from detector.workflows.studies.tuning import SearchConfig, tune
from detector.workflows.studies.tuning_report import write_tuning_report

PROGRAM = """
import json, os, sys, time
path = sys.argv[sys.argv.index("--run") + 1]
def write(**changes):
    with open(path) as file:
        record = json.load(file)
    record.update(changes)
    with open(path + ".new", "w") as file:
        json.dump(record, file)
    os.replace(path + ".new", path)
    return record
record = write()
with open(os.environ["STARTED"], "a") as file:
    file.write(os.path.basename(path) + "\\n")
settings = dict(text.split("=", 1) for text in record["overrides"])
box = float(settings.get("loss.box", 7.5))
if os.environ.get("FAILS") == settings.get("loss.box", "given"):
    print("detector study: no such data", file=sys.stderr)
    sys.exit(3)
share = json.loads(settings["train.val_share"])
score = 0.5 - abs(box - 5) / 20 + (0.01 if share[0] else 0.0) + record["seed"] % 7 / 1000
evaluations = []
for step in (1, 2, 3):
    evaluations.append({"step": step, "stats": {"AP": score * step / 3}})
    write(evaluations=evaluations, total_s=2.0 * step)
    if step == 2 and settings.get("loss.box") in os.environ.get("HANGS", "").split():
        time.sleep(60)
write(evaluations=evaluations, total_s=6.0, state="finished")
"""
CONFIG = SearchConfig("mish-n", ("data=shapes",), ("loss.box=1..9",))


class RandomSampler:
    """Random values as a function of the number of trials; trials below half of the best end."""

    def __init__(self, keys: Sequence[SearchedKey]) -> None:
        self._keys = keys

    def ask(self, trials: Sequence[Trial]) -> dict[str, Value]:
        rng = random.Random(len(trials))
        return {key.key: rng.randint(int(key.low), int(key.high)) for key in self._keys}

    def is_hopeless(self, trials: Sequence[Trial], values: Sequence[float]) -> bool:
        return len(values) == 2 and values[-1] < 0.8 * max(trial.curve[1] for trial in trials)


@pytest.fixture
def program(tmp_path, monkeypatch) -> Path:
    """Replace the program of a run; return the file that lists the runs it started."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-S", str(path)))
    monkeypatch.setenv("STARTED", str(tmp_path / "started.txt"))
    return tmp_path / "started.txt"


def searched(folder: Path, config: SearchConfig = CONFIG, budget: Budget | None = None, **options):
    sampler = RandomSampler([SearchedKey.parse(text) for text in config.search])
    return tune(config, budget or Budget(60, trials=5, seeds=2), folder, sampler=sampler, **options)


def test_the_best_settings_are_measured_on_held_out_images(program, tmp_path):
    lines: list[str] = []
    tuning = searched(tmp_path / "out", told=lines.append)
    assert [trial.number for trial in tuning.trials] == [0, 1, 2, 3, 4]
    assert tuning.trials[0].values == {}  # 7.5, which the search of whole numbers cannot try
    best = tuning.best
    assert best.number > 0
    assert best.score == max(trial.score for trial in tuning.trials)
    assert tuning.trials[0].record.overrides == ("data=shapes", "train.val_share=[0, 0.5]")
    assert tuning.summary is not None
    cells = {cell.name: cell.values for cell in tuning.summary.cells}
    assert cells["given"] == pytest.approx({0: 0.5 - 2.5 / 20 + 0.01, 1: 0.5 - 2.5 / 20 + 0.011})
    assert set(cells["tuned"]) == {0, 1}
    config = load_experiment(str(tmp_path / "out/best.yaml"))
    assert config.loss.box == best.values["loss.box"]
    assert config.train.val_share == (0.0, 1.0)
    assert any(line.startswith("trial 0: the given settings: AP 0.3") for line in lines)
    assert any(line.startswith("held-out images, 4/4 settings=tuned,seed=1: AP 0.") for line in lines)
    assert any("On the held-out share, with other seeds: AP +0." in text for text in tuning.sentences())
    page = write_tuning_report(tuning)
    assert f"held-out-{best.number:03d}/report.html" in page.read_text()
    assert (tmp_path / "out" / f"held-out-{best.number:03d}" / "report.html").is_file()
    plain = json.loads((tmp_path / "out/summary.json").read_text())
    assert [trial["state"] for trial in plain["trials"]] == ["finished"] * 5


def test_a_search_continues_where_it_was_interrupted(program, tmp_path):
    whole = searched(tmp_path / "whole")
    num_runs = len(program.read_text().split())
    assert num_runs == 5 + 4
    again = searched(tmp_path / "whole")
    assert len(program.read_text().split()) == num_runs  # nothing is repeated
    assert again.sentences() == whole.sentences()
    results = tmp_path / "whole/search/results"
    record = json.loads((results / "trial=003,seed=1000.json").read_text())
    (results / "trial=003,seed=1000.json").write_text(json.dumps({**record, "state": "begun"}))  # killed amid trial 3
    (results / "trial=004,seed=1000.json").unlink()
    continued = searched(tmp_path / "whole")
    assert [trial.values for trial in continued.trials] == [trial.values for trial in whole.trials]
    assert [trial.score for trial in continued.trials] == [trial.score for trial in whole.trials]
    assert len(program.read_text().split()) == num_runs + 2
    more = searched(tmp_path / "whole", budget=Budget(60, trials=7, seeds=2))
    assert [trial.values for trial in more.trials[:5]] == [trial.values for trial in whole.trials]
    assert len(more.trials) == 7


def test_a_trial_that_an_earlier_command_still_makes_is_waited_for(program, tmp_path):
    whole = searched(tmp_path / "out", budget=Budget(60, trials=2, seeds=1))
    store = StudyFolder(tmp_path / "out/search")
    path = store.result_path("trial=001,seed=1000")
    finished = path.read_text()
    path.write_text(finished.replace('"finished"', '"begun"'))
    log = store.log_path("trial=001,seed=1000").open("ab")
    fcntl = pytest.importorskip("fcntl")
    fcntl.flock(log, fcntl.LOCK_EX)

    def end() -> None:
        path.write_text(finished)
        log.close()

    timer = threading.Timer(0.5, end)
    timer.start()
    lines: list[str] = []
    num_started = len(program.read_text().split())
    again = searched(tmp_path / "out", budget=Budget(60, trials=2, seeds=1), told=lines.append)
    timer.join()
    assert lines[1] == "trial=001,seed=1000: a process of an earlier command is still making it; waiting"
    assert again.sentences() == whole.sentences()
    assert len(program.read_text().split()) == num_started


@pytest.mark.nightly
def test_a_command_killed_by_the_system_leaves_a_search_that_continues(program, tmp_path, monkeypatch):
    """The process of the trial outlives its command; the next command waits for it and uses its result."""
    values = {number: RandomSampler([SearchedKey.parse(CONFIG.search[0])]).ask([None] * number) for number in (1, 2)}
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from pathlib import Path\n"
        "import importlib.util as u\n"
        "s = u.spec_from_file_location('t', sys.argv[3]); t = u.module_from_spec(s); sys.modules['t'] = t\n"
        "s.loader.exec_module(t)\n"
        "t.runner.PROGRAM = (sys.executable, '-S', sys.argv[4])\n"
        "t.searched(Path(sys.argv[5]))\n"
    )
    root = str(Path(runner.__file__).parents[3])
    slow = tmp_path / "slow.py"
    slow.write_text(PROGRAM.replace("time.sleep(60)", "time.sleep(3)"))
    words = [root, str(Path(__file__).parent), __file__, str(slow), str(tmp_path / "out")]
    environment = {**os.environ, "HANGS": str(values[2]["loss.box"])}
    command = subprocess.Popen([sys.executable, "-c", code, *words], env=environment)
    path = tmp_path / "out/search/results/trial=002,seed=1000.json"
    ends_s = time.monotonic() + 120
    while not path.is_file() or len(json.loads(path.read_text())["evaluations"]) < 2:
        assert time.monotonic() < ends_s
        assert command.poll() is None
        time.sleep(0.02)
    command.send_signal(signal.SIGKILL)
    command.wait()
    lines: list[str] = []
    continued = searched(tmp_path / "out", told=lines.append)
    assert any("a process of an earlier command is still making it; waiting" in line for line in lines)
    whole = searched(tmp_path / "whole")
    assert [trial.score for trial in continued.trials] == [trial.score for trial in whole.trials]


def test_hopeless_trials_end_early(program, tmp_path, monkeypatch):
    values = [RandomSampler([SearchedKey.parse("loss.box=1..40")]).ask([None] * n)["loss.box"] for n in range(1, 5)]
    config = replace(CONFIG, search=("loss.box=1..40",))
    begun_s = time.monotonic()
    worst = [v for v in values if 0.5 - abs(v - 5) / 20 < 0.8 * 0.375 - 0.01]
    monkeypatch.setenv("HANGS", " ".join(map(str, worst)))
    tuning = searched(tmp_path / "out", config)
    assert time.monotonic() - begun_s < 50
    pruned = [trial.values["loss.box"] for trial in tuning.trials if trial.record.state == "pruned"]
    assert set(pruned) == set(worst) != set()
    assert f"{len(pruned)} pruned" in tuning.sentences()[0]


def test_the_budget_leaves_time_for_the_held_out_runs(program, tmp_path):
    with pytest.raises(ConfigError, match=r"--minutes 0\.5: expected at least 0\.8, .*since a run takes 0\.1 min"):
        searched(tmp_path / "small", budget=Budget(0.5))
    tuning = searched(tmp_path / "out", budget=Budget(1.0, seeds=2))  # ten runs of 6 s, four of them held out
    assert len(tuning.trials) == 6


def test_settings_that_all_fail_at_once_spend_the_budget_too(program, tmp_path, monkeypatch):
    class Failing(RandomSampler):
        def ask(self, trials):
            assert len(trials) < 10, "the search does not end"
            return {"loss.box": 2}

    monkeypatch.setenv("FAILS", "2")
    tuning = tune(CONFIG, Budget(1.0, seeds=2), tmp_path / "out", sampler=Failing([]))
    assert "5 failed" in tuning.sentences()[0]


def test_settings_that_fail_are_counted_and_given_settings_that_fail_end_the_search(program, tmp_path, monkeypatch):
    first = RandomSampler([SearchedKey.parse(CONFIG.search[0])]).ask([None])["loss.box"]
    monkeypatch.setenv("FAILS", str(first))
    tuning = searched(tmp_path / "out", budget=Budget(60, trials=3, seeds=1))
    assert tuning.trials[1].record.state == "failed"
    assert "1 failed" in tuning.sentences()[0]
    monkeypatch.setenv("FAILS", "given")
    with pytest.raises(DetectorError, match=r"the given settings cannot be trained: the run failed.*no such data"):
        searched(tmp_path / "none")


def test_another_search_in_the_same_folder_is_refused(program, tmp_path):
    searched(tmp_path / "out", budget=Budget(60, trials=1))
    with pytest.raises(ConfigError, match=r"tune\.yaml: expected the search that the folder began with, got another s"):
        searched(tmp_path / "out", replace(CONFIG, search=("loss.box=1..8",)))


def test_a_part_of_the_validation_images_is_refused(program, tmp_path):
    given = replace(CONFIG, overrides=(*CONFIG.overrides, "train.val_share=[0, 0.5]"))
    for config in (given, replace(CONFIG, search=("train.val_share=[[0, 0.5], [0.5, 1]]",))):
        with pytest.raises(ConfigError, match=r"train\.val_share: expected all validation images"):
            searched(tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_the_evaluations_do_not_have_ends_the_search_after_its_first_run(program, tmp_path):
    with pytest.raises(ConfigError, match=r"--metric AP99: expected a number of the evaluation.*choose one of AP and"):
        searched(tmp_path / "out", replace(CONFIG, metric="AP99"))
    assert len(program.read_text().splitlines()) == 1


def test_data_without_validation_images_are_refused_before_a_run(program, tmp_path, tiny_shapes):
    part = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    given = replace(CONFIG, overrides=(f"data={{name: coco, train: {part}}}",))
    with pytest.raises(ConfigError, match=r"data: expected a split val for the search to divide, got none"):
        searched(tmp_path / "out", given)
    assert not program.is_file()


def test_the_given_settings_are_kept_if_no_trial_is_better(program, tmp_path):
    tuning = searched(tmp_path / "out", budget=Budget(60, trials=1))
    assert tuning.summary is None
    assert "keep them" in tuning.sentences()[-1]
    assert load_experiment(str(tmp_path / "out/best.yaml")).loss.box == 7.5
    assert "held-out-" not in write_tuning_report(tuning).read_text()
