from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from detector import Detector
from detector.errors import CheckpointError, ConfigError
from detector.export import onnx as onnx_target
from detector.export.export_config import ExportSettings
from detector.export.export_target import export_targets
from detector.export.parity import TOLERANCES
from detector.export.writer import make_export, open_export
from detector.inference.predictor import Predictor
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import build_predictor, load_model
from detector.workflows import export as export_workflow
from detector.workflows.export import export_model

SUFFIXES = {name: target.suffix for name, target in export_targets().items()}
# test_tensorrt.py needs a GPU, test_ncnn.py and test_litert.py the libraries of their targets.
TARGETS = [name for name in SUFFIXES if name not in ("litert", "ncnn", "tensorrt")]
LOW = SelectConfig(confidence=0.05)


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (48 + 16 * i, 80, 3), dtype=np.uint8) for i in range(count)]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load_model(path).graph.node]


@pytest.mark.parametrize("target", TARGETS)
def test_export_is_within_the_tolerance_and_reports_the_differences(target, exported):
    report = exported(target)
    difference = report.exported.difference
    assert difference.num_matched > 500
    assert difference.num_unmatched == 0
    assert difference.beyond(TOLERANCES["fp32"]) == []
    assert 0 < difference.raw < 1e-4
    assert "drawn images" in report.checked_on
    assert all(file.is_file() for file in report.exported.files)


@pytest.mark.parametrize("target", TARGETS)
def test_export_carries_the_metadata_of_the_model_file(target, exported, darknet_file):
    expected, loaded = load_model(darknet_file), load_model(exported(target).exported.files[0])
    assert loaded.config == expected.config
    assert loaded.file.class_names == ("ball", "box", "star")
    assert loaded.file.category_ids == (3, 7, 90)
    assert loaded.file.metrics == {"AP": 0.25}
    assert loaded.file.state == {}


@pytest.mark.parametrize("target", TARGETS)
def test_export_returns_the_detections_of_its_model_in_batches_of_any_size(target, exported, darknet_file):
    of_model = build_predictor(load_model(darknet_file), 1)
    for batch_size in (1, 3):
        predictor = build_predictor(load_model(exported(target).exported.files[0]), batch_size)
        assert isinstance(predictor, Predictor)
        for image, detections in zip(images(batch_size), predictor.detect(images(batch_size), LOW), strict=True):
            expected = of_model.detect([image], LOW)[0]
            assert len(expected) > 50
            assert detections.labels.tolist() == expected.labels.tolist()
            torch.testing.assert_close(detections.source_xyxy, expected.source_xyxy, rtol=0, atol=1e-3)
            torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=1e-5)


def test_detector_opens_an_export_and_rejects_training_it(exported, tmp_path):
    detector = Detector(exported("onnx").exported.files[0])
    assert detector.class_names == ("ball", "box", "star")
    assert len(detector.predict(images(1)[0], confidence=0.05)) > 50
    with pytest.raises(CheckpointError, match="an export cannot be trained"):
        detector.train()
    with pytest.raises(ConfigError, match="cannot be exported again"):
        detector.export(tmp_path / "again.onnx")


def test_onnx_file_has_no_custom_operator_and_no_external_data(exported):
    model = onnx.load_model(exported("onnx").exported.files[0], load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "BatchNormalization" not in operators(exported("onnx").exported.files[0])
    assert [output.name for output in model.graph.output] == ["boxes", "scores"]


def test_mish_form_and_raw_maps_are_written_on_request(exported, darknet_file, tmp_path):
    assert not {"Mish", "Softplus"} & set(operators(exported("onnx").exported.files[0]))  # sigmoid, the fastest
    settings = ExportSettings("onnx", mish_form="mish", raw_maps=True)
    export_model(load_model(darknet_file), tmp_path / "m.onnx", settings)
    assert "Mish" in operators(tmp_path / "m.onnx")
    assert len(open_export(tmp_path / "m.onnx").outputs(np.zeros((2, 64, 64, 3), np.float32))) == 4


@pytest.mark.parametrize("network", ["darknet_file", pytest.param("yolo_file", marks=pytest.mark.nightly)])
def test_dynamic_export_takes_other_sizes_and_a_static_one_rejects_them(network, exported, tmp_path, request):
    file, dynamic_onnx = request.getfixturevalue(network), tmp_path / "dynamic.onnx"
    export_model(load_model(file), dynamic_onnx, ExportSettings("onnx", dynamic=True))
    for size in ("[96, 160]", "[64, 64]", "[128, 64]"):
        of_model, of_export = (load_model(f, [f"input.size={size}"]) for f in (file, dynamic_onnx))
        expected, boxes = (build_predictor(loaded, 2).raw_boxes(images(2)) for loaded in (of_model, of_export))
        for one, other in zip(expected, boxes, strict=True):
            assert one.scores.std() > 0.01
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-3)
            torch.testing.assert_close(one.canvas_xyxy, other.canvas_xyxy, rtol=0, atol=0.1)
    stride = load_model(file).model.max_stride
    with pytest.raises(ConfigError, match=rf"a multiple of {stride} and at least {2 * stride}, got \(100, 100\)"):
        load_model(dynamic_onnx, ["input.size=100"])
    with pytest.raises(ConfigError, match=r"takes canvases of \(64, 64\), got \(96, 96\).*--dynamic"):
        load_model(exported("onnx").exported.files[0], ["input.size=96"])


