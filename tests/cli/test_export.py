from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detector.cli.main import run

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(name="trained")
def trained_network_of_few_layers(trained_darknet):
    return trained_darknet


@pytest.fixture(scope="module")
def made(trained_darknet, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "m.onnx"
    weights, data = str(trained_darknet.weights), trained_darknet.data
    assert run(["export", weights, data, "--to", "onnx", "--out", str(path), "--runner", "-q"]) == 0
    return path


def measured(capsys, *words: str) -> dict[str, float]:
    assert run(["evaluate", *words, "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


def test_runner_is_written_beside_the_export_and_runs(made, tiny_shapes):
    program, picture = made.with_name("run.py"), next((tiny_shapes / "images/val").iterdir())
    command = [sys.executable, str(program), str(made), str(picture), "--confidence", "0.05", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    record = json.loads(done.stdout)
    assert (record["source"], record["height"], record["width"]) == (str(picture), 64, 64)
    assert record["detections"]


def test_export_has_the_ap_of_its_model(trained, made, tmp_path, capsys):
    capsys.readouterr()
    of_model, of_export = (
        measured(capsys, str(weights), trained.data, "--save-dir", str(tmp_path / name))
        for name, weights in (("model", trained.weights), ("export", made))
    )
    assert of_model["AP"] > 0.1
    assert of_export["AP"] == pytest.approx(of_model["AP"], abs=1e-3)
    assert of_export["conditions"] == of_model["conditions"]


def test_predict_accepts_an_export(trained, made, tmp_path, capsys):
    words = [str(made), str(trained.images), "--json", "-q", "--no-pictures", "--save-dir", str(tmp_path)]
    assert run(["predict", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["export", "{made}", "--to", "pt2", "--out", "{new}.pt2"], 2, "an export cannot be exported again"),
        (["export", "{weights}", "--to", "onnx", "--out", "{made}"], 2, "already exists; choose another --out"),
        (["export", "{weights}", "--to", "onnx", "--out", "{new}.xml"], 2, "expected a file NAME.onnx"),
        (["export", "{weights}", "--to", "pt2", "--nms", "--out", "{new}.pt2"], 2, "cannot hold a suppression"),
        (["export", "--to", "onnx"], 2, "expected one model file, got none"),
        (["export", "{weights}", "--to", "onx"], 2, "no export target is named 'onx'; did you mean 'onnx'?"),
        (["convert", "{made}", "{new}.safetensors"], 2, "an export cannot be converted"),
        (["evaluate", "{made}", "input.size=96"], 2, "--dynamic"),
    ],
)
def test_impossible_request_is_reported_in_one_line(words, code, says, made, trained, tmp_path, capsys):
    named = [word.format(made=made, weights=trained.weights, new=tmp_path / "new") for word in words]
    assert run(named) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_existing_weights_beside_a_graph_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "m.bin").write_bytes(b"another file's")
    assert run(["export", str(tmp_path / "m.safetensors"), "--to", "openvino"]) == 2
    assert "m.bin: already exists; choose another --out or give --overwrite" in capsys.readouterr().err
