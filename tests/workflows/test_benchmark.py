"""Benchmarks of a network small enough for milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detector.cli import benchmark as command
from detector.cli.main import run
from detector.errors import ConfigError, DetectorError
from detector.inference.runtime import TorchRuntime
from detector.tasks.detection_model import build_model, load_detection
from detector.workflows import benchmark as module
from detector.workflows import export
from detector.workflows.benchmark import (
    BenchmarkConfig,
    ReferenceRuntime,
    Timing,
    benchmark,
    build_backend,
    default_backends,
    known_backends,
)

TINY = ("model.width=0.125", "device=cpu")


def timing(backend: str, model: str = "mish-n", size: int | None = 64, batch_size: int = 1) -> Timing:
    return Timing(model, backend, size, batch_size)


def test_reference_uses_torch_operators_on_a_copy_of_the_model() -> None:
    torch.manual_seed(0)
    model = build_model(load_detection("mish-n", ["input.size=64", "model.width=0.125"]), 3).eval()
    reference = ReferenceRuntime(model, torch.device("cpu"))
    norms = [part for part in reference._model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()) > 10
    assert not any(type(part).__name__ == "Mish" for part in reference._model.modules())
    assert any(type(part).__name__ == "Mish" for part in model.modules())  # the model keeps its own
    canvases = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    boxes, expected = reference.boxes(canvases), TorchRuntime(model, torch.device("cpu")).boxes(canvases)
    torch.testing.assert_close(boxes, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("backend", "precision"), [("reference", "fp32"), ("torch-fp32", "fp32"), ("torch-bf16", "bf16")]
)
def test_back_end_is_built_from_a_preset(backend: str, precision: str) -> None:
    predictor, select = build_backend(timing(backend, batch_size=2), TINY)
    assert predictor.runtime.precision == precision
    assert predictor.input.canvas_hw == (64, 64)
    assert len(predictor.class_names) == 80
    images = module.square_images(2, 3)
    assert [image.shape for image in images] == [(480, 640, 3)] * 2
    assert len(predictor.detect(images, select)) == 2


@pytest.mark.parametrize(
    "backend",
    ["torchscript", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("onnx", "openvino", "pt2"))],
)
def test_preset_is_exported_for_an_export_target(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}.get(backend, "torch"))
    if backend in ("onnx", "openvino"):
        pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "NUM_CHECKED_IMAGES", 2)
    predictor, select = build_backend(timing(backend), TINY)
    assert type(predictor.runtime).__name__ == "ExportRuntime"
    assert len(predictor.detect(module.square_images(1, 3), select)) == 1


def test_back_ends_take_turns_and_a_failing_one_reports_its_error() -> None:
    said: list[str] = []
    backends = ("torch-fp32", "torch-fp16")
    config = BenchmarkConfig(
        ("mish-n",), backends, sizes=(32,), num_turns=2, num_calls=2, num_threads=1, overrides=TINY
    )
    done, failed = benchmark(config, said.append)
    assert said == [f"mish-n, {name}, 32 px" for name in backends]
    assert [(t.backend, t.size) for t in (done, failed)] == [(name, 32) for name in backends]
    assert done.error is None
    assert len(done.call_ms) == 4
    assert min(done.call_ms) <= done.median_ms <= done.p95_ms <= max(done.call_ms)
    assert done.ready_s > 0
    if Path("/proc/self/status").exists():
        assert done.peak_bytes is not None
        assert 1e6 < done.peak_bytes < 2e9
    assert failed.error is not None
    assert "fp16: expected a CUDA device" in failed.error


def test_median_percentile_and_throughput_follow_from_the_calls() -> None:
    done = Timing("a", "reference", 64, 4, call_ms=tuple(float(ms) for ms in range(1, 101)))
    assert done.median_ms == 50.5
    assert done.p95_ms == pytest.approx(np.quantile(np.arange(1, 101, dtype=np.float64), 0.95))
    assert done.images_per_s == pytest.approx(4 * 100 / 5.05)


def test_process_that_dies_is_reported() -> None:
    class Closed:
        def recv(self) -> None:
            raise EOFError

    with pytest.raises(DetectorError, match="mish-n, reference: its process ended without an answer"):
        module._answer(Closed(), timing("reference"))  # type: ignore[arg-type]  # a stand-in


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backends": ("torch-fp8",)}, "got torch-fp8"),
        ({"backends": ()}, "got none"),
        ({"models": ()}, "expected a model file, an export or a configuration, got none"),
        ({"batch_size": 0}, "of at least 1, got 0"),
        ({"sizes": (0,)}, "of at least 1, got 0"),
        ({"num_threads": 0}, "of at least 1, got 0"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BenchmarkConfig(**{"models": ("mish-n",), "backends": ("reference",), **settings})  # type: ignore[arg-type]


def test_default_excludes_precisions_that_this_machine_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_native, expected in (
        (True, ("reference", "torch-fp32", "torch-bf16")),
        (False, ("reference", "torch-fp32")),
    ):
        monkeypatch.setattr(module, "has_native_bf16", lambda device, is_native=is_native: is_native)
        assert default_backends() == expected
    assert set(default_backends()) <= set(known_backends())


# ---- the command


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[BenchmarkConfig]:
    """Replace the timing itself; return the list of configurations that it is called with."""
    asked: list[BenchmarkConfig] = []

    def stand_in(config: BenchmarkConfig, report: object) -> list[Timing]:
        asked.append(config)
        done = [
            Timing("mish-n", name, 320, 1, "fp32", 1.0, (ms, ms, ms), 2_000_000)
            for name, ms in (("reference", 8.0), ("torch-fp32", 4.0))
        ]
        return [*done, Timing("mish-n", "torch-fp16", 320, 1, error="no GPU")]

    monkeypatch.setattr(command, "benchmark", stand_in)
    return asked


def test_command_prints_a_table_of_the_timings(
    timed: list[BenchmarkConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "mish-n", "--sizes", "320,640", "--batch", "2", "--backends", "reference,torch-fp32"]
    assert run([*words, "predict.iou=0.5", "--threads", "2", "--turns", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["mish-n", "reference", "320", "1", "8.0", "8.0", "125.0", "1.00", "2", "1.0"]
    assert lines[4].split() == ["mish-n", "torch-fp32", "320", "1", "4.0", "4.0", "250.0", "2.00", "2", "1.0"]
    assert lines[-1] == "mish-n, torch-fp16: no GPU"
    assert timed[0] == BenchmarkConfig(
        ("mish-n",), ("reference", "torch-fp32"), (320, 640), 2, 5, 3, 2, ("predict.iou=0.5",)
    )


def test_command_prints_markdown_and_json(timed: list[BenchmarkConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "mish-n", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "|---|---|---|---|---|---|---|---|---|---|"
    assert lines[5] == "| mish-n | torch-fp32 | 320 | 1 | 4.0 | 4.0 | 250.0 | 2.00 | 2 | 1.0 |"
    assert run(["benchmark", "mish-n", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["backend"] for row in document["timings"]] == ["reference", "torch-fp32", "torch-fp16"]
    assert document["timings"][1]["median_ms"] == 4.0
    assert document["timings"][1]["call_ms"] == [4.0] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mish-n", "--sizes", "big"], "--sizes: expected numbers such as 320,640, got 'big'"),
        (["mish-n", "--backends", "torch"], "got torch"),
        ([], "got none"),
    ],
)
def test_command_rejects_invalid_options(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", *words]) == 2
    assert said in capsys.readouterr().err
