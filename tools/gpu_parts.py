"""The parts of `gpu_report.py`, each of which measures one thing and notes its results one by one.

    PYTHONPATH=. python tools/gpu_parts.py kernels --output part.json

A part that is stopped leaves what it noted so far in the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mish_timing import Bench, Table
from torch import Tensor

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
MODEL = "mish-n"


@dataclass
class Part:
    """A part that runs.

    Attributes:
        device: the device that is measured.
        dry: whether sizes are tiny, to check that everything runs.
        seconds: time in which the part should end by itself.
        output: the file of its results, or None.
        tables: rows of results by the name of their table.
    """

    device: torch.device
    dry: bool
    seconds: float
    output: Path | None = None
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def note(self, table: str, **row: Any) -> None:
        """Add a row of results and save all of them."""
        self.tables.setdefault(table, []).append(row)
        if self.output is not None:
            partial = self.output.with_suffix(".partial")
            partial.write_text(json.dumps(self.tables), "utf-8")
            partial.replace(self.output)

    def bench(self) -> Bench:
        """Return the settings of `benchmark_mish.py` for this part."""
        torch._functorch.config.donated_buffer = False
        stops_at = time.monotonic() + self.seconds
        return Bench(self.device, 2 if self.dry else 20, self.dry, not self.dry, stops_at)

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, call: Callable[[], object], rounds: int = 20) -> float:
        """Return the median time of a call whose end is waited for."""
        spans = []
        for turn in range(2 if self.dry else rounds + 3):
            self.sync()
            started_s = time.perf_counter()
            call()
            self.sync()
            if self.dry or turn >= 3:
                spans.append(time.perf_counter() - started_s)
        return statistics.median(spans)


def rows_of(text: str) -> list[Row]:
    """Return the rows of Markdown tables; of columns with one name the later ones are numbered from 2."""
    rows: list[Row] = []
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            for name in cells:
                number = sum(1 for column in columns if column.partition(" #")[0] == name)
                columns.append(f"{name} #{number + 1}" if number else name)
        elif not set(line) <= set("|- "):
            rows.append({name: _value(cell) for name, cell in zip(columns, cells, strict=False)})
    return rows


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _sections(part: Part, names: Sequence[str]) -> None:
    """Run sections of `benchmark_mish.py` and note each row of their tables as soon as it is measured."""
    import benchmark_mish

    bench, add = part.bench(), Table.add

    def noted(table: Table, *cells: object) -> None:
        add(table, *cells)
        row = rows_of(str(table))[-1]
        part.note("queueing" if "call" in row else name, **row)

    try:
        Table.add = noted  # type: ignore[method-assign, assignment]
        for name in names:
            getattr(benchmark_mish, f"section_{name}")(bench)
    finally:
        Table.add = add  # type: ignore[method-assign]


def environment(part: Part) -> None:
    """Note the machine, the GPU and the versions."""
    facts: Row = {"python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda or "none"}
    facts |= {"cores": os.cpu_count(), "machine": platform.machine(), "GPU": "none"}
    if part.device.type == "cuda":
        properties = torch.cuda.get_device_properties(part.device)
        facts |= {"GPU": properties.name, "multiprocessors": properties.multi_processor_count}
        facts |= {"capability": f"{properties.major}.{properties.minor}", "GiB": round(properties.total_memory / 2**30)}
    if shutil.which("nvidia-smi") and not part.dry:
        query = "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit"
        words = ["nvidia-smi", query, "--format=csv,noheader", "--id=0"]
        facts["driver"] = subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip()
    for library in ("onnxruntime", "tensorrt", "triton"):
        facts[library] = "installed" if importlib.util.find_spec(library) else "missing"
    for fact, value in facts.items():
        part.note("environment", fact=fact, value=value)


def tests(part: Part) -> None:
    """Run the tests of `make gpu` with this Python."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8")]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    words = [sys.executable, "-S", "-c", "print('1 passed')"] if part.dry else words
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR"))][:20]:
        part.note("failures", test=line[:200])
    part.note("tests", status=done.returncode, result=lines[-1] if lines else "no output")


def kernels(part: Part) -> None:
    """Measure the bandwidth of a copy, the first use of the kernels, and Mish forward and backward in every dtype."""
    if part.device.type == "cuda":
        from detector.ops import cuda

        with tempfile.TemporaryDirectory() as folder:
            probe = "import time, torch; torch.zeros(1).cuda(); from detector.ops import cuda; "
            probe += "s = time.perf_counter(); cuda.warmup(); print(time.perf_counter() - s)"
            variables = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT)}
            for name in ("without cache", "from the cache"):
                words = [sys.executable, "-c", probe]
                done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)
                seconds = float(done.stdout.split()[-1]) if done.returncode == 0 else done.stderr[-200:]
                part.note("first use", kernels=name, seconds=seconds)
        cuda.warmup(part.device)
    _sections(part, ("copy", "act"))


