"""The fastest back end of a model on this machine: measured once, remembered in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from detector.errors import CheckpointError, ConfigError
from detector.export.export_config import ExportSettings
from detector.export.export_runtime import ExportRuntime
from detector.export.export_target import ExportTarget, export_targets
from detector.io.atomic import write_atomically
from detector.io.files import sha256_of_files
from detector.io.machine import machine
from detector.models.precision import choose_device
from detector.ops.native import cache_folder
from detector.tasks.detection_model import LoadedModel, build_predictor, load_model
from detector.tasks.requests import PredictionRequest
from detector.workflows.benchmark import square_images
from detector.workflows.export import export_model

TORCH = "torch"
_ENGINES = ("onnx", "openvino")  # targets whose runtime is not torch's own, on the CPU
_NUM_CALLS = 9
_CHOICE = "choice.json"


@dataclass(frozen=True)
class BackendChoice:
    """The back ends of a model that were timed on this machine.

    Attributes:
        image_ms: milliseconds from an image of 640 x 480 in memory to its boxes, by back end.
        path: the export of the fastest one, or None if that is torch.
    """

    image_ms: Mapping[str, float]
    path: Path | None

    @property
    def text(self) -> str:
        """The sentence for the user."""
        (name, ms), *others = sorted(self.image_ms.items(), key=lambda timed: timed[1])
        rest = ", ".join(f"{other} {other_ms:.1f}" for other, other_ms in others)
        return f"back end {name}: {ms:.1f} ms per image here{f' ({rest})' if rest else ''}"


def with_fastest_backend(request: PredictionRequest, report: Callable[[str], None]) -> PredictionRequest:
    """Return a request with the model replaced by its export, if one is faster on this machine than torch.

    The first call for a model exports it, which compares each file with the model, and times all back ends; later calls
    read the choice from the user's cache.

    Raises:
        ConfigError: the model or the settings have one back end only.
        DetectorError: as `load_model`.
    """
    loaded = load_model(request.weights, request.overrides, cfg=request.cfg, names=request.names)
    _require_choice(loaded)
    choice = fastest_backend(loaded, report)
    report(choice.text)
    if choice.path is None:
        return request
    # The export has the configuration with all overrides, and the classes of the .cfg and the names.
    return replace(request, weights=choice.path, overrides=(), cfg=None, names=None)


def _require_choice(loaded: LoadedModel) -> None:
    config = loaded.config
    if isinstance(loaded.model, ExportRuntime):
        raise ConfigError("--backend auto: expected a model file, got an export, which has one back end; leave it out")
    if choose_device(config.device).type != "cpu":
        raise ConfigError(
            f"--backend auto: expected the CPU, got device {config.device}; give device=cpu or leave it out"
        )
    if config.runtime.precision != "fp32" or config.runtime.compile:
        raise ConfigError(
            f"--backend auto: expected fp32 without a compiler, got precision {config.runtime.precision}; leave one out"
        )
    if not config.views.is_plain:
        raise ConfigError(
            f"--backend auto: expected one plain view of each image, got views: {config.views.text}; leave one out"
        )


def fastest_backend(loaded: LoadedModel, report: Callable[[str], None] = lambda text: None) -> BackendChoice:
    """Return the timings of the back ends of a model and the file of the fastest, from the cache if they are there.

    Args:
        loaded: a detection model that torch runs on the CPU in fp32.
        report: told before the back ends are measured, and why one of them is left out.
    """
    targets = {name: export_targets()[name] for name in _ENGINES}
    targets = {name: target for name, target in targets.items() if _is_installed(target)}
    folder = cache_folder() / "backends" / _key(loaded, tuple(targets))
    try:
        return _remembered(folder, targets)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # not measured yet, or damaged
        report("measuring the back ends of this model on this machine, once; this can take a minute")
        shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as own:  # other processes have theirs
        _measure(loaded, Path(own), targets, report)
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(own, folder)
    return _remembered(folder, targets)


def _measure(
    loaded: LoadedModel, folder: Path, targets: Mapping[str, ExportTarget], report: Callable[[str], None]
) -> None:
    """Write the timings of the back ends of a model, and the export of the fastest, into a folder."""
    candidates = {TORCH: loaded}
    for name, target in targets.items():
        path = folder / f"model{target.suffix}"
        try:
            export_model(loaded, path, ExportSettings(name))
            candidates[name] = load_model(path)
        except (CheckpointError, ConfigError) as error:
            report(f"back end {name} is left out: {error}")
    image_ms = _timed(candidates)
    fastest = min(image_ms, key=lambda name: image_ms[name])
    kept = () if fastest == TORCH else targets[fastest].files_of(folder / f"model{targets[fastest].suffix}")
    for file in set(folder.iterdir()).difference(kept):
        file.unlink()
    content = json.dumps({"image_ms": image_ms, "sha256": _digest(folder)}, indent=1).encode()
    write_atomically(folder / _CHOICE, lambda file: file.write(content))


def _digest(folder: Path) -> str:
    return sha256_of_files(sorted(folder.glob("model.*")))


def _is_installed(target: ExportTarget) -> bool:
    libraries = {name.partition(".")[0] for name in (*target.write_libraries, *target.open_libraries)}
    return all(find_spec(name) is not None for name in libraries)


def _key(loaded: LoadedModel, names: tuple[str, ...]) -> str:
    """Return a hash of the model, its configuration, the machine and the libraries."""
    file = loaded.file
    words = (machine(), *map(_version, names), repr((loaded.config, file.class_names, file.category_ids)))
    key = hashlib.sha256("\0".join(words).encode())
    for name, tensor in sorted(file.state.items()):
        key.update(name.encode())
        key.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()[:16]


def _version(target: str) -> str:
    return f"{target} {version({'onnx': 'onnxruntime'}.get(target, target))}"


def _remembered(folder: Path, targets: Mapping[str, ExportTarget]) -> BackendChoice:
    """Return the choice of a folder whose files are complete."""
    found = json.loads((folder / _CHOICE).read_text("utf-8"))
    image_ms = {str(name): float(ms) for name, ms in found["image_ms"].items()}
    fastest = min(image_ms, key=lambda name: image_ms[name])
    if fastest == TORCH:
        return BackendChoice(image_ms, None)
    if found["sha256"] != _digest(folder):
        raise ValueError("the export is damaged")
    return BackendChoice(image_ms, folder / f"model{targets[fastest].suffix}")


def _timed(models: Mapping[str, LoadedModel]) -> dict[str, float]:
    """Return the median milliseconds of a call of each model; the models take turns."""
    predictors = {name: build_predictor(model) for name, model in models.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(_NUM_CALLS + 2):  # two more before the timed ones, with cold caches
        for name, predictor in predictors.items():
            image = square_images(1, predictor.input.channels)
            started_s = time.perf_counter()
            predictor.detect(image, models[name].config.predict)
            if turn > 1:
                times_ms[name].append((time.perf_counter() - started_s) * 1e3)
    return {name: round(statistics.median(calls), 3) for name, calls in times_ms.items()}
