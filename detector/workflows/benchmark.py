"""Timing of back ends side by side, from an image in memory to boxes.

Each back end runs in a process of its own, so that its peak memory can be measured. The back ends take turns, so that a
change in the machine's speed affects all of them.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import import_parts
from detector.config.schema import config_to_plain
from detector.errors import ConfigError, DetectorError
from detector.export.export_config import ExportSettings, target_of
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import export_targets
from detector.inference.predictor import Predictor
from detector.inference.runtime import RuntimeConfig
from detector.io.child_process import safe_path
from detector.io.machine import peak_bytes, resident_bytes
from detector.models.activations import Mish
from detector.models.blocks import ConvNormAct
from detector.models.checkpoint import ModelFile
from detector.models.contracts import DetectionModel
from detector.models.folding import without_training_parts
from detector.models.precision import choose_device, has_native_bf16
from detector.models.published_weights import MODEL_SUFFIXES
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import LoadedModel, build_model, build_predictor, load_detection, load_model
from detector.workflows.export import export_model

REFERENCE = "reference"
TORCH_BACKENDS = {
    "torch-fp32": RuntimeConfig(),
    "torch-bf16": RuntimeConfig("bf16"),
    "torch-fp16": RuntimeConfig("fp16"),
    "torch-compile": RuntimeConfig(compile=True),
    "torch-bf16-compile": RuntimeConfig("bf16", compile=True),
    "torch-bf16-graph": RuntimeConfig("bf16", cuda_graph=True),
    "torch-fp16-graph": RuntimeConfig("fp16", cuda_graph=True),
}
_NUM_CLASSES = 80  # COCO's number, for a network with random weights
_SOURCE_HW = (480, 640)


def known_backends() -> tuple[str, ...]:
    """Return the names of all back ends: the reference, those of torch, and the export targets."""
    return REFERENCE, *TORCH_BACKENDS, *export_targets()


def default_backends() -> tuple[str, ...]:
    """Return the back ends that need no compiler and whose arithmetic this machine has natively."""
    return REFERENCE, "torch-fp32", *(("torch-bf16",) if has_native_bf16(choose_device("auto")) else ())


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of a benchmark.

    Attributes:
        models: model files, exports, or configurations, whose networks get random weights and 80 classes.
        backends: names of `known_backends`; an export is timed in its own runtime instead.
        sizes: sides of the canvas in pixels; empty for each model's own size.
        batch_size: number of images in a call.
        num_turns: number of timed turns of each back end; one more turn before them is not timed.
        num_calls: number of timed calls in a turn; one more call before them, with cold caches, is not timed.
        num_threads: number of torch's threads, or None for its own choice.
        overrides: texts such as `predict.confidence=0.4`.
        imports: Python files that register parts.
    """

    models: tuple[str, ...]
    backends: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    batch_size: int = 1
    num_turns: int = 20
    num_calls: int = 3
    num_threads: int | None = None
    overrides: tuple[str, ...] = ()
    imports: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        known = known_backends()
        unknown = [name for name in self.backends if name not in known]
        if unknown or not self.backends:
            raise ConfigError(
                f"expected back ends of {', '.join(known)}, got {', '.join(unknown) or 'none'}; give some of these"
            )
        if not self.models:
            raise ConfigError("expected a model file, an export or a configuration, got none; give one or more")
        numbers = (self.batch_size, self.num_turns, self.num_calls, *self.sizes)
        lowest = min(numbers if self.num_threads is None else (*numbers, self.num_threads))
        if lowest < 1:
            raise ConfigError(
                f"expected sizes, batch, turns, calls and threads of at least 1, got {lowest}; correct it"
            )