def norm(part: Part) -> None:
    """Measure batch norm + Mish in training and bias + Mish in inference."""
    _sections(part, ("copy", "bn", "infer"))


def network(part: Part) -> None:
    """Measure a CSP-Darknet53: step eager, fused and compiled, inference with a CUDA graph, and peak memory."""
    _sections(part, ("stack",))


def step(part: Part) -> None:
    """Measure whole training steps of mish-n with loss and optimiser, and the time in which the CPU queues one."""
    from steps import Step, drawn_batch

    from detector.models.precision import has_native_bf16

    size, precision = 64 if part.dry else 640, "bf16" if has_native_bf16(part.device) else "fp32"
    # Compiling takes longest, so it comes last.
    runs = (
        [("fused", 2)] if part.dry else [("fused", 16), ("eager", 16), ("fused", 64), ("eager", 64), ("compiled", 16)]
    )
    for name, batch_size in runs:
        images, targets = drawn_batch(size, batch_size)
        activation = "torch_mish" if name == "eager" else "mish"
        make = Step(activation, precision, "channels_last", 3, part.device, compiles=name == "compiled")
        if part.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(part.device)
        seconds = part.seconds_of(lambda: make(images, targets), rounds=10)  # noqa: B023 - called in this turn
        part.sync()
        started_s = time.perf_counter()
        make(images, targets)
        queued_s = time.perf_counter() - started_s
        peak = torch.cuda.max_memory_allocated(part.device) if part.device.type == "cuda" else 0
        row: Row = {"batch": batch_size, "variant": name, "precision": precision, "ms": round(seconds * 1e3, 2)}
        row |= {"images/s": round(batch_size / seconds, 1), "queued in ms": round(queued_s * 1e3, 2)}
        part.note("step", **row, **{"peak GiB": round(peak / 2**30, 2)})


