from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from detector.evaluation.run_causes import causes_of, finer_levels, to_plain
from detector.evaluation.run_evidence import RunEvidence, SplitEvidence
from tests.workflows.damaged_runs import DAMAGES

TESTS = Path(__file__).parents[1]


def evidence_of(name: str) -> RunEvidence:
    """Evidence on a short training on a data set damaged on purpose, written by `tests/workflows/damaged_runs.py`."""
    return RunEvidence.of_plain(json.loads((TESTS / f"fixtures/run_evidence/{name}.json").read_text()))


def codes(evidence: RunEvidence) -> list[str]:
    return [cause.code for cause in causes_of(evidence)]


def test_sound_run_raises_no_alarm() -> None:
    assert causes_of(evidence_of("sound")) == ()


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "sound"])
def test_first_answer_on_a_damaged_run_is_right(name: str) -> None:
    first = causes_of(evidence_of(name))[0]
    assert first.code in DAMAGES[name].answers
    assert first.evidence
    assert 0 < first.held_back <= 1


def test_evidence_is_read_back_from_json() -> None:
    evidence = evidence_of("sound")
    unmeasured = dataclasses.replace(evidence, val=None, train=SplitEvidence(3, 4), losses=(1.0, math.nan))
    for each in (evidence, unmeasured):
        plain = json.loads(json.dumps(each.to_plain()))
        again = RunEvidence.of_plain(plain)
        assert again.to_plain() == plain
        assert causes_of(again) == causes_of(each)


def test_causes_fall_by_their_cost_and_are_plain_data() -> None:
    sound, swapped = evidence_of("sound"), evidence_of("swapped-classes")
    assert sound.val is not None
    rare = dataclasses.replace(sound.val, class_ap={**sound.val.class_ap, "disc": 0.1})
    both = dataclasses.replace(sound, train=swapped.train, val=rare, num_images_of={**sound.num_images_of, "disc": 2})
    found = causes_of(both)
    assert [cause.held_back for cause in found] == sorted((cause.held_back for cause in found), reverse=True)
    assert {cause.code for cause in found} == {"labels", "few-images"}
    assert json.loads(json.dumps([to_plain(cause) for cause in found]))[0]["code"] == found[0].code


def test_run_that_diverged_before_its_first_save_blames_a_far_rate() -> None:
    sound = evidence_of("sound")
    bare = dataclasses.replace(sound, train=SplitEvidence(120, 300), val=None, steps=(), losses=(), aps=())
    assert codes(bare) == []
    (cause,) = causes_of(dataclasses.replace(bare, lr=3.0))
    assert (cause.code, cause.change) == ("rate-high", "optimizer.lr=0.001")


def test_rate_is_not_blamed_for_a_model_that_fits_its_training_images() -> None:
    assert codes(dataclasses.replace(evidence_of("sound"), lr=0.05)) == []


def test_loss_that_does_not_fall_at_the_usual_rate_asks_for_a_tenth() -> None:
    low = evidence_of("rate-too-low")
    usual = dataclasses.replace(low, lr=low.usual_lr)
    (cause,) = causes_of(usual)
    assert (cause.code, cause.change) == ("rate-high", f"optimizer.lr={low.usual_lr / 10:g}")


def test_objects_below_the_stride_ask_for_finer_maps_where_the_network_has_the_key() -> None:
    tiny = evidence_of("tiny-objects")
    changes = [causes_of(dataclasses.replace(tiny, has_levels=has))[0].change for has in (True, False)]
    assert changes == ["model.levels=[4,8,16,32]", "input.size=192"]


@pytest.mark.parametrize(
    ("stride", "levels"), [(8, (4, 8, 16, 32)), (16, (8, 16, 32, 64)), (32, (16, 32, 64)), (64, (32, 64))]
)
def test_finer_levels_stay_among_those_of_a_backbone(stride: int, levels: tuple[int, ...]) -> None:
    assert finer_levels(stride) == levels


def test_unfinished_and_short_runs_are_told_apart() -> None:
    sound = evidence_of("sound")
    fitted = dataclasses.replace(sound, aps=(0.1, 0.2, 0.4, 0.6, 0.8))
    assert causes_of(fitted) == ()  # training images are fitted, so that more steps are not what is missing
    rising = dataclasses.replace(fitted, train=dataclasses.replace(sound.train, ap=0.5))
    assert [(c.code, c.change) for c in causes_of(rising)] == [("short", "train.iterations=300")]
    stopped = dataclasses.replace(rising, num_steps=400)
    assert [(c.code, c.change) for c in causes_of(stopped)] == [("short", "train --resume")]


@pytest.mark.parametrize(("num_steps", "change"), [(4, "train.iterations=2000"), (400, "train --resume")])
def test_a_handful_of_steps_is_not_blamed_on_the_learning_rate(num_steps: int, change: str) -> None:
    sound = evidence_of("sound")
    untrained = dataclasses.replace(sound.train, ap=0.0, ap50=0.0)
    begun = dataclasses.replace(
        sound, train=untrained, num_steps=num_steps, steps=(2, 4), losses=(9.0, 8.9), aps=(0.0, 0.0)
    )
    first = causes_of(begun)[0]
    assert (first.code, first.change) == ("short", change)
    assert "rate-high" not in codes(begun)


def test_falling_ap_is_evidence_of_overfitting() -> None:
    few = evidence_of("few-images")
    (cause, *_) = causes_of(dataclasses.replace(few, aps=(0.3, 0.6, 0.8, 0.75, 0.7)))
    assert cause.code == "overfitting"
    assert "AP fell from 0.800 to 0.700 by the end" in cause.evidence
