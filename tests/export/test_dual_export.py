"""Exports of the head `dual`: the branch that predicts alone, and no suppression in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.export.export_config import ExportSettings
from detector.export.export_target import export_targets
from detector.export.parity import TOLERANCES
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import build_predictor, load_model
from detector.workflows.export import export_model

onnx = pytest.importorskip("onnx")
NIGHTLY = [name for name in export_targets() if name not in ("onnx", "tensorrt", "ncnn")]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load_model(path).graph.node]


@pytest.mark.parametrize("target", ["onnx", *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)])
def test_export_has_one_branch_and_returns_the_detections_of_its_model(
    target: str, dual_file: Path, tmp_path: Path, tiny_shapes: Path
) -> None:
    loaded, path = load_model(dual_file), tmp_path / f"m{export_targets()[target].suffix}"
    report = export_model(loaded, path, ExportSettings(target, raw_maps=True), tiny_shapes / "images/val")
    difference = report.exported.difference
    assert difference.beyond(TOLERANCES["fp32"]) == []  # type: ignore[arg-type]  # fp32 has a tolerance
    assert difference.num_matched > 100
    export = load_model(path)
    assert export.config.predict.nms == "none"
    images = [np.random.default_rng(i).integers(0, 256, (48, 80, 3), dtype=np.uint8) for i in range(2)]
    select = SelectConfig(confidence=0.05, nms="none")
    for ours, theirs in zip(
        build_predictor(export, 2).detect(images, select),
        build_predictor(loaded, 2).detect(images, select),
        strict=True,
    ):
        assert len(ours.labels) == len(theirs.labels) > 50
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-3)
    if target == "onnx":
        assert len(onnx.load_model(path).graph.output) == 2 + 3  # boxes, scores, the raw maps of one branch


def test_a_file_that_selects_has_no_suppression_and_the_layers_of_one_branch(
    dual_file: Path, yolo_file: Path, tmp_path: Path, tiny_shapes: Path
) -> None:
    few, path = tiny_shapes / "images/val", tmp_path / "m.onnx"
    loaded = load_model(dual_file, ["predict.confidence=0.1", "predict.max_detections=20"])
    report = export_model(loaded, path, ExportSettings("onnx", nms=True), few)
    assert (report.exported.difference.num_selected or 0) > 20
    found = operators(path)
    assert "NonMaxSuppression" not in found
    assert "TopK" in found
    plain = tmp_path / "plain.onnx"
    export_model(load_model(yolo_file), plain, ExportSettings("onnx"), few)
    export_model(loaded, tmp_path / "dual.onnx", ExportSettings("onnx"), few)
    assert operators(tmp_path / "dual.onnx") == operators(plain)