@pytest.mark.parametrize(("target", "precision"), [("torchscript", "fp16"), ("openvino", "fp16"), ("onnx", "int8")])
def test_lower_precisions_are_close_and_report_their_differences(
    target, precision, darknet_file, tmp_path, tiny_shapes
):
    path = tmp_path / f"m{SUFFIXES[target]}"
    folder = tiny_shapes / "images/val"
    settings = ExportSettings(target, precision=precision)
    calibration = folder if precision == "int8" else None
    report = export_model(load_model(darknet_file), path, settings, folder, calibration)
    assert "6 images of" in report.checked_on
    assert 1e-5 < report.exported.difference.score < 0.2
    assert open_export(path).precision == precision
    if precision == "int8":
        assert "QuantizeLinear" in operators(path)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_sums_of_two_8_bit_products_fit_16_bits(target, darknet_file, tmp_path, tiny_shapes):
    """Processors without VNNI add two products in 16 bits, so a weight has 7 bits where an activation has 8."""
    path, folder = tmp_path / f"m{SUFFIXES[target]}", tiny_shapes / "images/val"
    export_model(load_model(darknet_file), path, ExportSettings(target, precision="int8"), folder, folder)
    weights = eight_bit_constants(path)
    assert len(weights) >= 4
    for weight in weights:
        assert weight.ndim == 4
        assert 32 < np.abs(weight.astype(int)).max() <= 64
    assert 255 * 64 * 2 < 2**15 <= 255 * 127 * 2


def eight_bit_constants(path: Path) -> list[np.ndarray]:
    """Return the kernels that a file of ONNX or OpenVINO holds in 8 bits."""
    if path.suffix == ".onnx":
        arrays = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_model(path).graph.initializer]
    else:
        openvino = pytest.importorskip("openvino")
        nodes = openvino.Core().read_model(path).get_ordered_ops()
        arrays = [node.get_data() for node in nodes if node.get_type_name() == "Constant"]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim == 4]


@pytest.mark.parametrize(("after", "share", "is_written"), [
    (0.40, 0.1, False), (0.46, 0.1, True), (0.40, 0.25, True), (0.0, 1.0, True), (0.55, 0.0, True),
])  # fmt: skip
def test_int8_file_that_loses_too_much_ap_is_not_written(
    after, share, is_written, exported, darknet_file, tmp_path, monkeypatch
):
    made = exported("onnx").exported
    folder = tmp_path / "made"
    folder.mkdir()

    def make(path, *others):
        files = tuple(Path(shutil.copy(file, path)) for file in made.files)
        return replace(made, files=files)

    canvases = [np.zeros((64, 64, 3), np.float32)]
    monkeypatch.setattr(export_workflow, "make_export", make)
    monkeypatch.setattr(export_workflow, "canvases_of", lambda *given, **others: (canvases, "no images"))
    monkeypatch.setattr(export_workflow, "_measured", lambda loaded, export: (0.5, after))
    settings = ExportSettings("onnx", precision="int8", max_ap_loss=share)
    path = folder / "m.onnx"
    if is_written:
        report = export_model(load_model(darknet_file), path, settings)
        assert report.exported.files == (path,)
        assert path.read_bytes() == made.files[0].read_bytes()
        assert report.ap == (0.5, after)
        return
    with pytest.raises(CheckpointError, match=r"AP on val from 0.500 to 0.400, by more than 10 % .*--max-ap-loss 1"):
        export_model(load_model(darknet_file), path, settings)
    assert not any(folder.iterdir())


def test_int8_without_images_to_calibrate_on_is_rejected(darknet_file, tmp_path):
    with pytest.raises(ConfigError, match="int8 needs images"):
        export_model(load_model(darknet_file), tmp_path / "m.onnx", ExportSettings("onnx", precision="int8"))
    assert not any(tmp_path.iterdir())


def test_export_that_differs_is_rejected_and_nothing_is_written(darknet_file, tmp_path, monkeypatch):
    converted = onnx_target.converted

    def wrong(*arguments: object) -> onnx.ModelProto:
        model = converted(*arguments)
        weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(weights) * 1.001
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return model

    monkeypatch.setattr(onnx_target, "converted", wrong)
    with pytest.raises(CheckpointError, match=r"is not written: the export differs from its model in raw maps"):
        export_model(load_model(darknet_file), tmp_path / "m.onnx", ExportSettings("onnx"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target": "pt2", "nms": True}, "a file of pt2 cannot hold a suppression"),
        ({"target": "torchscript", "precision": "int8"}, "expected one of fp32, fp16 for torchscript, got 'int8'"),
        ({"target": "onnx", "opset": 17}, "within 18"),
        ({"target": "pt2", "opset": 20}, "--opset is for onnx and openvino, got pt2"),
        ({"target": "coreml"}, "no export target is named 'coreml'"),
        ({"target": "onnx", "nms": True, "raw_maps": True}, "exclude one another"),
    ],
)
def test_setting_that_the_target_does_not_support_is_rejected(settings, says):
    with pytest.raises(ConfigError, match=says):
        ExportSettings(**settings)


def test_suffix_of_another_target_is_rejected(darknet_file, tmp_path):
    loaded = load_model(darknet_file)
    canvases = [np.zeros((64, 64, 3), np.float32)]
    what = loaded.model, loaded.file, loaded.config.input, loaded.config.predict, ExportSettings("onnx"), canvases
    with pytest.raises(ConfigError, match=r"expected a file NAME.onnx for onnx"):
        make_export(tmp_path / "m.xml", *what)


def test_suppression_that_onnx_does_not_have_is_rejected(darknet_file, tmp_path):
    loaded = load_model(darknet_file, ["predict.nms=diou"])
    with pytest.raises(ConfigError, match="ONNX has no suppression of the kind 'diou'"):
        export_model(loaded, tmp_path / "m.onnx", ExportSettings("onnx", nms=True))
