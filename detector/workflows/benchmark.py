"""Back ends timed side by side: an image in memory goes in, boxes come out.

Each back end is a process of its own, so that its peak memory is its own; they take turns, so that a change in the
machine's speed hits all of them.
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
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import import_parts
from detector.config.schema import config_to_plain
from detector.errors import ConfigError, DetectorError
from detector.export.export_config import SUFFIXES, ExportSettings, TargetName, target_of
from detector.export.export_runtime import ExportRuntime
from detector.inference.predictor import Predictor
from detector.inference.runtime import RuntimeConfig
from detector.io.machine import peak_bytes, resident_bytes
from detector.models.activations import Mish
from detector.models.blocks import ConvNormAct
from detector.models.checkpoint import ModelFile
from detector.models.contracts import DetectionModel
from detector.models.precision import choose_device, has_native_bf16
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
BACKENDS = (REFERENCE, *TORCH_BACKENDS, *get_args(TargetName))
_MODEL_FILES = (".safetensors", ".pt", ".weights", *SUFFIXES.values())
_NUM_CLASSES = 80  # of a network that is made from a configuration: COCO's
_SOURCE_HW = (480, 640)


def default_backends() -> tuple[str, ...]:
    """The reference and what this machine computes natively without waiting for a compiler."""
    return REFERENCE, "torch-fp32", *(("torch-bf16",) if has_native_bf16(choose_device("auto")) else ())


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed, and how.

    Attributes:
        models: model files, exports, or configurations, whose networks get random weights and 80 classes.
        backends: of `BACKENDS`; an export has its own instead.
        sizes: sides of the canvas in pixels; none for the size that each model has.
        batch_size: images that go through the network at once.
        num_turns: turns of each back end that count; one turn before them does not.
        num_calls: timed calls of a turn; one call before them, which finds the caches cold, does not count.
        num_threads: threads of torch, or None for its own choice.
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
        unknown = [name for name in self.backends if name not in BACKENDS]
        if unknown or not self.backends:
            raise ConfigError(f"back ends of {', '.join(BACKENDS)} are wanted, found {', '.join(unknown) or 'none'}")
        if not self.models:
            raise ConfigError("a model file, an export or a configuration is wanted, found none; give one or more")
        numbers = (self.batch_size, self.num_turns, self.num_calls, *self.sizes)
        if min(numbers) < 1 or (self.num_threads is not None and self.num_threads < 1):
            raise ConfigError("sizes, batch, turns, calls and threads want to be at least 1; correct them")


@dataclass(frozen=True)
class Timing:
    """What one back end took.

    Attributes:
        model: as it was named.
        backend: of `BACKENDS`.
        size: side of the canvas that was asked for, or None for the model's own.
        batch_size: images in a call.
        precision: number format of the arithmetic.
        ready_s: seconds to load, export or compile, and make the first call.
        call_ms: milliseconds of each call.
        peak_bytes: most memory that the process took beyond its libraries, on a GPU the most that tensors took there;
            None where it is not known.
        error: why there is no timing, or None.
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
        """The median call."""
        return statistics.median(self.call_ms)

    @property
    def p95_ms(self) -> float:
        """What 95 % of the calls do not exceed."""
        return float(np.percentile(self.call_ms, 95))

    @property
    def images_per_s(self) -> float:
        """Images over the whole time of all calls."""
        return self.batch_size * len(self.call_ms) / sum(self.call_ms) * 1e3


class _PlainMish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)


