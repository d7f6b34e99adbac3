from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detector.errors import CheckpointError, ConfigError
from detector.export.export_config import ExportSettings
from detector.export.writer import open_export
from detector.tasks.detection_model import build_predictor, load_model
from detector.workflows.export import export_model

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")


@pytest.fixture(scope="module", params=["darknet_file", "yolo_file", "yolox_file"])
def pair(request, tmp_path_factory, tiny_shapes) -> tuple[Path, Path]:
    """A model file and its export, which was compared with it before it was written."""
    file, path = request.getfixturevalue(request.param), tmp_path_factory.mktemp("ncnn") / "m.param"
    report = export_model(load_model(file), path, ExportSettings("ncnn"), check_images=tiny_shapes / "images/val")
    assert [each.name for each in report.exported.files] == ["m.param", "m.ncnn.bin"]
    assert report.exported.difference.num_matched > 4
    assert report.exported.difference.raw < 1e-4
    return file, path


def test_export_returns_the_detections_of_its_model_in_batches(pair):
    images = [np.random.default_rng(seed).integers(0, 256, (48, 80, 3), dtype=np.uint8) for seed in range(3)]
    of_model, of_export = (build_predictor(load_model(file), 3).raw_boxes(images) for file in pair)
    for one, other in zip(of_model, of_export, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.canvas_xyxy, other.canvas_xyxy, atol=0.05)


def test_damaged_and_foreign_files_are_rejected(pair, tmp_path):
    files = [pair[1], pair[1].with_suffix(".ncnn.bin")]
    for file in files:
        whole = file.read_bytes()
        for content in (whole[:-1], whole[: len(whole) // 2], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], b""):
            for each in files:
                shutil.copy(each, tmp_path)
            (tmp_path / file.name).write_bytes(content)
            with pytest.raises(CheckpointError, match=r"m\.(param|ncnn\.bin)"):
                open_export(tmp_path / "m.param")


def test_what_ncnn_cannot_do_is_refused(yolo_file, tmp_path, tiny_shapes):
    with pytest.raises(ConfigError, match="cannot hold a suppression"):
        ExportSettings("ncnn", nms=True)
    with pytest.raises(ConfigError, match="canvases of one size"):
        export_model(
            load_model(yolo_file), tmp_path / "m.param", ExportSettings("ncnn", dynamic=True),
            check_images=tiny_shapes / "images/val",
        )  # fmt: skip