@dataclass(frozen=True)
class Timing:
    """Times and memory of one back end.

    Attributes:
        model: the model as the user named it.
        backend: a name of `known_backends`.
        size: side of the canvas that was asked for, or None for the model's own.
        batch_size: number of images in a call.
        precision: number format of the arithmetic.
        ready_s: seconds to load, export or compile, and to make the first call.
        call_ms: milliseconds of each call.
        peak_bytes: peak memory of the process beyond its libraries, on a GPU that of the tensors there; None where it
            is not known.
        error: the reason why there is no timing, or None.
    """

    model: str
    backend: str
    size: int | None
    batch_size: int
    precision: str = ""
    ready_s: float = 0.0
    call_ms: tuple[float, ...] = field(default=(), repr=False)
    peak_bytes: int | None = None
    error: str | None = None

    @property
    def median_ms(self) -> float:
        """The median of the calls in milliseconds."""
        return statistics.median(self.call_ms)

    @property
    def p95_ms(self) -> float:
        """The 95th percentile of the calls in milliseconds."""
        return float(np.percentile(self.call_ms, 95))

    @property
    def images_per_s(self) -> float:
        """The throughput: images over the total time of all calls."""
        return self.batch_size * len(self.call_ms) / sum(self.call_ms) * 1e3


class _PlainMish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)


class ReferenceRuntime:
    """The same network in torch's own operators: fp32, NCHW, `nn.BatchNorm2d` not folded, `F.mish`.

    Attributes:
        device: device it runs on.
        num_classes: number of classes.
        notes: remarks on the model for the user, a sentence each.
        precision: fp32.
        selection: None, because it returns all boxes.
    """

    precision: str = "fp32"
    selection: SelectConfig | None = None

    def __init__(self, model: DetectionModel, device: torch.device) -> None:
        """Copy a model to a device."""
        self._model, self.device = without_training_parts(copy.deepcopy(model)).eval().to(device), device
        for part in self._model.modules():
            if isinstance(part, ConvNormAct) and isinstance(part.activation, Mish):
                part.activation = _PlainMish()
        self.num_classes, self.notes = model.num_classes, model.notes

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Reject a canvas size that does not suit the model's strides.

        Raises:
            ValueError: the size does not suit them.
        """
        self._model.check_image_hw(image_hw)

    @torch.inference_mode()
    def boxes(self, canvases: Array) -> tuple[Tensor, Tensor]:
        """Return all boxes of a batch, as `Runtime` says, on the device."""
        images = torch.from_numpy(canvases).to(self.device).permute(0, 3, 1, 2).contiguous()
        return self._model.decode(self._model(images))


def _load(model: str, overrides: Sequence[str]) -> LoadedModel:
    path = Path(model)
    if path.suffix.lower() in MODEL_SUFFIXES or target_of(path) is not None:
        return load_model(path, overrides)
    config = load_detection(model, overrides)
    torch.manual_seed(0)
    network, classes = build_model(config, _NUM_CLASSES), range(_NUM_CLASSES)
    file = ModelFile(config_to_plain(config), tuple(map(str, classes)), tuple(classes), network.state_dict())
    return LoadedModel(config, network, file)


def build_backend(timing: Timing, overrides: Sequence[str]) -> tuple[Predictor, SelectConfig]:
    """Build the predictor of a timing, and return it with its selection.

    Raises:
        DetectorError: the model cannot be read, or the back end cannot run it on this machine.
    """
    asked = [] if timing.size is None else [f"input.size={timing.size}"]
    loaded = _load(timing.model, [*overrides, *asked])
    target = export_targets().get(timing.backend)
    if target is not None and not isinstance(loaded.model, ExportRuntime):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{target.suffix}"
            export_model(loaded, path, ExportSettings(timing.backend))
            loaded = load_model(path)
    how, file = loaded.config, loaded.file
    if timing.backend != REFERENCE or isinstance(loaded.model, ExportRuntime):
        how = replace(how, runtime=TORCH_BACKENDS.get(timing.backend, how.runtime))
        return build_predictor(replace(loaded, config=how), timing.batch_size), how.predict
    runtime = ReferenceRuntime(loaded.model, choose_device(how.device))
    size, names, ids = timing.batch_size, file.class_names, file.category_ids
    return Predictor(runtime, how.input, names, ids, batch_size=size, views=how.views), how.predict


def square_images(num: int, channels: int) -> list[npt.NDArray[np.uint8]]:
    """Return images (480, 640, channels) of large random squares."""
    generator, (height, width) = np.random.default_rng(0), _SOURCE_HW
    spots = generator.integers(0, 256, (num, height // 40, width // 40, channels), dtype=np.uint8)
    return list(np.ascontiguousarray(spots.repeat(40, axis=1).repeat(40, axis=2)))


def _peak_bytes(before_bytes: int | None, device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return None if before_bytes is None else peak_bytes(before_bytes)


def _serve(connection: Connection, timing: Timing, config: BenchmarkConfig) -> None:
    """Serve a back end in a process of its own.

    The first message that it sends is the timing with precision and `ready_s`, or with an error. It then answers each
    number of calls that it receives with their milliseconds, and 0, which ends it, with the peak memory in bytes.
    """
    started_s, before_bytes = time.perf_counter(), resident_bytes()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    try:
        for path in config.imports:
            import_parts(path)
        predictor, select = build_backend(timing, config.overrides)
        images = square_images(timing.batch_size, predictor.input.channels)
        predictor.detect(images, select)
    except DetectorError as error:
        connection.send(replace(timing, error=str(error)))
        return
    ready_s = time.perf_counter() - started_s
    connection.send(replace(timing, precision=predictor.runtime.precision, ready_s=ready_s))
    while num_calls := connection.recv():
        call_ms = []
        for _ in range(num_calls + 1):
            started_s = time.perf_counter()
            predictor.detect(images, select)
            call_ms.append((time.perf_counter() - started_s) * 1e3)
        connection.send(call_ms[1:])
    connection.send(_peak_bytes(before_bytes, getattr(predictor.runtime, "device", torch.device("cpu"))))


@contextmanager
def _worker(timing: Timing, config: BenchmarkConfig) -> Iterator[Connection]:
    """Run `_serve` in a process of its own, and yield the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, timing, config), daemon=True)
    with safe_path():
        process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        process.kill()
        process.join()


