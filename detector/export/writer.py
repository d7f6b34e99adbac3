"""Exports made and opened: the network written, checked, and only then put under its name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from detector.errors import CheckpointError, ConfigError
from detector.export import nms_graph, onnx, openvino, pt2, quantization, torchscript
from detector.export.export_config import SUFFIXES, ExportSettings, TargetName, files_of, target_of
from detector.export.export_runtime import ExportRuntime, Run
from detector.export.graph import DetectionGraph
from detector.export.metadata import Description
from detector.export.parity import TOLERANCES, Difference, count_equal_selections, measure_difference
from detector.io.atomic import write_atomically
from detector.models.checkpoint import ModelFile
from detector.models.contracts import DetectionModel
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import ARITHMETICS
from detector.structures.selection import SelectConfig

_OPEN: dict[TargetName, Callable[[Path], tuple[Description, Run]]] = {
    "onnx": onnx.open_file,
    "openvino": openvino.open_file,
    "torchscript": torchscript.open_file,
    "pt2": pt2.open_file,
}


def open_export(path: Path) -> ExportRuntime:
    """An exported file, ready to run; its suffix says of which runtime.

    Raises:
        CheckpointError: it is none, is damaged or was changed.
        DetectorError: a library is missing.
    """
    target = target_of(path)
    if target is None:
        raise CheckpointError(f"{path}: an export ends in {', '.join(SUFFIXES.values())}; give one")
    return ExportRuntime(*_OPEN[target](path))


@dataclass(frozen=True)
class Exported:
    """An export that was made.

    Attributes:
        files: what was written.
        difference: how far it is from its model.
        runtime: the file, ready to run.
    """

    files: tuple[Path, ...]
    difference: Difference
    runtime: ExportRuntime


def make_export(
    path: Path,
    model: DetectionModel,
    file: ModelFile,
    input_config: InputConfig,
    select: SelectConfig,
    settings: ExportSettings,
    check_canvases: Sequence[npt.NDArray[Any]],
    calibration_canvases: Sequence[npt.NDArray[Any]] = (),
) -> Exported:
    """Writes a model for another runtime, and checks what was written against it.

    Args:
        path: the file, with the suffix of the target.
        model: the model.
        file: its configuration, names and thresholds.
        input_config: what it sees.
        select: the suppression that becomes part of the file, if that is asked.
        settings: what to write.
        check_canvases: what the two are compared on, each (H, W, C), of one size.
        calibration_canvases: what the ranges of 8 bits are found on.

    Raises:
        CheckpointError: the export differs from its model by more than it may, nothing is left; or the disk refuses.
        ConfigError: the target cannot hold what is asked.
        DetectorError: a library is missing.
    """
    if path.suffix.lower() != SUFFIXES[settings.target]:
        raise ConfigError(f"{path}: a file NAME{SUFFIXES[settings.target]} is wanted for {settings.target}; rename it")
    if settings.nms:
        nms_graph.require_expressible(select, model.num_classes)
    if settings.precision == "int8" and not calibration_canvases:
        raise ConfigError("int8 wants images to find the ranges of activations on; give --calibration FOLDER")
    model = model.eval().float().cpu()
    dense, written = _written(model, file, input_config, select, settings, calibration_canvases)
    with tempfile.TemporaryDirectory() as folder:
        twin = _put(Path(folder) / f"twin{path.suffix.lower()}", dense())
        check = replace(select, class_confidence=None, confidence=_CHECKED_CONFIDENCE)
        compared = open_export(twin[0])
        difference = measure_difference(model, compared, check_canvases, check)
        tolerance = TOLERANCES[settings.precision]
        wrong = difference.beyond(tolerance) if tolerance else []
        files = _put(Path(folder) / f"model{path.suffix.lower()}", content := written())
        if not wrong and settings.nms:
            equal, num = count_equal_selections(compared, open_export(files[0]), _batches(check_canvases), select)
            difference = replace(difference, num_selected=num)
            wrong = [] if equal == num else [f"{num - equal} of {num} detections of its suppression"]
    if wrong:
        raise CheckpointError(
            f"{path} is not written: the export differs from its model in {', '.join(wrong)}; {difference}; please "
            "report that"
        )
    return Exported(_put(path, content), difference, open_export(path))


# Low enough for boxes to compare where a model finds little, as evaluation does.
_CHECKED_CONFIDENCE = 0.01
_Content = tuple[bytes, ...]  # of the file, and of the one beside it


def _written(
    model: DetectionModel,
    file: ModelFile,
    input_config: InputConfig,
    select: SelectConfig,
    settings: ExportSettings,
    calibration_canvases: Sequence[npt.NDArray[Any]],
) -> tuple[Callable[[], _Content], Callable[[], _Content]]:
    """The network twice, each made when called: with all boxes and raw maps to be compared, and as asked for."""
    graph = DetectionGraph(
        model, settings.written_mish, is_half=settings.precision == "fp16" and settings.target != "openvino"
    )
    arithmetic = ARITHMETICS[input_config.arithmetic]
    dtype = torch.uint8 if arithmetic.dtype == np.uint8 else torch.float32
    canvas_hw = input_config.canvas_hw
    description = Description(
        replace(file, state={}),
        settings.target,
        settings.precision,
        model.max_stride,
        input_config.channels,
        "uint8" if dtype == torch.uint8 else "float32",
        None if settings.dynamic else canvas_hw,
        None,
        {"mish_form": settings.written_mish, "opset": settings.opset, "torch": str(torch.__version__)},
    )
    plain = description.to_json()
    asked = replace(description, nms=select).to_json() if settings.nms else plain
    if settings.target == "torchscript":

        def script(with_raw_maps: bool) -> _Content:
            graph.with_raw_maps = with_raw_maps
            return (torchscript.save(torchscript.traced(graph, canvas_hw, dtype), plain),)

        return lambda: script(True), lambda: script(settings.raw_maps)

    def program() -> Any:
        return pt2.exported_program(graph, canvas_hw, dtype, dynamic=settings.dynamic)

    if settings.target == "pt2":

        def saved(with_raw_maps: bool) -> _Content:
            graph.with_raw_maps = with_raw_maps
            return (pt2.save(program(), plain),)

        return lambda: saved(True), lambda: saved(settings.raw_maps)
    whole = onnx.converted(program(), graph, settings.opset)
    if settings.precision == "int8":
        whole = quantization.quantized(whole, calibration_canvases)

    def file_of(onnx_model: Any, document: str) -> _Content:
        if settings.target == "onnx":
            return (onnx.save(onnx_model, document),)
        halves = settings.precision == "fp16"
        return openvino.save(openvino.converted(onnx_model), document, halves_weights=halves)

    def final() -> _Content:
        model = whole if settings.raw_maps else onnx.without_raw_maps(whole)
        if settings.nms:
            takes_equal = settings.target == "openvino"
            nms_graph.append_suppression(model, select, description.num_classes, takes_equal=takes_equal)
        return file_of(model, asked)

    return lambda: file_of(whole, plain), final


def _put(path: Path, content: _Content) -> tuple[Path, ...]:
    """Writes a file and, of two, the second beside it, first: what names the other comes last."""
    files = files_of(path)
    for file, part in reversed(list(zip(files, content, strict=True))):
        write_atomically(file, _writer(part))
    return files


def _writer(content: bytes) -> Callable[[BinaryIO], int]:
    return lambda file: file.write(content)


def _batches(canvases: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Canvases in batches of up to 3, so that a file is run with several images."""
    return [np.stack(canvases[start : start + 3]) for start in range(0, len(canvases), 3)]