class ReferenceRuntime:
    """The same network in torch's own operators: fp32, NCHW, `nn.BatchNorm2d` left as it is, `F.mish`.

    Attributes:
        device: where it runs.
        num_classes: classes it tells apart.
        notes: what is worth saying of how it was described, a sentence each.
        precision: fp32.
        selection: None: it gives all boxes.
    """

    precision: str = "fp32"
    selection: SelectConfig | None = None

    def __init__(self, model: DetectionModel, device: torch.device) -> None:
        """Takes a copy of the model to the device."""
        self._model, self.device = copy.deepcopy(model).eval().to(device), device
        for part in self._model.modules():
            if isinstance(part, ConvNormAct) and isinstance(part.activation, Mish):
                part.activation = _PlainMish()
        self.num_classes, self.notes = model.num_classes, model.notes

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Raises a `ValueError` where a canvas size does not suit the model's strides."""
        self._model.check_image_hw(image_hw)

    @torch.inference_mode()
    def boxes(self, canvases: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
        """All boxes of a batch, as `Runtime` says, on the device."""
        images = torch.from_numpy(canvases).to(self.device).permute(0, 3, 1, 2).contiguous()
        return self._model.decode(self._model(images))


def _load(model: str, overrides: Sequence[str]) -> LoadedModel:
    if Path(model).suffix.lower() in _MODEL_FILES:
        return load_model(Path(model), overrides)
    config = load_detection(model, overrides)
    torch.manual_seed(0)
    network, classes = build_model(config, _NUM_CLASSES), range(_NUM_CLASSES)
    file = ModelFile(config_to_plain(config), tuple(map(str, classes)), tuple(classes), network.state_dict())
    return LoadedModel(config, network, file)


def build_backend(timing: Timing, overrides: Sequence[str]) -> tuple[Predictor, SelectConfig]:
    """The predictor that a timing is about, and which of its boxes become detections.

    Raises:
        DetectorError: the model cannot be read, or the back end cannot run it here.
    """
    asked = [] if timing.size is None else [f"input.size={timing.size}"]
    loaded = _load(timing.model, [*overrides, *asked])
    if timing.backend in SUFFIXES and not isinstance(loaded.model, ExportRuntime):
        settings = ExportSettings(timing.backend)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{SUFFIXES[settings.target]}"
            export_model(loaded, path, settings)
            loaded = load_model(path)
    how, file = loaded.config, loaded.file
    if timing.backend != REFERENCE or isinstance(loaded.model, ExportRuntime):
        how = replace(how, runtime=TORCH_BACKENDS.get(timing.backend, how.runtime))
        return build_predictor(replace(loaded, config=how), timing.batch_size), how.predict
    runtime = ReferenceRuntime(loaded.model, choose_device(how.device))
    size, names, ids = timing.batch_size, file.class_names, file.category_ids
    return Predictor(runtime, how.input, names, ids, batch_size=size, views=how.views), how.predict


def _images(num: int, channels: int) -> list[npt.NDArray[np.uint8]]:
    """Pictures of large spots, in memory."""
    generator, (height, width) = np.random.default_rng(0), _SOURCE_HW
    spots = generator.integers(0, 256, (num, height // 40, width // 40, channels), dtype=np.uint8)
    return list(np.ascontiguousarray(spots.repeat(40, axis=1).repeat(40, axis=2)))


def _peak_bytes(before_bytes: int | None, device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return None if before_bytes is None else peak_bytes(before_bytes)


def _serve(connection: Connection, timing: Timing, config: BenchmarkConfig) -> None:
    """Makes a back end ready, then answers every number of calls with their milliseconds, and 0 with the peak memory.

    The first answer is the timing with its precision and time to be ready, or with an error.
    """
    started_s, before_bytes = time.perf_counter(), resident_bytes()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    try:
        for path in config.imports:
            import_parts(path)
        predictor, select = build_backend(timing, config.overrides)
        images = _images(timing.batch_size, predictor.input.channels)
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
    """A back end in a process of its own; the first thing it sends is its timing without calls."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, timing, config), daemon=True)
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
            f"{timing.model}, {timing.backend}: its process ended without an answer, for want of memory perhaps; "
            "give fewer back ends or a smaller batch"
        ) from error


def _timed(timings: Sequence[Timing], config: BenchmarkConfig, report: Callable[[str], None]) -> Iterator[Timing]:
    """The same with their calls, made in turns."""
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
                found = _answer(connection, timing)
                call_ms += found if turn else []
        for connection, timing, call_ms in running:
            connection.send(0)
            yield replace(timing, call_ms=tuple(call_ms), peak_bytes=_answer(connection, timing))


def _backends_of(model: str, config: BenchmarkConfig) -> tuple[str, ...]:
    target = target_of(Path(model))
    return config.backends if target is None else (target,)


def benchmark(config: BenchmarkConfig, report: Callable[[str], None] = lambda text: None) -> list[Timing]:
    """The timings of every model at every size on every back end; those of a size take turns.

    Args:
        config: what is timed, and how.
        report: told of each back end before it is made ready.

    Raises:
        DetectorError: a back end's process died.
    """
    found = []
    for size in config.sizes or (None,):
        timings = [
            Timing(model, backend, size, config.batch_size)
            for model in config.models
            for backend in _backends_of(model, config)
        ]
        done = {(timing.model, timing.backend): timing for timing in _timed(timings, config, report)}
        found += [done[timing.model, timing.backend] for timing in timings]
    return found
