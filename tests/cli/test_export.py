from __future__ import annotations

import json
from pathlib import Path

import pytest

from detector.cli.main import run

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "m.onnx"
    assert run(["export", str(trained.weights), trained.data, "--to", "onnx", "--out", str(path), "-q"]) == 0
    return path


def measured(capsys, *words: str) -> dict[str, float]:
    assert run(["evaluate", *words, "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_export_measures_the_same_ap(trained, made, tmp_path, capsys):
    capsys.readouterr()
    wanted, found = (
        measured(capsys, str(weights), trained.data, "--save-dir", str(tmp_path / name))
        for name, weights in (("model", trained.weights), ("export", made))
    )
    assert wanted["AP"] > 0.1
    assert found["AP"] == pytest.approx(wanted["AP"], abs=1e-3)
    assert found["conditions"] == wanted["conditions"]


def test_predict_takes_an_export(trained, made, tmp_path, capsys):
    words = [str(made), str(trained.images), "--json", "-q", "--no-pictures", "--save-dir", str(tmp_path)]
    assert run(["predict", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["export", "{made}", "--to", "pt2", "--out", "{new}.pt2"], 2, "an export is not exported again"),
        (["export", "{weights}", "--to", "onnx", "--out", "{made}"], 2, "already there; choose another --out"),
        (["export", "{weights}", "--to", "onnx", "--out", "{new}.xml"], 2, "NAME.onnx is wanted"),
        (["export", "{weights}", "--to", "pt2", "--nms", "--out", "{new}.pt2"], 2, "holds no suppression"),
        (["export", "--to", "onnx"], 2, "one model file is wanted"),
        (["convert", "{made}", "{new}.safetensors"], 2, "an export is not converted"),
        (["evaluate", "{made}", "input.size=96"], 2, "--dynamic"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words, code, says, made, trained, tmp_path, capsys):
    named = [word.format(made=made, weights=trained.weights, new=tmp_path / "new") for word in words]
    assert run(named) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_weights_beside_a_graph_are_not_written_over(tmp_path, capsys):
    (tmp_path / "m.bin").write_bytes(b"another file's")
    assert run(["export", str(tmp_path / "m.safetensors"), "--to", "openvino"]) == 2
    assert "m.bin: already there; choose another --out or say --overwrite" in capsys.readouterr().err
