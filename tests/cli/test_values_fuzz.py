"""Values of a wrong shape for every option and key: a command ends with an exit code, never with a traceback."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from detector.cli import serve as serve_command
from detector.cli.main import COMMANDS, actions_of, build_parser, run
from detector.config.key_table import key_table
from detector.config.schema import config_to_plain
from detector.data.doctor import doctor_page
from detector.models.checkpoint import ModelFile, save_model
from detector.tasks.detection_model import build_model, load_detection
from detector.training.trainer import Trainer

Bounded = Callable[[], AbstractContextManager[None]]
VALUES = (
    *("", " ", "null", "~", "true", "nan", ".nan", "inf", "-.inf", "1e999", "1e-400", "-1", "0", "0.5", "1", "7"),
    *("1" + "0" * 12, "9" * 30, "9" * 5000, "-9223372036854775809", "1e-3", "0x10", "1_0", "1:30", "2020-01-01"),
    *("[]", "[0.1, 0.2]", "[1, 2, 3, 4, 5]", "[[1]]", "[null]", "{}", "{a: 1}", "{name: x}", "{name: [1]}", "[{}]"),
    *("x", "x" * 300, "a/" * 3000, "\udcff", "\udcff.yaml", "é", "a\nb", "\t", ",", "1,", "1,2", "1,2,3,4,5", "a,a"),
    *(
        "=",
        "a=b",
        "a=0.5,b=0.5",
        "train=2,val=-1",
        "%s",
        "{",
        "[",
        "!x 1",
        "&a 1",
        "*a",
        "- 1",
        "a: b: c",
        "*",
        "[",
        "(",
    ),
    *("..", "nowhere/x.jpg", "x.jpg", "data.yaml", "x.json", "x.safetensors", "x.onnx", "http://x", "camera:99", "-"),
    *("0,0,9,9", "0,0,0,0", "nan,0,1,1", "0,0,9,9,5,5", "inf,0,1,1,2,2", "1e308,0,1,1,2,-1e308", "cuda:99", "best"),
)
OWN_VALUE = "x.safetensors"
WITH_KEYS = ("train", "predict", "evaluate")


class Place:
    """Folder with a drawn data set, an image, a video and a small model, and a command line of each command."""

    def __init__(self, root: Path, data: str, folder: Path, video: Path) -> None:
        config = load_detection("mish-n", ["model.width=0.125", "input.size=64", "device=cpu"])
        torch.manual_seed(0)
        model, names = build_model(config, 2), ("circle", "square")
        save_model(root / OWN_VALUE, ModelFile(config_to_plain(config), names, (1, 2), dict(model.state_dict())))
        image, annotations = folder / "images/val/000001.jpg", folder / "annotations/val.json"
        shutil.copy(image, root / "x.jpg")
        (root / "x.json").write_text("[]")
        (root / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
        (root / "study.yaml").write_text("base: mish-n\nvary: {optimizer.lr: [0.1, 0.2]}\nseeds: [0]\n")
        weights, overrides = str(root / OWN_VALUE), [data, "device=cpu"]
        small = ["loader.workers=0", "augment.albumentations=[]"]
        tiny = ["model.width=0.125", "model.depth=0.1", "input.size=64", *small]
        tiny += ["loader.batch_size=2", "train.iterations=1"]
        self.lines: dict[str, list[list[str]]] = {
            "train": [["mish-n", *overrides, *tiny]],
            "evaluate": [
                [weights, *overrides],
                ["--results", "x.json", "--annotations", str(annotations)],
                ["--tracks", "x.json", "--annotations", "x.json"],
            ],
            "predict": [[weights, str(image), "device=cpu"], [weights, str(video), "--track", "device=cpu"]],
            "compare": [["x.json", "x.json", "--annotations", str(annotations)], ["runs/a", "runs/b"]],
            "study": [["study.yaml", "--dry-run", *overrides, *tiny]],
            "check": [[data, *small]],
            "dataset": [
                ["split", data],
                ["subset", data],
                ["remap", data, "circle=square"],
                ["merge", data, data],
                ["to-yolo", data],
                ["to-coco", str(annotations), str(image.parent)],
            ],
            "augment": [[data, "--num", "1", *small]],
            "models": [["x.safetensors"]],
            "config": [["train"]],
            "new": [["backbone", "part.py"]],
            "activations": [["mish"]],
            "benchmark": [[weights, "--turns", "1", "--backends", "torch", "--sizes", "64", "device=cpu"]],
            "convert": [[weights, "converted.weights"]],
            "export": [[weights, "--to", "torchscript", "device=cpu"]],
            "anchors": [[data]],
        }
        self.lines |= {name: [[]] for name in COMMANDS if name not in self.lines and name not in ("val", "env")}
        self._root, self._model = root, (root / OWN_VALUE).read_bytes()

    def restore(self) -> None:
        """Remove what commands wrote."""
        kept = {"data.yaml", "study.yaml", "x.jpg", "x.json", OWN_VALUE}
        for path in self._root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self._root / OWN_VALUE).write_bytes(self._model)


def _refuse_network(*arguments: object, **keywords: object) -> NoReturn:
    raise OSError("no network in this test")


@pytest.fixture
def place(tiny_shapes: Path, tmp_path: Path, draw_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Place:
    root = tmp_path / "a/b/c"
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _refuse_network)
    monkeypatch.setattr(serve_command, "serve", lambda words, overrides, config, report: None)  # it waits for requests
    monkeypatch.setattr(Trainer, "run", lambda self, batches, should_stop: False)
    splits = ", ".join(
        f"{name}: {{annotations: {tiny_shapes}/annotations/{name}.json, images: {tiny_shapes}/images/{name}}}"
        for name in ("train", "val")
    )
    return Place(root, f"data={{name: coco, {splits}}}", tiny_shapes, draw_video(num_frames=3))


def option_values(command: str) -> list[argparse.Action]:
    """Return the options of a command that take a value."""
    parser = build_parser([command])
    return [action for action in actions_of(parser, command) if action.option_strings and action.nargs != 0]


def command_lines(place: Place) -> tuple[list[list[str]], list[list[str]]]:
    """Return every command line with one word or option of a wrong shape, and every one with such a key."""
    with_options, with_keys = [], []
    for command, bases in place.lines.items():
        named = [f"{action.option_strings[-1]}=" for action in option_values(command)]
        keys = [f"{key}=" for key in sorted(key_table().paths())] if command in WITH_KEYS else []
        for base in bases:
            for name in ["", *named]:
                out = ["--out", "out"] if command == "dataset" and name != "--out=" else []
                with_options += [[command, *base, *out, f"{name}{value}"] for value in VALUES]
            with_keys += [[command, *base, f"{key}{value}"] for key in keys for value in VALUES]
    return with_options, with_keys


def in_turn(lines: list[list[str]], num: int, generator: random.Random) -> list[list[str]]:
    """Return random command lines, as many of each command."""
    commands = sorted({line[0] for line in lines})
    by_command = {name: [line for line in lines if line[0] == name] for name in commands}
    shuffled = [generator.sample(by_command[name], min(num, len(by_command[name]))) for name in commands]
    return [line for turn in itertools.zip_longest(*shuffled) for line in turn if line is not None][:num]


def outcome_of(line: list[str]) -> int | str | None:
    """Return the exit code of a command line."""
    try:
        return run(line)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("num", [46, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_values_of_a_wrong_shape_end_in_an_exit_code(
    num: int, place: Place, bounded: Bounded, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if num < 1000:  # the charts of one report take as long as all the rest
        monkeypatch.setattr(doctor_page, "drawn_charts", lambda report: ())
    generator = random.Random(num)
    chosen = [line for lines in command_lines(place) for line in in_turn(lines, num // 2, generator)]
    codes: set[int | str | None] = set()
    failures = []
    for line in chosen:
        try:
            with bounded():
                codes.add(outcome_of(line))
        except BaseException as error:
            failures.append(f"{error!r:.300} by detector {json.dumps(line)}")
        if "Traceback" in capfd.readouterr().err:
            failures.append(f"a traceback by detector {json.dumps(line)}")
        place.restore()
    assert not failures, "\n".join(failures[:20])
    assert {0, 2} <= codes <= {0, 1, 2, 3, 4, 5, 143}
