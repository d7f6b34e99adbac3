"""Typed configuration: all mistakes together, each with file, line, key and nearest name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from detector.config.nodes import presets_dir
from detector.config.schema import config_from_plain, config_to_plain, config_to_yaml, differences, load_config
from detector.data.coco_dataset import SplitConfig
from detector.errors import ConfigError
from detector.models.activations import LeakyReLU
from detector.models.yolo import Yolo
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.task import changed_config, load_experiment
from detector.training.optimizers import SGD, AdamW

PRESETS = sorted(presets_dir().glob("*.yaml"))


@dataclass(frozen=True)
class Part:
    """Section for these tests."""

    size: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """Schema with every type of value that a configuration may contain."""

    count: int = 1
    rate: float = 0.5
    text: str = "x"
    flag: bool = False
    maybe: int | None = None
    choice: Literal["a", "b"] = "a"
    path: Path | None = None
    numbers: tuple[float, ...] = ()
    pair: int | tuple[int, int] = 3
    part: Part = dataclasses.field(default_factory=Part)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count: expected at least 0, got {self.count}")


@dataclass(frozen=True)
class Demanding:
    """Schema with required keys."""

    needed: int
    part: Part


@dataclass(frozen=True)
class Named:
    """Section whose keys are free names."""

    lists: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lists:
            raise ValueError("one is wrong\nand so is another")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a file into the working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda name, text: (tmp_path / name).write_text(text, encoding="utf-8")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that reads YAML text as a file in the working directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str, *overrides: str, schema: type = Schema):
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        return load_config(schema, "a.yaml", overrides)

    return load_text


# --- values --------------------------------------------------------------------------------------------------------


def test_every_type_of_value_is_read(load, tmp_path):
    config = load(
        "count: 2\nrate: 1\ntext: hello\nflag: true\nmaybe: 4\nchoice: b\npath: sub/x\nnumbers: [1, 2.5]\n"
        "pair: [3, 4]\npart: {size: 9, names: [a, 'on']}\n"
    )
    assert config == Schema(2, 1.0, "hello", True, 4, "b", tmp_path / "sub/x", (1.0, 2.5), (3, 4), Part(9, ("a", "on")))
    assert isinstance(config.rate, float)
    assert isinstance(config.pair, tuple)


def test_missing_keys_have_their_defaults(load):
    assert load("") == Schema()
    assert load("maybe: null\n") == Schema()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: 1.5", "count: expected a valid integer, got the number 1.5"),
        ("count: '3'", "count: expected a valid integer, got the text '3'"),
        ("count: true", "count: expected a valid integer, got the bool true"),
        ("count: null", "count: expected a valid integer, got nothing"),
        ("count: [1]", "count: expected a valid integer, got a list"),
        ("count: {a: 1}", "count: expected a valid integer, got a section"),
        ("rate: 1e-3", "rate: expected a valid number, got the text '1e-3'; YAML reads it as text, write 0.001"),
        ("rate: 5e5", "rate: expected a valid number, got the text '5e5'; YAML reads it as text, write 500000.0"),
        ("rate: fast", "rate: expected a valid number, got the text 'fast'"),
        ("rate: true", "rate: expected a valid number, got the bool true"),
        ("rate: .nan", "rate: expected a finite number, got nan"),
        ("rate: -.inf", "rate: expected a finite number, got -inf"),
        ("text: 3", "text: expected a valid string, got the number 3; put it in quotes"),
        ("text: no", "text: expected a valid string, got the bool false; put it in quotes"),
        ("text: 2020-01-01", "text: expected a plain value, got the date .*; put it in quotes"),
        ("flag: 1", "flag: expected a valid boolean, got the number 1"),
        ("flag: 'yes'", "flag: expected a valid boolean, got the text 'yes'"),
        ("choice: c", "choice: expected 'a' or 'b', got the text 'c'"),
        ("path: 3", "path: expected a path, got the number 3"),
        ("path: ''", "path: expected a path, got the text ''"),
        ('path: "a\\0b"', "path: expected a path, got the text .* \\(.*embedded null (byte|character)"),
        ("path: ~nobody.here/x", "path: expected a path, got the text '~nobody.here/x' \\("),
        ("numbers: 3", "numbers: expected a list, got the number 3"),
        ("numbers: [1, x]", r"numbers\[1\]: expected a valid number, got the text 'x'"),
        ("numbers: [.inf]", r"numbers\[0\]: expected a finite number, got inf"),
        ("pair: [1, 2, 3]", "pair: expected a whole number or a list of 2 whole numbers, got a list"),
        ("pair: [on, off]", "pair: expected .*; YAML reads on, off, yes and no as bools, put them in quotes"),
        ("part: 3", "part: expected a section of keys, got the number 3"),
        ("part: [a]", "part: expected a section of keys, got a list"),
        ("part: text", "part: expected a section of keys, got the text 'text'"),
        ("part: {names: [no, on]}", r"part.names\[0\]: expected a valid string, got the bool false; put it in quotes"),
        ("part: {names: cat}", r"part.names: expected a list, got the text 'cat'"),
        ("coumt: 3", r"unknown key 'coumt'; did you mean 'count'\?"),
        ("part: {sise: 3}", r"unknown key 'part.sise'; did you mean 'size'\?"),
        ("zzzzz: 3", "unknown key 'zzzzz'; known: choice, count, flag, maybe, numbers, pair, part, path, rate, text"),
        ("count: -1", "count: expected at least 0, got -1"),
    ],
)
def test_wrong_value_is_reported_with_file_line_key_and_remedy(load, text, message):
    with pytest.raises(ConfigError, match=rf"^a\.yaml:2: {message}"):
        load(f"# a comment\n{text}\n")


def test_all_mistakes_are_reported_together(load):
    with pytest.raises(ConfigError) as caught:
        load("count: x\nrate: 1e-3\n\npart:\n  size: big\n  names: [no, 3]\n  nmaes: []\nnothing: 1\n")
    assert str(caught.value).splitlines() == [
        "a.yaml:1: count: expected a valid integer, got the text 'x'",
        "a.yaml:2: rate: expected a valid number, got the text '1e-3'; YAML reads it as text, write 0.001",
        "a.yaml:5: part.size: expected a valid integer, got the text 'big'",
        "a.yaml:6: part.names[0]: expected a valid string, got the bool false; put it in quotes",
        "a.yaml:6: part.names[1]: expected a valid string, got the number 3; put it in quotes",
        "a.yaml:7: unknown key 'part.nmaes'; did you mean 'names'?",
        "a.yaml:8: unknown key 'nothing'; known: choice, count, flag, maybe, numbers, pair, part, path, rate, text",
    ]


def test_values_of_a_section_with_free_names_are_checked_in_place(load):
    assert load("lists:\n  a: [1]\n  b: []\n", schema=Named) == Named({"a": (1,), "b": ()})
    with pytest.raises(ConfigError) as caught:
        load("lists:\n  a: 3\n  b: [1, x]\n", schema=Named)
    assert str(caught.value).splitlines() == [
        "a.yaml:2: lists.a: expected a list, got the number 3",
        "a.yaml:3: lists.b[1]: expected a valid integer, got the text 'x'",
    ]
    with pytest.raises(ConfigError, match="lists: expected a section of keys, got a list"):
        load("lists: [1]\n", schema=Named)


def test_each_line_of_an_error_of_an_object_has_its_place(load):
    with pytest.raises(ConfigError) as caught:
        load("lists: {}\n", schema=Named)
    assert str(caught.value).splitlines() == ["a.yaml:1: one is wrong", "a.yaml:1: and so is another"]


def test_mistakes_of_file_parent_and_override_are_reported_together(load, tmp_path):
    (tmp_path / "parent.yaml").write_text("rate: slow\ncount: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load("base: parent.yaml\nflag: 3\n", "part.size=x", "conut=3")
    assert str(caught.value).splitlines() == [
        "parent.yaml:1: rate: expected a valid number, got the text 'slow'",
        "a.yaml:2: flag: expected a valid boolean, got the number 3",
        "override 'part.size=x': part.size: expected a valid integer, got the text 'x'",
        "override 'conut=3': unknown key 'conut'; did you mean 'count'?",
    ]


def test_missing_required_key_is_reported(load):
    with pytest.raises(ConfigError) as caught:
        load("\n# empty\n", schema=Demanding)
    assert "key 'needed' is missing; add it" in str(caught.value)
    assert "key 'part' is missing; add it" in str(caught.value)
    assert load("needed: 1\npart: {}\n", schema=Demanding) == Demanding(1, Part())


# --- paths and sections --------------------------------------------------------------------------------------------


def test_path_is_relative_to_the_file_that_contains_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/parent.yaml").write_text("path: ../data/x.json\n", encoding="utf-8")
    (tmp_path / "deep/er/a.yaml").write_text("base: ../parent.yaml\n", encoding="utf-8")
    assert load_config(Schema, "deep/er/a.yaml").path == tmp_path / "data/x.json"
    assert load_config(Schema, "deep/er/a.yaml", ["path=y.json"]).path == tmp_path / "y.json"
    assert load_config(Schema, "deep/er/a.yaml", ["path=/y.json"]).path == Path("/y.json")
    monkeypatch.chdir(tmp_path / "deep")
    assert load_config(Schema, "er/a.yaml").path == tmp_path / "data/x.json"


def test_home_folder_is_expanded(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load("path: ~/x").path == Path("/home/somebody/x")


def test_default_path_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_experiment("mish-n").train.project == tmp_path / "runs/detect"


def test_environment_variables_are_not_expanded(load, monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    assert load("text: $SECRET").text == "$SECRET"
    assert load("text: '{text}'").text == "{text}"
    assert load("path: /x/${SECRET}").path == Path("/x/${SECRET}")


def test_section_may_be_in_its_own_file(load, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/base.yaml").write_text("size: 7\nnames: [a]\n", encoding="utf-8")
    (tmp_path / "sub/part.yaml").write_text("base: base.yaml\nnames: [b]\n", encoding="utf-8")
    assert load("part: sub/part.yaml").part == Part(7, ("b",))
    assert load("part: sub/part.yaml", "part.size=8").part == Part(8, ("b",))
    with pytest.raises(
        ConfigError, match=r"^a\.yaml:1: there is no file 'sub/prat.yaml'; did you mean 'sub/part.yaml'"
    ):
        load("part: sub/prat.yaml")
    (tmp_path / "sub/part.yaml").write_text("\n\nsiez: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^sub.part\.yaml:3: unknown key 'part.siez'; did you mean 'size'"):
        load("part: sub/part.yaml")


def test_section_file_is_relative_to_the_file_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/part.yaml").write_text("size: 7\n", encoding="utf-8")
    (tmp_path / "far/a.yaml").write_text("part: part.yaml\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("base: far/a.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config(Schema, "far/a.yaml").part == Part(7)
    assert load_config(Schema, "b.yaml").part == Part(7)


def test_registered_name_alone_is_a_section(load):
    config = load("optimizer: sgd\nmodel: {activation: leaky}\n", schema=DetectionConfig)
    assert config.optimizer == SGD.Config()
    assert config.model == Yolo.Config(activation=LeakyReLU.Config())
    tuned = load("optimizer: sgd\n", "optimizer.lr=0.5", schema=DetectionConfig)
    assert tuned.optimizer == SGD.Config(lr=0.5)


def test_section_with_another_name_drops_the_settings_of_the_old_one(load, tmp_path):
    (tmp_path / "parent.yaml").write_text("optimizer: {name: adamw, lr: 0.3, beta1: 0.5}\n", encoding="utf-8")
    changed = load("base: parent.yaml\noptimizer: {name: sgd, momentum: 0.5}\n", schema=DetectionConfig)
    assert changed.optimizer == SGD.Config(momentum=0.5)  # without lr and beta1 of the other optimiser
    kept = load("base: parent.yaml\noptimizer: {beta2: 0.9}\n", schema=DetectionConfig)
    assert kept.optimizer == AdamW.Config(lr=0.3, beta1=0.5, beta2=0.9)
    by_override = load("base: parent.yaml\n", "optimizer=sgd", schema=DetectionConfig)
    assert by_override.optimizer == SGD.Config()


def test_section_without_a_name_changes_the_default_part(load):
    default = DetectionConfig().optimizer
    assert load("optimizer: {lr: 0.3}\n", schema=DetectionConfig).optimizer == dataclasses.replace(default, lr=0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {name: sdg}", r"optimizer: no .* is named 'sdg'; did you mean 'sgd'\?"),
        ("optimizer: adamww", r"optimizer: no .* is named 'adamww'; did you mean 'adamw'\?"),
        ("optimizer: {name: [sgd]}", r"optimizer: expected a name, one of adamw, .*sgd"),
        ("data: {train: 3}", "data.train: expected a section of keys, got the number 3"),
        ("data: {nmae: yolo}", "unknown key 'data.nmae'; did you mean 'name'"),
        ("optimizer: {name: sgd, beta1: 0.9}", "unknown key 'optimizer.beta1'; .*momentum"),
        ("optimizer: 3", "optimizer: expected a section of keys, got the number 3"),
        ("model: null", "model: expected a section of keys, got nothing"),
        ("optimizer: {lr: -1}", "optimizer: an optimiser: expected lr > 0"),
        ("input: {size: 0}", "input: expected an input with a size .* got 0"),
    ],
)
def test_wrong_part_is_reported_with_the_known_ones(load, text, message):
    with pytest.raises(ConfigError, match=rf"^a\.yaml:1: {message}"):
        load(text, schema=DetectionConfig)


@pytest.mark.parametrize(
    ("schema", "overrides", "section"),
    [
        (DetectionConfig, ["data.train.annotations=a.json", "data.train.images=img"], "coco"),
        (DetectionConfig, ["data.file=a.yaml", "data.name=yolo"], "yolo"),
        (ClassificationConfig, ["data.root=img"], "folders"),
    ],
)
def test_data_without_a_name_has_the_usual_format_whose_name_is_saved(schema, overrides, section):
    config = config_from_plain(schema, {}, "a test", overrides)
    plain = config_to_plain(config)
    assert config_from_plain(schema, plain, "a saved run") == config
    assert isinstance(plain["data"], dict)
    assert plain["data"]["name"] == section


def test_data_file_without_a_name_is_in_coco_format(load, tmp_path):
    (tmp_path / "data.yaml").write_text("train: {annotations: a.json, images: img}")
    data = load("data: data.yaml", schema=DetectionConfig).data
    assert data.train == SplitConfig(tmp_path / "a.json", tmp_path / "img")


def test_number_that_yaml_reads_as_text_is_reported_with_a_remedy(load):
    with pytest.raises(
        ConfigError, match=r"a\.yaml:3: optimizer\.lr: expected a valid number, got the text '1e-3'; .*0\.001"
    ):
        load("optimizer:\n  name: sgd\n  lr: 1e-3\n", schema=DetectionConfig)
    assert load("", "optimizer.lr=1e-3", schema=DetectionConfig).optimizer.lr == 0.001  # overrides accept this form


def test_last_override_wins(load):
    assert load("count: 1", "count=2", "count=3").count == 3
    assert load("part: {size: 1, names: [a]}", "part.size=4").part == Part(4, ("a",))


# --- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_survives_a_round_trip(preset, tmp_path, monkeypatch):
    config = load_experiment(str(preset))
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere/again.yaml"
    again.write_text(config_to_yaml(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # the written file has the same meaning in any folder
    assert load_experiment(str(again)) == config
    plain = yaml.safe_load(config_to_yaml(config))
    assert plain == config_to_plain(config)
    assert config_from_plain(type(config), plain, "a checkpoint") == config


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_is_found_by_its_name(preset):
    assert load_experiment(preset.stem) == load_experiment(str(preset))


def test_special_texts_and_numbers_survive_a_round_trip(tmp_path):
    config = Schema(
        rate=1e-7,
        text="on",
        numbers=(1e22, 1e-300, 0.1 + 0.2, -0.0),
        part=Part(
            names=("no", "1e-3", "", " x ", "ümläut 猫", "a: b", "# c", "null", "0x1f", "line\nbreak", "~", "'\"")
        ),
        path=Path("/with space/ü"),
    )
    path = tmp_path / "a.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(Schema, str(path)) == config


def test_plain_data_of_a_checkpoint_is_checked_like_a_file():
    plain = config_to_plain(load_experiment("mish-n"))
    plain["optimizer"]["lr"] = "fast"
    plain["extra"] = 1
    with pytest.raises(ConfigError) as caught:
        config_from_plain(DetectionConfig, plain, "best.safetensors")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("best.safetensors: ") for line in lines)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**80, b"bytes", object(), {1: 2}, [[[[1]]]], {"a": b"x"}]
)
def test_plain_data_of_a_wrong_type_is_rejected(value):
    for key in ("device", "seed", "train"):
        plain = config_to_plain(load_experiment("mish-n"))
        (plain if key != "seed" else plain["train"])[key] = value
        with pytest.raises(ConfigError, match="a checkpoint"):
            config_from_plain(DetectionConfig, plain, "a checkpoint")


def test_differences_name_the_key_and_both_values():
    ours, theirs = {"a": {"x": 1, "y": [1]}, "b": 2, "c": 3}, {"a": {"x": 1, "y": [2]}, "b": 2, "d": 4}
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "a.y: [1] here, [2] there",
        "c: 3 here, None there",
        "d: None here, 4 there",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (100.0, 7, 2000)),
        ({"epochs": 5}, (5.0, None, 0)),
        ({"epochs": 5, "min_iterations": 50}, (5.0, None, 50)),
        ({"epochs": 5, "iterations": 9}, (5.0, 9, 0)),
        ({"iterations": 9}, (100.0, 9, 2000)),
    ],
)
def test_given_epochs_replace_the_length_below_them(write, settings, expected):
    write("base.yaml", "train: {epochs: 100, iterations: 7, min_iterations: 2000}")
    write("own.yaml", f"base: base.yaml\ntrain: {json.dumps(settings)}")
    saved = config_to_plain(load_experiment("base.yaml"))
    words = [f"train.{key}={value}" for key, value in settings.items()]
    for config in (
        load_experiment("own.yaml"),
        load_experiment("base.yaml", words),
        config_from_plain(DetectionConfig, saved, "best.safetensors", words),
        changed_config(load_experiment("base.yaml"), None, {"train": settings}, "Detector"),
    ):
        assert (config.train.epochs, config.train.iterations, config.train.min_iterations) == expected


def test_later_length_of_the_command_line_wins(write):
    write("base.yaml", "train: {iterations: 7}")
    config = load_experiment("base.yaml", ["train.min_iterations=3", "train.iterations=9", "train.epochs=5"])
    assert (config.train.epochs, config.train.iterations, config.train.min_iterations) == (5.0, None, 3)
    assert load_experiment("base.yaml", ["train.epochs=5", "train.iterations=9"]).train.iterations == 9