def _answer(connection: Connection, timing: Timing) -> Any:
    try:
        return connection.recv()
    except EOFError as error:
        raise DetectorError(
            f"{timing.model}, {timing.backend}: its process ended without an answer, possibly out of memory; "
            "give fewer back ends or a smaller batch"
        ) from error


def _timed(timings: Sequence[Timing], config: BenchmarkConfig, report: Callable[[str], None]) -> Iterator[Timing]:
    """Yield the timings with the times of their calls, which the back ends make in turns."""
    with ExitStack() as stack:
        running: list[tuple[Connection, Timing, list[float]]] = []
        for timing in timings:
            report(f"{timing.model}, {timing.backend}{f', {timing.size} px' if timing.size else ''}")
            connection = stack.enter_context(_worker(timing, config))
            ready: Timing = _answer(connection, timing)
            if ready.error is None:
                running.append((connection, ready, []))
            else:
                yield ready
        for turn in range(config.num_turns + 1):
            for connection, timing, call_ms in running:
                connection.send(config.num_calls)
                answered: list[float] = _answer(connection, timing)
                call_ms += answered if turn else []
        for connection, timing, call_ms in running:
            connection.send(0)
            yield replace(timing, call_ms=tuple(call_ms), peak_bytes=_answer(connection, timing))


def _backends_of(model: str, config: BenchmarkConfig) -> tuple[str, ...]:
    target = target_of(Path(model))
    return config.backends if target is None else (target,)


def benchmark(config: BenchmarkConfig, report: Callable[[str], None] = lambda text: None) -> list[Timing]:
    """Time every model at every size on every back end; the back ends of a size take turns.

    Args:
        config: the settings.
        report: called with a line about each back end before it is made ready.

    Returns:
        The timings, by size, then by model.

    Raises:
        DetectorError: a back end's process died.
    """
    timed = []
    for size in config.sizes or (None,):
        timings = [
            Timing(model, backend, size, config.batch_size)
            for model in config.models
            for backend in _backends_of(model, config)
        ]
        done = {(timing.model, timing.backend): timing for timing in _timed(timings, config, report)}
        timed += [done[timing.model, timing.backend] for timing in timings]
    return timed
