from __future__ import annotations

import json

import cv2
import pytest

from detector.cli.main import run
from detector.config.registry import names
from detector.models.activations import ActivationConfig

MY_ACTIVATION = '''
from dataclasses import dataclass

from torch import nn

from detector import register
from detector.models.activations import ActivationConfig


@register("test_cli_square")
class Square(nn.Module):
    """x ** 2."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        pass

    def __init__(self, config):
        super().__init__()

    def forward(self, x):
        return x * x
'''


def test_all_activations_are_listed(capsys):
    assert run(["activations"]) == 0
    header, *rows, _, footer = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "range", "minimum", "at", "formula", "(settings)"]
    assert [row.split()[0] for row in rows] == names(ActivationConfig)
    assert "model.activation=NAME" in footer
    (mish,) = (row for row in rows if row.startswith("mish "))
    assert mish.split(maxsplit=6) == ["mish", "-0.3088", "..", "inf", "-1.192", "smooth", "x * tanh(softplus(x))"]
    (leaky,) = (row for row in rows if row.startswith("leaky "))
    assert leaky.endswith("x if x > 0 else slope * x   (slope=0.1)")


def test_given_activations_are_listed_once_in_the_given_order(capsys):
    assert run(["activations", "tanh", "mish", "tanh", "--json"]) == 0
    tanh, mish = json.loads(capsys.readouterr().out)
    assert tanh == {
        "name": "tanh",
        "formula": "tanh(x)",
        "settings": {},
        "lower": -1.0,
        "upper": 1.0,
        "lowest_at": None,
        "smoothness": "smooth",
    }
    assert (mish["name"], mish["upper"]) == ("mish", None)


@pytest.mark.parametrize("words", [[], ["mish", "relu"]])
def test_plot_is_written(capsys, tmp_path, words):
    path = tmp_path / "activations.png"
    assert run(["activations", *words, "--plot", str(path)]) == 0
    assert capsys.readouterr().err == f"picture: {path}\n"
    assert cv2.imread(str(path)).shape[1] == 1300


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["mihs"], "no activation is named 'mihs'; did you mean 'mish'?", 2),
        (["--plot", "a.jpg"], "a.jpg: expected a file name that ends in .png, .svg, .pdf; rename it", 2),
        (["--plot", "nowhere/a.png"], "nowhere/a.png: the picture cannot be written, No such file or directory", 1),
    ],
)
def test_error_is_one_line(capsys, tmp_path, monkeypatch, words, message, code):
    monkeypatch.chdir(tmp_path)
    assert run(["activations", *words]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"detector activations: {message}")
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)


def test_imported_activation_is_listed_and_drawn(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(MY_ACTIVATION, encoding="utf-8")
    words = ["test_cli_square", "--import", str(tmp_path / "mine.py"), "--plot", str(tmp_path / "a.svg")]
    assert run(["activations", *words]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        *("test_cli_square", "0", "..", "inf", "0", "smooth", "x", "**", "2")
    ]
    assert (tmp_path / "a.svg").read_text("utf-8").startswith("<?xml")
