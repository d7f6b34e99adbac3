"""The host side of TensorRT engines, with a fake binding that records its calls and runs the graph by ONNX Runtime."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from detector import Detector
from detector.errors import CheckpointError, ConfigError, DetectorError
from detector.export.export_config import ExportSettings
from detector.export.export_target import FileVariant, find_export_target
from detector.export.writer import _description, open_export
from detector.tasks.detection_model import load_model
from detector.workflows.export import export_model


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return the memory at an address as an array."""
    buffer: Any = (ctypes.c_char * int(np.prod(shape) * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


class Context:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.addresses = session, dict[str, int]()
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        declared = {output.name: output.shape for output in self.session.get_outputs()}[name]
        return (self.shape[0], *declared[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        names = [output.name for output in self.session.get_outputs()]
        images = array_at(self.addresses["images"], self.shape, np.uint8)
        for name, value in zip(names, self.session.run(names, {"images": images}), strict=True):
            array_at(self.addresses[name], value.shape, np.float32)[:] = value
        return True


def fake_binding(calls: list[tuple[Any, ...]]) -> Any:
    """Return a module like `tensorrt` whose engines are ONNX files."""

    class Parser:
        def __init__(self, network: SimpleNamespace, logger: object) -> None:
            self.network = network

        def parse(self, content: bytes) -> bool:
            self.network.content = content
            return True

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
            return SimpleNamespace(
                create_execution_context=lambda: Context(session), get_tensor_dtype=lambda name: "float32"
            )

    profile = SimpleNamespace(set_shape=lambda *shapes: calls.append(shapes))
    config = SimpleNamespace(
        clear_flag=lambda flag: calls.append(("clear", flag)), add_optimization_profile=lambda profile: 0
    )
    builder = SimpleNamespace(
        create_network=lambda flags: SimpleNamespace(content=b"", flags=flags),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=lambda network, config: network.content,
    )
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    return SimpleNamespace(
        Logger=logger, Builder=lambda logger: builder, OnnxParser=Parser, Runtime=Runtime, __version__="10.9.0",
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1), BuilderFlag=SimpleNamespace(TF32="tf32"),
        float32="float32", float16="float16",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def target() -> Any:
    """Return the module of the target, whose name the library has too."""
    return sys.modules[type(find_export_target("tensorrt")).__module__]


@pytest.fixture
def calls(target: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Install the fake binding, with the CPU in place of the GPU, and return the list of its calls."""
    recorded: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "tensorrt", fake_binding(recorded))
    monkeypatch.setattr(target, "_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fake GPU")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    return recorded


def job_of(**settings: object) -> Any:
    """Return the part of a job that the target reads."""
    return SimpleNamespace(**settings)


def small_network() -> onnx.ModelProto:
    """Return a graph of canvases (B, 64, 64, 3) that gives boxes (B, 3072, 4) and scores (B, 64, 3)."""
    make = onnx.helper
    nodes = [
        make.make_node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2]),
        make.make_node("Cast", ["turned"], ["float"], to=onnx.TensorProto.FLOAT),
        make.make_node("Reshape", ["float", "shape"], ["boxes"]),
        make.make_node("ReduceMean", ["float", "axis"], ["mean"], keepdims=0),
        make.make_node("Transpose", ["mean"], ["scores"], perm=[0, 2, 1]),
    ]
    values = {"shape": [0, 3072, 4], "axis": [3]}
    constants = [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]
    inputs = [make.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 64, 64, 3])]
    shapes: dict[str, list[Any]] = {"boxes": ["batch", 3072, 4], "scores": ["batch", 64, 3]}
    outputs = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    opset = make.make_opsetid("", 18)
    return make.make_model(
        make.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[opset], ir_version=10
    )


def test_engine_is_built_opened_and_run(
    calls: list[tuple[Any, ...]], target: Any, yolo_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, path = load_model(yolo_file), tmp_path / "m.engine"
    model: Any = loaded.model
    settings = ExportSettings("tensorrt")
    document = _description(model, loaded.file, loaded.config.input, settings).to_json()
    monkeypatch.setattr(target, "convert_job", lambda job: small_network())
    job = job_of(dynamic=False, canvas_hw=(64, 64), graph=SimpleNamespace(model=loaded.model))
    encode = find_export_target("tensorrt").convert(job)
    path.write_bytes(encode(FileVariant(document, with_raw_maps=True))[0])
    assert ("clear", "tf32") in calls
    assert ("images", (1, 64, 64, 3), (8, 64, 64, 3), (32, 64, 64, 3)) in calls

    runtime = open_export(path)
    assert runtime.description.target == "tensorrt"
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    boxes, scores = runtime.boxes(images)
    assert np.array_equal(boxes.numpy(), images.transpose(0, 3, 1, 2).reshape(5, 3072, 4))
    np.testing.assert_allclose(scores.numpy(), images.mean(axis=2, dtype=np.float64), rtol=1e-5)
    monkeypatch.setattr(target, "_BATCHES", (1, 2, 2))  # a batch of five in three parts
    assert all(torch.equal(*pair) for pair in zip(runtime.boxes(images), (boxes, scores), strict=True))

    content = path.read_bytes()
    for damaged in (content[:-1], content[:500], b"x" + content[1:]):
        (tmp_path / "n.engine").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"n\.engine (is truncated|does not describe)"):
            open_export(tmp_path / "n.engine")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Other GPU")
    with pytest.raises(CheckpointError, match=r"expected GPU Fake GPU, got Other GPU; export the model again"):
        open_export(path)


@pytest.mark.nightly
def test_engine_is_compared_with_its_model_and_opened_like_it(
    calls: list[tuple[Any, ...]], yolo_file: Path, tmp_path: Path
) -> None:
    path, image = tmp_path / "m.engine", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    report = export_model(load_model(yolo_file), path, ExportSettings("tensorrt"))
    assert report.exported.difference.num_unmatched == 0
    found: Any = [Detector(file).predict(image, confidence=0.05) for file in (yolo_file, path)]
    assert found[0].labels.tolist() == found[1].labels.tolist()


def test_engine_for_canvases_of_any_size_is_refused(calls: list[tuple[Any, ...]]) -> None:
    with pytest.raises(ConfigError, match="an engine has one size of canvas"):
        find_export_target("tensorrt").convert(job_of(dynamic=True))


def test_export_without_tensorrt_or_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = find_export_target("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DetectorError, match=r"needs the library tensorrt, .* pip install tensorrt .* export to onnx"):
        tensorrt.require_libraries(tensorrt.write_libraries)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DetectorError, match=r"expected an NVIDIA GPU, .* got none; use onnx"):
        tensorrt.convert(job_of(dynamic=False))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_agrees_with_its_model(precision: Any, yolo_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    settings = ExportSettings("tensorrt", precision=precision)
    report = export_model(load_model(yolo_file), tmp_path / "m.engine", settings)
    assert report.exported.difference.num_matched > 0
