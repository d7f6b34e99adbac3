"""The choice of settings by Optuna."""

from __future__ import annotations

import math

import pytest

from detector.workflows.studies.records import RunEvaluation, RunRecord
from detector.workflows.studies.search_space import SearchedKey, Value
from detector.workflows.studies.trials import Trial

pytest.importorskip("optuna")

from detector.workflows.studies.optuna_sampler import OptunaSampler

KEYS = [
    SearchedKey.parse(text) for text in ("optimizer.lr=1e-4..1e-1,log", "loss.box=1..9", "model.head=[a, [1, 2], true]")
]


def trial(number: int, values: dict[str, Value], *curve: float, state: str = "finished") -> Trial:
    evaluations = tuple(RunEvaluation(step, {"AP": value}) for step, value in enumerate(curve))
    record = RunRecord({}, 0, "mish-n", (), state=state, evaluations=evaluations)  # type: ignore[arg-type]
    return Trial(number, values, record, "AP")


def score(values: dict[str, Value]) -> float:
    return 1 - abs(math.log10(float(values["optimizer.lr"])) + 2) / 3 - (values["model.head"] != "true") * 0.3


def searched(seed: int, num_trials: int) -> list[Trial]:
    sampler = OptunaSampler(KEYS, seed)
    trials = [trial(0, {}, 0.1, 0.2)]  # the given settings, outside of the ranges
    while len(trials) < num_trials:
        values = sampler.ask(trials)
        trials.append(trial(len(trials), values, score(values) / 2, score(values)))
    return trials


def test_settings_are_within_their_ranges_and_a_function_of_the_trials_before():
    trials = searched(0, 12)
    for one in trials[1:]:
        assert 1e-4 <= float(one.values["optimizer.lr"]) <= 1e-1
        assert one.values["loss.box"] in range(1, 10)
        assert one.values["model.head"] in ("a", "[1, 2]", "true")
    assert [t.values for t in trials] == [t.values for t in searched(0, 12)]
    assert [t.values for t in trials] != [t.values for t in searched(1, 12)]
    assert OptunaSampler(KEYS, 0).ask(trials[:7]) == trials[7].values  # as after an interruption


def test_later_trials_are_better_than_the_first_random_ones():
    scores = [one.score for one in searched(3, 40)[1:]]
    assert sum(scores[20:]) / len(scores[20:]) > sum(scores[:10]) / 10 + 0.1


def test_trials_below_the_median_are_pruned_after_enough_finished_ones():
    values: dict[str, Value] = {"optimizer.lr": 0.01, "loss.box": 3, "model.head": "a"}
    trials = [trial(n, values, 0.2, 0.4, 0.6) for n in range(4)]
    sampler = OptunaSampler(KEYS, 0)
    assert sampler.is_hopeless(trials, [0.1, 0.3])
    assert not sampler.is_hopeless(trials, [0.1, 0.5])
    assert not sampler.is_hopeless(trials, [0.1])  # the first evaluation says little
    assert not sampler.is_hopeless(trials[:3], [0.1, 0.3])
    assert OptunaSampler(KEYS, 0, is_falling=True).is_hopeless(trials, [0.6, 0.5])


def test_trials_without_a_result_are_taken_as_bad():
    values: dict[str, Value] = {"optimizer.lr": 0.01, "loss.box": 3, "model.head": "a"}
    trials = [trial(0, values, 0.2), trial(1, values, state="failed"), trial(2, values, 0.1, state="pruned")]
    assert set(OptunaSampler(KEYS, 0).ask(trials)) == set(values)
