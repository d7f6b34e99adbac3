from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.config.schema import config_from_plain
from detector.errors import ConfigError
from detector.evaluation.evaluator import Conditions
from detector.inference import runtime as module
from detector.inference.runtime import RuntimeConfig, TorchRuntime
from detector.models.contracts import DetectionModel
from detector.models.packing import PackedConv2d, can_pack
from detector.models.precision import PrecisionName
from detector.structures.selection import SelectConfig
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import LoadedModel, build_model, build_predictor, load_detection

CPU = torch.device("cpu")
NETWORKS = ("mish-n", "yolov4-tiny", "yolov4-csp-mish")


def lively(name: str) -> DetectionModel:
    """Return a small network with random weights and norm statistics whose outputs differ between cells."""
    torch.manual_seed(0)
    overrides = ["input.size=64"] if name == "yolov4-tiny" else ["input.size=64", "model.width=0.125"]
    model = build_model(load_detection(name, overrides), 3)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    return model.eval()


def canvases(batch_size: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch_size, 64, 96, 3), dtype=np.uint8)


def expected_boxes(model: DetectionModel, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return boxes and scores of the plain model, in float64 up to the raw maps."""
    with torch.no_grad():
        raw_maps = copy.deepcopy(model).double()(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
        return model.decode(raw_maps)


@pytest.mark.parametrize("name", NETWORKS)
def test_fp32_agrees_with_the_plain_model_in_float64(name: str) -> None:
    model = lively(name)
    canvas_xyxy, scores = TorchRuntime(model, CPU).boxes(canvases())
    wanted_xyxy, wanted_scores = expected_boxes(model, canvases())
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, wanted_scores.float(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(canvas_xyxy, wanted_xyxy.float(), rtol=1e-3, atol=1e-2)  # pixels


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_is_as_accurate_as_autocast_of_the_plain_model(name: str) -> None:
    model = lively(name)
    runtime = TorchRuntime(model, CPU, RuntimeConfig("bf16"))
    canvas_xyxy, scores = runtime.boxes(canvases())
    wanted_xyxy, wanted_scores = expected_boxes(model, canvases())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        raw_maps = model(torch.from_numpy(canvases()).permute(0, 3, 1, 2))
    autocast_xyxy, autocast_scores = model.decode(raw_maps)
    assert runtime.precision == "bf16"
    assert canvas_xyxy.dtype == scores.dtype == torch.float32
    for found, autocast, wanted in (
        (canvas_xyxy, autocast_xyxy, wanted_xyxy),
        (scores, autocast_scores, wanted_scores),
    ):
        error, its_error = (found - wanted).abs().mean(), (autocast - wanted).abs().mean()
        assert 0 < error < 1.25 * its_error  # rounding is noise


def test_emulated_bf16_is_said_once_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_native_bf16", lambda device: False)
    with pytest.warns(RuntimeWarning, match=r"precision bf16: .* is emulated and slower than fp32; choose precision"):
        TorchRuntime(lively("mish-n"), CPU, RuntimeConfig("bf16"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchRuntime(lively("mish-n"), CPU, RuntimeConfig("fp32")).boxes(canvases())
        monkeypatch.setattr(module, "has_native_bf16", lambda device: True)
        TorchRuntime(lively("mish-n"), CPU, RuntimeConfig("bf16"))


def test_given_model_is_not_changed() -> None:
    model = lively("mish-n")
    before = copy.deepcopy(model.state_dict())
    TorchRuntime(model, CPU, RuntimeConfig("bf16")).boxes(canvases())
    after = model.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    assert not any(isinstance(part, PackedConv2d) for part in model.modules())


@pytest.mark.skipif(not can_pack(), reason="this torch does not pack weights")
def test_weights_are_packed_on_the_cpu() -> None:
    assert any(isinstance(part, PackedConv2d) for part in TorchRuntime(lively("mish-n"), CPU).model.modules())


def test_canvas_shape_may_change_between_batches() -> None:
    model = lively("mish-n")
    runtime = TorchRuntime(model, CPU)
    runtime.boxes(canvases())
    other = np.ascontiguousarray(canvases(3)[:, :, :32])
    torch.testing.assert_close(runtime.boxes(other)[1], expected_boxes(model, other)[1].float(), rtol=1e-3, atol=1e-5)


def test_concurrent_threads_get_the_same_bits_from_a_new_runtime() -> None:
    runtime = TorchRuntime(lively("mish-n"), CPU)
    with ThreadPoolExecutor(4) as pool:
        found = [scores for _, scores in pool.map(runtime.boxes, [canvases()] * 8)]
    assert all(torch.equal(scores, found[0]) for scores in found)


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp16: expected a CUDA device, got cpu"):
        TorchRuntime(lively("mish-n"), CPU, RuntimeConfig("fp16"))


def test_cuda_graph_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="cuda_graph: expected a CUDA device, got cpu; leave it out"):
        TorchRuntime(lively("mish-n"), CPU, RuntimeConfig(cuda_graph=True))


def test_unknown_precision_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="precision"):
        config_from_plain(DetectionConfig, {"runtime": {"precision": "fp8"}}, "a.yaml")


def test_precision_of_the_configuration_is_used_and_recorded_in_the_conditions() -> None:
    config = load_detection("mish-n", ["input.size=64", "model.width=0.125", "runtime.precision=bf16", "device=cpu"])
    file = type("File", (), {"class_names": ("a", "b", "c"), "category_ids": (1, 2, 3)})
    predictor = build_predictor(LoadedModel(config, build_model(config, 3), file))  # type: ignore[arg-type]  # a stand-in
    assert predictor.runtime.precision == "bf16"
    assert Conditions.of(predictor, SelectConfig()).precision == "bf16"


# ---- torch.compile


def test_compiled_network_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def compiled(model: nn.Module, **settings: object) -> object:
        asked.append(settings)
        return lambda images: [raw_map * 0 for raw_map in model(images)]

    monkeypatch.setattr(torch, "compile", compiled)
    runtime = TorchRuntime(lively("mish-n"), CPU, RuntimeConfig(compile=True))
    assert asked == [{"dynamic": False}]
    assert runtime.boxes(canvases())[1].unique().tolist() == [0.5]


def test_failing_compiler_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def failing(images: Tensor) -> None:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no g++"), None)

    monkeypatch.setattr(torch, "compile", lambda model, **settings: failing)
    runtime = TorchRuntime(lively("mish-n"), CPU, RuntimeConfig(compile=True))
    with pytest.raises(
        ConfigError, match=r"runtime.compile: expected a compiler that torch can use.*no g\+\+.*leave it"
    ):
        runtime.boxes(canvases())


@pytest.mark.nightly  # a minute of compiling
def test_compiled_network_gives_the_same_boxes() -> None:
    model = lively("mish-n")
    scores = TorchRuntime(model, CPU, RuntimeConfig(compile=True)).boxes(canvases())[1]
    torch.testing.assert_close(scores, expected_boxes(model, canvases())[1].float(), rtol=1e-3, atol=1e-5)


# ---- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_graph_gives_the_results_of_the_plain_pass(name: str, precision: PrecisionName) -> None:
    model, cuda = lively(name), torch.device("cuda")
    plain = TorchRuntime(model, cuda, RuntimeConfig(precision))
    recorded = TorchRuntime(model, cuda, RuntimeConfig(precision, cuda_graph=True))
    given = (canvases(), canvases()[::-1].copy(), canvases(1), canvases())
    kept = [(recorded.boxes(images), plain.boxes(images)) for images in given]
    for found, wanted in kept:  # a later replay has written over none of them
        torch.testing.assert_close(found, wanted)
    if precision == "fp32":
        torch.testing.assert_close(
            kept[0][0][1].cpu(), expected_boxes(model, canvases())[1].float(), rtol=0.02, atol=0.01
        )


# The GPU itself, as far as recording and replaying go: a graph holds what to do and does it again on its inputs.
class FakeGraph:
    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


class NoContext:
    def __init__(self, *arguments: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *arguments: object) -> None: ...

    def wait_stream(self, other: object) -> None: ...


def test_each_shape_is_recorded_once_after_three_warm_up_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("device", "stream", "graph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, NoContext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", NoContext)
    passes: list[Tensor] = []

    def network(images: Tensor) -> tuple[Tensor, ...]:
        passes.append(images)
        return (images * 2,)

    recorded = module._Recorded(network)
    first, second = torch.ones(1, 3, 4, 4), torch.ones(1, 3, 8, 8)
    found = recorded(first)
    assert len(passes) == 4  # three to warm up, one that is recorded
    again = recorded(first + 1)
    assert len(passes) == 4
    assert torch.equal(passes[-1], first + 1)  # the pass reads where the new images were put
    assert found[0].data_ptr() != again[0].data_ptr()
    recorded(second)
    assert len(passes) == 8
    graphs = [graph for graph, *_ in recorded._passes.values() if isinstance(graph, FakeGraph)]
    assert [graph.num_replays for graph in graphs] == [2, 1]
