"""Plans of studies: files, `--only` and overrides."""

from __future__ import annotations

import re

import pytest

from detector.config.nodes import presets_dir
from detector.errors import ConfigError
from detector.workflows.studies.plan import find_study, load_study, runs_of

SHIPPED = sorted(path.stem for path in (presets_dir() / "studies").glob("*.yaml"))


def test_documented_studies_are_shipped():
    assert {"depth", "classify", "detect", "optimiser", "attention"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_experiment_of_a_shipped_study_loads(name):
    study = load_study(name)  # loads the experiment of every combination
    assert study.seeds >= 5  # fewer seeds give a descriptive report only
    assert len({run.key for run in runs_of(study)}) == len(runs_of(study))


def test_runs_are_ordered_by_seed_and_overrides_of_axes_come_last(small_study):
    runs = runs_of(load_study(str(small_study), ["train.clip_norm=5.0"]))
    assert [run.key for run in runs[:5]] == [
        "size=small,activation=relu,seed=0",
        "size=small,activation=mish,seed=0",
        "size=large,activation=relu,seed=0",
        "size=large,activation=mish,seed=0",
        "size=small,activation=relu,seed=1",
    ]
    assert runs[0].overrides[-3:] == ("train.clip_norm=5.0", "input.size=32", "model.activation=relu")


def test_only_keeps_the_given_values_and_the_baseline(small_study):
    study = load_study(str(small_study), only=["activation=mish", "size=large"], seeds=3)
    assert list(study.axes["activation"]) == ["relu", "mish"]
    assert list(study.axes["size"]) == ["large"]
    assert len(runs_of(study)) == 6


@pytest.mark.parametrize(
    ("only", "told"),
    [
        ("activation=mihs", "no value 'mihs'; did you mean 'mish'?"),
        ("colour=red", "an axis of size, activation"),
        ("activation", "AXIS=VALUE"),
        ("activation=", "AXIS=VALUE"),
    ],
)
def test_only_with_an_unknown_axis_or_value_is_rejected(small_study, only, told):
    with pytest.raises(ConfigError, match="--only") as error:
        load_study(str(small_study), only=[only])
    assert told in str(error.value)


@pytest.mark.parametrize("override", ["model.activation=silu", "model.activation.beta=2", "model={width: 0.5}"])
def test_override_of_a_key_of_an_axis_is_rejected(small_study, override):
    with pytest.raises(ConfigError, match="the axis activation sets that; use --only"):
        load_study(str(small_study), [override])


@pytest.mark.parametrize("override", ["train.seed=3", "train.run_name=x", "train.project=/tmp"])
def test_override_of_a_key_that_the_study_sets_is_rejected(small_study, override):
    with pytest.raises(ConfigError, match="a study sets that itself"):
        load_study(str(small_study), [override])
    text = small_study.read_text().replace("loader.batch_size=10", override)
    small_study.write_text(text)
    with pytest.raises(ConfigError, match=r"a study sets train\.seed") as error:
        load_study(str(small_study))
    assert "small.yaml:1" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("baseline: relu", "baseline: rleu", "did you mean 'relu'"),
        ("compare: activation", "compare: activtion", "did you mean 'activation'"),
        ("small: [", "sm/all: [", "letters, digits"),
        ("seeds: 2", "seeds: 0", "seeds >= 1"),
        ("seeds: 2", "seedz: 2", "did you mean 'seeds'"),
        ("seeds: 2", "seeds: two", "seeds: expected a valid integer"),
        ("metric: top1", "judged: first", "judged: expected 'final' or 'best'"),
        ("large: [input.size=64]", "large: 3", "axes.size.large: expected a list, got the number 3"),
        ("size: {small", "seed: {small", "an axis: expected another name than seed"),
        ("input.size=64", "model.activation=silu", "got model.activation on size and on activation"),
        ("seeds: 2", "measure: cost", "metric of a study of costs: expected step_ms or peak_mb, got 'top1'"),
        ("experiment: classify", "experiment: clasify", "did you mean 'classify'"),
        ("seeds: 2", "environment: {mihs: {DETECTOR_X: y}}", "environment: expected values of an axis, got mihs"),
        *(
            (
                "seeds: 2",
                f"environment: {{mish: {{{name}: x}}}}",
                f"variables of detector or of its threads, got {name};",
            )
            for name in (
                "PYTHONWARNINGS",
                "BROWSER",
                "PYTHONPATH",
                "LD_PRELOAD",
                "CXX",
                "PATH",
                "XDG_CACHE_HOME",
                "omp",
            )
        ),
    ],
)
def test_mistakes_in_a_study_are_reported_with_file_and_line(small_study, old, new, told):
    small_study.write_text(small_study.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=r"small\.yaml:\d+: ") as error:
        load_study(str(small_study))
    assert told in str(error.value)


def test_mistakes_in_all_combinations_are_reported_together_and_once(small_study):
    text = small_study.read_text().replace("model.activation=mish", "model.activation=mihs")
    small_study.write_text(text.replace("input.size=64", "input.size=sixty"))
    with pytest.raises(ConfigError) as error:
        load_study(str(small_study))
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert re.search(r"small\.yaml:15: override 'model\.activation=mihs': .* no activation is named 'mihs'", lines[0])
    assert re.search(r"small\.yaml:14: override 'input\.size=sixty': input\.size: expected", lines[1])


def test_mistakes_in_the_study_itself_are_reported_together(small_study):
    text = small_study.read_text().replace("compare: activation", "compare: activtion")
    text = text.replace("size: {small", '"s/ze": {small').replace(
        "seeds: 2", "seeds: 0\nenvironment: {mihs: {DETECTOR_A: b}}"
    )
    small_study.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_study(str(small_study))
    lines = str(error.value).splitlines()
    assert all("small.yaml:1: " in line for line in lines)
    found = [
        word for line in lines for word in ("letters, digits", "'activtion'", "mihs", "seeds >= 1") if word in line
    ]
    assert found == ["letters, digits", "mihs", "'activtion'", "seeds >= 1"]


def test_wrong_override_of_the_command_line_is_reported_without_a_file(small_study):
    with pytest.raises(ConfigError, match=r"^override 'train\.clip_norm=x': "):
        load_study(str(small_study), ["train.clip_norm=x"])


def test_cfg_beside_the_study_file_is_found(small_study):
    (small_study.parent / "mine.cfg").write_text((presets_dir() / "darknet" / "yolov4-tiny.cfg").read_text())
    small_study.write_text(
        "title: x\nexperiment: mine.cfg\ncompare: size\nbaseline: small\n"
        "axes: {size: {small: [input.size=320], large: [input.size=416]}}\n"
    )
    assert load_study(str(small_study)).experiment == str(small_study.parent / "mine.cfg")


def test_unknown_study_is_reported_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        load_study("dept")
    assert find_study("depth") == find_study("depth.yaml")


def test_experiment_beside_the_study_file_is_found(small_study):
    (small_study.parent / "mine.yaml").write_text("base: classify.yaml\nloader: {batch_size: 7}\n")
    small_study.write_text(small_study.read_text().replace("experiment: classify", "experiment: mine.yaml"))
    assert load_study(str(small_study)).experiment == str(small_study.parent / "mine.yaml")
