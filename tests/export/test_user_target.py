"""An export target in one file of the user's: it is listed, exports are checked against the model, opened and run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector import Detector
from detector.cli.main import run
from detector.config import registry
from detector.config.registry import import_parts
from detector.errors import CheckpointError, ConfigError, DetectorError
from detector.export.export_config import ExportSettings, target_of
from detector.export.export_target import ExportTarget, export_targets, find_export_target
from detector.export.writer import open_export
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import build_predictor, load_model
from detector.workflows.benchmark import known_backends

LOW = SelectConfig(confidence=0.05)
TOY_TARGET = '''
"""Weights in NAME.toy, metadata in NAME.json; the network is built again from its configuration."""

import json
from dataclasses import dataclass

import safetensors.torch
import torch

from detector import register
from detector.config.registry import build
from detector.config.schema import config_from_plain
from detector.errors import CheckpointError
from detector.export.export_runtime import ExportRuntime
from detector.export.export_target import ExportTarget, ExportTargetConfig
from detector.export.graph import DetectionGraph
from detector.export.metadata import Description
from detector.models.contracts import ModelConfig


@dataclass(frozen=True)
class NetworkConfig:
    model: ModelConfig


@register("toy")
class ToyTarget(ExportTarget):
    suffix = ".toy"
    companion_suffixes = (".json",)

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        pass

    def convert(self, job):
        def encode(variant):
            state = {name: tensor.contiguous() for name, tensor in job.graph.state_dict().items()}
            metadata = {"document": variant.document, "with_raw_maps": variant.with_raw_maps}
            return safetensors.torch.save(state), json.dumps(metadata).encode()

        return encode

    def open_file(self, path):
        try:
            state = safetensors.torch.load(path.read_bytes())
            metadata = json.loads(path.with_suffix(".json").read_bytes())
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged or missing; export the model again") from error
        description = Description.of_json(metadata["document"], str(path))
        config = config_from_plain(NetworkConfig, {"model": description.file.config["model"]}, str(path))
        model = build(config.model, description.num_classes, description.channels)
        graph = DetectionGraph(model.eval(), description.written["mish_form"], is_half=False)
        graph.load_state_dict(state)
        graph.with_raw_maps = metadata["with_raw_maps"]

        @torch.inference_mode()
        def run(canvases):
            return [output.numpy() for output in graph(torch.from_numpy(canvases))]

        return ExportRuntime(description, run)
'''


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    """The Python file of the target `toy`."""
    path = tmp_path / "toy_target.py"
    path.write_text(TOY_TARGET, encoding="utf-8")
    return path


@pytest.fixture
def registered(toy_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python file of the target, which is registered until the end of the test."""
    registry.every_kind()  # what is first imported within the test would be lost after it
    monkeypatch.setattr(registry, "_PARTS", {kind: dict(parts) for kind, parts in registry._PARTS.items()})
    monkeypatch.setattr(registry, "_PART_OF_CONFIG", dict(registry._PART_OF_CONFIG))
    import_parts(toy_file)
    return toy_file


def image() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def test_user_target_is_checked_opened_and_predicts(registered, yolo_file, tmp_path):
    path = tmp_path / "m.toy"
    report = Detector(yolo_file).export(path)
    assert [file.name for file in report.exported.files] == ["m.toy", "m.json"]
    difference = report.exported.difference
    assert difference.num_matched > 0
    assert difference.num_unmatched == 0
    assert difference.raw < 1e-4
    assert target_of(path) == "toy"
    assert open_export(path).description.target == "toy"
    expected, detections = (build_predictor(load_model(f)).detect([image()], LOW)[0] for f in (yolo_file, path))
    assert detections.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(detections.source_xyxy, expected.source_xyxy, rtol=0, atol=1e-2)
    assert len(Detector(path).predict(image(), confidence=0.05)) == len(expected) > 0


def test_user_target_is_listed_and_selectable_everywhere(registered, capsys):
    assert list(export_targets()) == ["litert", "ncnn", "onnx", "openvino", "pt2", "tensorrt", "torchscript", "toy"]
    assert "toy" in known_backends()
    assert run(["parts", "export target"]) == 0
    assert (
        capsys.readouterr().out.split(maxsplit=2)[2]
        == "litert, ncnn, onnx, openvino, pt2, tensorrt, torchscript, toy\n"
    )
    with pytest.raises(ConfigError, match=r"a file of toy cannot hold a suppression; .* onnx or openvino"):
        ExportSettings("toy", nms=True)


def test_user_target_works_on_the_command_line(toy_file, yolo_file, tmp_path, fork):
    """In processes of their own, as a user runs them: the target is registered by --import alone."""
    path, picture = tmp_path / "m.toy", tmp_path / "picture.png"
    assert cv2.imwrite(str(picture), image())
    commands = (
        ["export", str(yolo_file), "--to", "toy", "--out", str(path)],
        ["predict", str(path), str(picture), "--json", "-q", "--no-pictures", "--save-dir", str(tmp_path / "out")],
    )
    for words in commands:
        process = fork(*words, "--import", str(toy_file))
        printed, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert printed.count("\n") == 1


def test_damaged_file_of_a_user_target_is_rejected(registered, tmp_path):
    (tmp_path / "m.toy").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"m\.toy is damaged or missing"):
        open_export(tmp_path / "m.toy")


def test_two_targets_with_the_same_suffix_are_rejected(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(type(find_export_target("toy")), "suffix", ".onnx")
    with pytest.raises(ConfigError, match=r"m\.onnx: expected one export target with this suffix, got onnx, toy"):
        target_of(tmp_path / "m.onnx")


def test_missing_library_of_a_user_target_is_named_with_its_own_command(registered, monkeypatch, tmp_path):
    target = type(find_export_target("toy"))
    monkeypatch.setattr(target, "open_libraries", ("toy_library",))
    monkeypatch.setattr(target, "install_command", "pip install toy-library")
    with pytest.raises(DetectorError, match=r"toy needs the library toy_library, .*; pip install toy-library"):
        open_export(tmp_path / "m.toy")


def test_every_target_has_a_suffix_and_precisions_of_its_own():
    targets = export_targets()
    assert len({target.suffix for target in targets.values()}) == len(targets) >= 4
    for target in targets.values():
        assert isinstance(target, ExportTarget)
        assert target.suffix == target.suffix.lower()
        assert target.suffix.startswith(".")
        assert "fp32" in target.precisions
