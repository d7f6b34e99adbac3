"""Fixtures of the tests of exports: models with random weights whose scores are spread, and their exports."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from detector.config.schema import config_to_plain
from detector.export import onnx as onnx_target
from detector.export import pt2
from detector.export.export_config import ExportSettings
from detector.export.export_target import find_export_target
from detector.export.graph import DetectionGraph, WrittenMish
from detector.models.checkpoint import ModelFile, save_model
from detector.tasks.detection_model import build_model, load_detection, load_model
from detector.workflows.export import ExportReport, export_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

NAMES = ("ball", "box", "star")
TINY_CFG = Path(__file__).parent.parent / "darknet/tiny.cfg"


def saved(path: Path, name: str, overrides: list[str], thresholds: dict[str, object]) -> Path:
    """Save a model file with random weights whose class logits and boxes differ from cell to cell."""
    torch.manual_seed(1)
    config = load_detection(name, overrides)
    model = build_model(config, len(NAMES))
    head = getattr(model, "head", None)
    branches = [
        branch for part in (head, getattr(head, "one_to_one", None)) for branch in getattr(part, "class_branches", ())
    ]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.mul_(1.6)
        if branches:  # without batch statistics of its own, the output of so many layers does not depend on the image
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None
            model.train()(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
        for branch in branches:
            branch[-1].weight.normal_(0, 0.3)
            branch[-1].bias.fill_(-1)
    plain = config_to_plain(config)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    save_model(path, ModelFile(plain, NAMES, (3, 7, 90), state, {"AP": 0.25}, thresholds))
    return path


def key_of(graph: DetectionGraph) -> str:
    """Return a hash of the layers and weights of a network."""
    forms = [module.form for module in graph.modules() if isinstance(module, WrittenMish)]
    digest = hashlib.sha256(f"{graph!r} {graph.output_names} {forms}".encode())
    for name, tensor in graph.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Recording:
    """A network that is recorded when its conversion is not there yet; the arguments of `pt2.exported_program`."""

    graph: DetectionGraph
    canvas_hw: tuple[int, int]
    dtype: torch.dtype
    dynamic: bool

    @property
    def name(self) -> str:
        height, width = self.canvas_hw
        return f"{key_of(self.graph)}-{height}x{width}-{self.dtype}-{self.dynamic}"


@pytest.fixture(scope="session", autouse=True)
def _converted_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Convert equal networks once for all processes: it takes torch seconds, the rest of an export a tenth of that."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    convert = onnx_target.converted

    def recording(graph: DetectionGraph, canvas_hw: tuple[int, int], dtype: torch.dtype, *, dynamic: bool) -> Recording:
        return Recording(graph, canvas_hw, dtype, dynamic)

    def converted(of: Recording, graph: DetectionGraph, opset: int) -> Any:
        path = folder / f"{of.name}-{opset}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                program = pt2.exported_program(of.graph, of.canvas_hw, of.dtype, dynamic=of.dynamic)
                path.write_bytes(convert(program, graph, opset).SerializeToString())
        return onnx.load_model(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_target, "exported_program", recording)
        patch.setattr(onnx_target, "converted", converted)
        yield


@pytest.fixture(scope="session")
def darknet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Darknet network of two anchor heads, 64 x 64, canvases float32; its suppression is plain."""
    path = tmp_path_factory.mktemp("export") / "darknet.safetensors"
    return saved(path, str(TINY_CFG), ["predict.nms=plain", "evaluate.nms=plain", "device=cpu"], {})


@pytest.fixture(scope="session")
def yolo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow, shallow `mish-n`, 64 x 64, canvases uint8, with thresholds of its own."""
    path = tmp_path_factory.mktemp("export") / "yolo.safetensors"
    thresholds = {"target": "f1", "overall": 0.5, "by_class": [0.4, 0.5, 0.6], "num_images": 4,
                  "ground_truth_sha256": "0" * 64}  # fmt: skip
    small = ["model.width=0.125", "model.depth=0.1", "model.max_channels=64", "input.size=64", "device=cpu"]
    return saved(path, "mish-n", small, thresholds)


@pytest.fixture(scope="session")
def dual_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with the head `dual`, whose boxes are not suppressed."""
    path = tmp_path_factory.mktemp("export") / "dual.safetensors"
    small = ["model.width=0.125", "model.depth=0.1", "model.max_channels=64", "input.size=64", "device=cpu"]
    return saved(path, "mish-n", [*small, "model.head=dual"], {})


@pytest.fixture(scope="session")
def yolox_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped `yolox-nano` at 64 x 64, whose images lie in the top-left corner; random ones overflow in sizes."""
    path, loaded = tmp_path_factory.mktemp("export") / "yolox.safetensors", load_model(Path("yolox-nano"))
    small = replace(loaded.config, input=replace(loaded.config.input, size=64), device="cpu")
    save_model(path, replace(loaded.file, config=config_to_plain(small)))
    return path


@pytest.fixture(scope="session")
def exported(darknet_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportReport]:
    """The Darknet network exported to a target, once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def export(target: str) -> ExportReport:
        if target not in made:
            path = folder / f"m{find_export_target(target).suffix}"
            made[target] = export_model(load_model(darknet_file), path, ExportSettings(target))
        return made[target]

    return export


@pytest.fixture(scope="session")
def selecting_onnx(darknet_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Darknet network with its suppression in the file: scores of at least 0.3, at most 20 boxes."""
    path = tmp_path_factory.mktemp("exported") / "selecting.onnx"
    loaded = load_model(darknet_file, ["predict.confidence=0.3", "predict.max_detections=20"])
    export_model(replace(loaded), path, ExportSettings("onnx", nms=True))
    return path
