"""The command line as one whole: the same words for the same options, the help, and answers to mistakes."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from detector.cli.main import COMMANDS, actions_of, build_parser, run
from detector.cli.predict_options import _WORDS_FOR_CONFIDENCE
from detector.cli.usage import split_words
from detector.config.schema import config_from_plain, load_config
from detector.errors import ConfigError
from detector.evaluation.operating_point import BEST, BEST_OVERALL
from detector.tasks.task import TaskConfig, load_experiment


@pytest.fixture(scope="module")
def parser():
    return build_parser(COMMANDS)


def called(*words: str) -> int:
    try:
        return run(list(words))
    except SystemExit as end:
        return int(str(end.code))


def parsed(*words: str) -> argparse.Namespace:
    return build_parser(words).parse_args(words)


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_with_a_value_states_its_default(parser, command):
    without = ("--import", "--to")  # the one adds files, the other is required
    with_value = [action for action in actions_of(parser, command) if action.option_strings and action.nargs != 0]
    silent = [action.option_strings[0] for action in with_value if "default" not in (action.help or "")]
    assert [option for option in silent if option not in without] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_stated_default_is_the_default(parser, command):
    for action in actions_of(parser, command):
        stated = re.search(r"\(default ([\w.=,-]+)", action.help or "")
        if stated and action.default is not None and not isinstance(action.default, (list, bool)):
            assert str(action.default) == stated[1], action.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_that_its_parser_accepts(command, capsys):
    assert called(command, "--help") == 0
    shown = capsys.readouterr().out
    examples = re.search(r"examples:\n((?:  .*\n)+)", shown)
    assert examples
    own = "evaluate" if command == "val" else command
    for line in examples[1].splitlines():
        words = line.partition("#")[0].replace("(", " ").replace(")", " ").split()
        start = words.index("detector")
        assert words[start + 1] == own
        build_parser(words).parse_known_args(words[start + 1 :])


def test_help_of_train_leads_to_the_keys(capsys):
    assert called("train", "--help") == 0
    assert "detector config lists all keys" in " ".join(capsys.readouterr().out.split())


def test_destination_is_named_out_in_every_command(parser):
    words = ("--save-dir", "--output", "--out-dir", "--output-dir")
    for command in COMMANDS:
        options = {option for action in actions_of(parser, command) for option in action.option_strings}
        assert not options & set(words), command
    with_out = [name for name in COMMANDS if any(action.dest == "out" for action in actions_of(parser, name))]
    writing = "train evaluate val study tune predict dataset augment check convert export download labels results"
    assert sorted(with_out) == sorted(writing.split())


@pytest.mark.parametrize(
    ("command", "old"),
    [
        ("predict", "--save-dir"),
        ("evaluate", "--save-dir"),
        ("dataset", "--to"),
        ("augment", "--output"),
        ("check", "--output"),
        ("download", "--output"),
    ],
)
def test_old_word_for_the_destination_is_still_accepted(command, old):
    assert parsed(command, old, "there").out == Path("there")
    assert parsed(command, "--out", "there").out == Path("there")
    assert parsed(command).out is None


def test_old_word_for_the_data_of_augment_is_still_accepted():
    assert parsed("augment", "--preview", "shapes").data == "shapes"


def test_words_for_confidence_are_those_of_the_operating_point():
    assert _WORDS_FOR_CONFIDENCE == (BEST, BEST_OVERALL)


# --- data and destinations -----------------------------------------------------------------------------------------


def test_option_data_is_the_override_data():
    assert split_words(parsed("train", "mish-n", "--data", "my data.yaml")) == (["mish-n"], ['data="my data.yaml"'])


def test_address_and_existing_file_with_an_equals_sign_are_no_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.jpg").touch()
    names, overrides = split_words(parsed("predict", "w", "a=b.jpg", "rtsp://host/?a=b", "device=cpu"))
    assert names == ["w", "a=b.jpg", "rtsp://host/?a=b"]
    assert overrides == ["device=cpu"]


def test_run_folder_is_given_by_out(tmp_path, monkeypatch, capsys):
    from detector.cli.train_options import experiment_words

    monkeypatch.chdir(tmp_path)
    _, overrides = experiment_words(parsed("train", "mish-n", "--out", "mine/first"))
    config = load_experiment("mish-n", overrides)
    assert config.train.project / config.train.run_name == tmp_path / "mine" / "first"


@pytest.mark.parametrize("words", [["shapes"], ["--data", "shapes"], ["data={name: shapes}"]])
def test_data_set_may_be_a_word_an_option_or_an_override(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["data.num_train=4", "data.num_val=2", "data.image_size=64"]
    assert called("anchors", *words, *small, "--num", "2", "--size", "64", "--json", "-q") == 0
    assert len(json.loads(capsys.readouterr().out)["anchors"]) == 2
    drawn = json.loads(Path("data/shapes/shapes.json").read_text())["parameters"]
    assert (drawn["num_train"], drawn["num_val"], drawn["image_size"]) == (4, 2, 64)


# --- run folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """Make the configuration of a run, without weights."""
    folder = tmp_path / "runs" / "train"
    folder.mkdir(parents=True)
    plain = {"data": {"name": "shapes", "root": "/drawn", "seed": 5}, "optimizer": {"name": "sgd", "lr": 0.3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    return folder


def test_run_folder_stands_for_the_sections_of_its_run(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parents[1])
    config = load_experiment("mish-n", ["data=runs/train", "data.seed=6", f"optimizer={run_folder}"])
    own = load_config(TaskConfig, str(run_folder / "config.yaml"))
    assert config.optimizer == own.optimizer
    assert config.data == config_from_plain(type(own.data), {"root": "/drawn", "seed": 6}, "a test")


def test_run_folder_without_the_section_is_refused(run_folder):
    with pytest.raises(ConfigError, match=r"schedule: the run .*train has no schedule; name another one"):
        load_experiment("mish-n", [f"schedule={run_folder}"])


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("detect", "detector: no command is named 'detect'; here it is detector predict"),
    ("pridect", "detector: no command is named 'pridect'; did you mean 'predict'?"),
    ("train --epochs 5", "unknown argument '--epochs'; here it is train.epochs=VALUE"),
    ("train mish-n --batch-size 4", "unknown argument '--batch-size'; here it is loader.batch_size=VALUE"),
    ("train mish-n --train.epochs 3", "unknown argument '--train.epochs'; write train.epochs=VALUE"),
    ("train mish-n --dry-rn", "unknown argument '--dry-rn'; did you mean '--dry-run'?"),
    ("predict a b --imgsz 320", "unknown argument '--imgsz'; here it is input.size=VALUE"),
    ("evaluate a --device 0", "unknown argument '--device'; write device=VALUE"),
    ("models --imgsz 320", "unknown argument '--imgsz'; see"),
    ("dataset splt data.yaml --out x", "got splt; did you mean 'split'?"),
    ("dataset split data.yaml", "expected a folder for the result, got none; give --out FOLDER"),
    ("augment", "expected a data set, got none; give --data DATA"),
    ("anchors --num 3", "expected one data set, got none"),
    ("check a.yaml b.yaml", "expected one data set, got a.yaml, b.yaml"),
    ("convert a.weights", "expected a SOURCE and a TARGET, got a.weights"),
    ("compare a", "expected at least two different runs"),
    ("study depth detect", "expected one study, got depth, detect"),
    ("config imgsz", "no key or section is named 'imgsz'; here it is input.size"),
    ("completion powershell", "no script is made for the shell 'powershell'"),
    ("evaluate a evalute.iou=0.4", "unknown key 'evalute'; did you mean 'evaluate'?"),
    ("predict a b predict.conf=0.4", "unknown key 'predict.conf'; here it is predict.confidence"),
    ("export a --to onnx input.siz=3", "unknown key 'input.siz'; did you mean 'size'?"),
    ("benchmark mish-n devise=cpu", "unknown key 'devise'; did you mean 'device'?"),
    ("study depth trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistake_of_a_command_line_is_answered_with_what_was_meant(line, message, capsys):
    assert called(*line.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1


def test_command_with_a_key_of_an_imported_part_reaches_the_full_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parts = Path(__file__).parents[1] / "parts" / "toy_neck.py"
    assert called("train", "mish-n", "--import", str(parts), "model.nek=toy") == 2
    assert "unknown key 'model.nek'; did you mean 'neck'?" in capsys.readouterr().err


# --- keys and completion -------------------------------------------------------------------------------------------


def test_config_lists_keys_and_those_of_imported_parts(capsys):
    assert called("config", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"train.epochs", "model.backbone.stride"} <= {row["path"] for row in listed}
    assert called("config", "train.clip_norm", "--json") == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)] == ["train.clip_norm"]
    parts = Path(__file__).parents[1] / "parts" / "toy_loss.py"
    assert called("config", "loss", "--import", str(parts)) == 0
    assert "toy" in capsys.readouterr().out


def completed(script: str, *words: str) -> list[str]:
    """Return the words that the script for bash offers for the last one."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _detector; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_values_and_keys(capsys):
    assert called("completion", "bash") == 0
    script = capsys.readouterr().out
    assert completed(script, "detector", "pre") == ["predict"]
    assert completed(script, "detector", "train", "--pl") == ["--plot-schedule"]
    assert completed(script, "detector", "export", "--precision", "f") == ["fp32", "fp16"]
    assert completed(script, "detector", "train", "train.ep") == ["train.epochs="]
    assert completed(script, "detector", "train", "mish-") == [f"mish-{size}" for size in "lmnsx"]
    assert completed(script, "detector", "predict", "--save") == []  # an old word is hidden


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_of_another_shell_names_every_command_and_key(shell, capsys):
    assert called("completion", shell) == 0
    script = capsys.readouterr().out
    assert all(re.search(rf"\b{command}\b", script) for command in COMMANDS)
    assert "train.epochs=" in script
    assert "plot-schedule" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", script], check=True)


# --- missing files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.weights", "m.safetensors", "m.pt", "m.pth", "m.onnx", "yolov4-tiny.weights"])
def test_missing_model_file_of_any_format_is_named_with_the_exit_code_of_model_files(name, tmp_path, capsys):
    assert called("evaluate", str(tmp_path / name)) == 4
    assert f"{tmp_path / name} does not exist" in capsys.readouterr().err


def test_damaged_weights_have_the_exit_code_of_model_files(tmp_path, capsys):
    path = tmp_path / "yolov4-tiny.weights"
    path.write_bytes(b"short")
    assert called("evaluate", str(path)) == 4
    assert "has 5 bytes; expected a header" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none/data.yaml", "none.data"])
def test_missing_data_file_is_named_without_a_list_of_presets(name, capsys):
    assert called("train", "mish-n", f"data={name}") == 2
    error = capsys.readouterr().err
    assert f"there is no file '{name}'" in error
    assert error.endswith("; check the path\n")
    assert "mish-" not in error.partition("there is")[2]