def prediction(part: Part) -> None:
    """Measure the stages of prediction by mish-n and the whole of it, with and without a CUDA graph."""
    from detector.inference.predictor import Predictor
    from detector.inference.runtime import RuntimeConfig, TorchRuntime
    from detector.structures.canvas import InputConfig
    from detector.structures.selection import SelectConfig, select, taken_to_host

    size, batches = (64, (2,)) if part.dry else (640, (1, 16, 64))
    photo = np.random.default_rng(0).integers(0, 256, (size * 3 // 4, size, 3), dtype=np.uint8)
    settings, selection = InputConfig(size), SelectConfig()
    for graph in (False, True) if part.device.type == "cuda" else (False,):
        runtime = TorchRuntime(_model(), part.device, RuntimeConfig("fp32" if part.dry else "auto", cuda_graph=graph))
        for batch_size in batches:
            predictor = Predictor(runtime, settings, list("abc"), [1, 2, 3], batch_size=batch_size)
            canvases = np.stack([settings.letterbox(photo).apply(photo)] * batch_size)
            boxes, scores = runtime.boxes(canvases)

            def selected() -> None:
                for pair in taken_to_host(boxes, scores, [selection] * len(boxes)):  # noqa: B023 - called in this turn
                    select(*pair, selection)

            stages = {
                "canvas": lambda: settings.letterbox(photo).apply(photo),
                "network": lambda: runtime.boxes(canvases),  # noqa: B023 - called in this turn
                "selection": selected,
                "whole": lambda: predictor.detect([photo] * batch_size, selection),  # noqa: B023 - called in this turn
            }
            times = {name: part.seconds_of(call) * 1e3 for name, call in stages.items()}
            times["canvas"] *= batch_size
            limit = max(("canvas", "network", "selection"), key=times.__getitem__)
            row: Row = {"batch": batch_size, "graph": graph, "precision": runtime.precision}
            row |= {f"{name} ms": round(ms, 2) for name, ms in times.items()}
            part.note("prediction", **row, **{"images/s": round(batch_size * 1e3 / times["whole"], 1), "limit": limit})


def _model() -> Any:
    """Return a mish-n of three classes with random weights."""
    from detector.models.yolo import Yolo

    torch.manual_seed(0)
    return Yolo(Yolo.Config(), 3).eval()


def training(part: Part) -> None:
    """Train mish-n on the blood cells of BCCD for 90 seconds, and evaluate it; the loader alone first."""
    from detector.tasks.detection_model import load_detection
    from detector.training.events import Event, StepDone
    from detector.workflows.train import train

    named = os.environ.get("DETECTOR_TEST_DATA", "")
    data = Path(named) / "bccd"
    if not (named and data.is_dir()):
        part.note("training", result="skipped: DETECTOR_TEST_DATA names no folder with bccd")
        return
    ends_s = time.monotonic() + part.seconds
    with tempfile.TemporaryDirectory() as folder:
        short = ["train.iterations=2", "input.size=64", "loader.batch_size=2", "loader.workers=0", "model.width=0.125"]
        # A schedule of 2,500 steps: those that a fast GPU makes in the time; a slower one ends where it is.
        usual = ["train.iterations=2500", "loader.batch_size=16", f"loader.workers={min(12, os.cpu_count() or 1)}"]
        place = [f"data={data}", f"device={part.device}", "train.evaluations=0", f"train.project={folder}"]
        config = load_detection(MODEL, [*place, *(short if part.dry else usual)])
        rates: list[float] = []

        def report(event: Event) -> None:
            if isinstance(event, StepDone):
                rates.append(event.images_per_s)

        result = train(config, report=report, should_stop=lambda: time.monotonic() > ends_s)
        row: Row = {"steps": len(rates), "images/s": round(rates[-1], 1) if rates else 0.0}
        if not part.dry:
            part.note("training", **row)  # in case that the evaluation is stopped
            words = [sys.executable, "-m", "detector", "evaluate", str(result.folder.best), "--json"]
            words += [f"data={data}", f"device={part.device}", "evaluate.batch_size=16"]
            variables = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, errors="replace")
            found = re.search(r'"AP": (\d*\.?\d+)', done.stdout)
            row = {"AP": float(found[1]) if found else done.stderr[-200:]}
        part.note("training", **row)


def exports(part: Part) -> None:
    """Export mish-n and time ONNX Runtime on the GPU and an engine of TensorRT, where they are installed."""
    for name, library, provider in (("onnx", "onnxruntime", "CUDAExecutionProvider"), ("tensorrt", "tensorrt", "")):
        if not importlib.util.find_spec(library):
            part.note("exports", target=name, result=f"skipped: {library} is not installed")
            continue
        module = importlib.import_module(library)
        if provider and provider not in module.get_available_providers():
            part.note("exports", target=name, result=f"skipped: this {library} has no {provider}")
            continue
        if part.dry:
            part.note("exports", target=name, result="skipped: dry run")
            continue
        for precision in ("fp32", "fp16"):
            try:
                for row in _timed_export(part, name, precision, provider):
                    part.note("exports", **row)
            except Exception as error:  # one failure must not end the part
                part.note("exports", target=name, precision=precision, result=f"failed: {error}"[:300])


def _timed_export(part: Part, name: str, precision: str, provider: str) -> list[Row]:
    """Return the times of an export of mish-n in batches of 1 and 16."""
    from detector.config.schema import config_to_plain
    from detector.export.export_config import ExportSettings
    from detector.export.private_import import import_privately
    from detector.models.checkpoint import ModelFile, save_model
    from detector.tasks.detection_model import build_model, load_detection, load_model
    from detector.workflows.export import export_model

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{'onnx' if provider else 'engine'}"
        config = load_detection(MODEL, [])
        names = tuple("abc")
        file = ModelFile(config_to_plain(config), names, (1, 2, 3), build_model(config, 3).state_dict())
        save_model(Path(folder) / "m.safetensors", file)
        settings = ExportSettings(name, precision="fp16" if precision == "fp16" else "fp32")
        exported = export_model(load_model(Path(folder) / "m.safetensors"), path, settings).exported
        for batch_size in (1, 16):
            canvases = np.zeros((batch_size, 640, 640, 3), np.uint8)
            run: Callable[[], object] = lambda: exported.runtime.outputs(canvases)  # noqa: B023, E731 - called below
            if provider:
                import_privately("onnxruntime")
                import onnxruntime

                session = onnxruntime.InferenceSession(str(path), providers=[provider])
                run = lambda: session.run(None, {"images": canvases})  # noqa: B023, E731 - called below
            seconds = part.seconds_of(run)
            row: Row = {"target": name, "precision": precision, "batch": batch_size, "ms": round(seconds * 1e3, 2)}
            rows.append(row | {"images/s": round(batch_size / seconds, 1), "difference": str(exported.difference)})
    return rows


def copies(part: Part) -> None:
    """Measure copies of a batch of images to the device: pageable, pinned, and beside other work."""
    from detector.structures.transfer import sent, sent_aside

    shape = (2, 3, 64, 64) if part.dry else (64, 3, 640, 640)
    images = torch.zeros(shape, dtype=torch.uint8)
    pinned = images.pin_memory() if part.device.type == "cuda" else images
    ways: dict[str, Callable[[], Tensor]] = {
        "pageable": lambda: images.to(part.device),
        "pinned here": lambda: sent(images, part.device),
        "pinned by the loader": lambda: sent(pinned, part.device),
        "pinned, on a stream of its own": lambda: sent_aside(pinned, part.device),
    }
    for name, way in ways.items():
        seconds = part.seconds_of(way)
        part.note("copies", way=name, ms=round(seconds * 1e3, 3), **{"GB/s": round(images.numel() / seconds / 1e9, 2)})


PARTS: dict[str, Callable[[Part], None]] = {
    function.__name__: function
    for function in (environment, tests, kernels, norm, network, step, copies, prediction, training, exports)
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    part = Part(torch.device("cuda" if torch.cuda.is_available() else "cpu"), False, options.seconds, options.output)
    PARTS[options.part](part)


if __name__ == "__main__":
    main()
