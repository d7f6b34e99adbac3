"""Writing and opening exports: a network is converted, compared with its model, and only then saved under its name."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from detector.errors import CheckpointError, ConfigError
from detector.export.export_config import ExportSettings, export_suffixes, target_of
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, FileVariant, find_export_target
from detector.export.graph import DetectionGraph
from detector.export.metadata import Description
from detector.export.nms_graph import require_expressible
from detector.export.parity import TOLERANCES, Difference, count_equal_selections, measure_difference
from detector.io.atomic import write_atomically
from detector.models.checkpoint import ModelFile
from detector.models.contracts import DetectionModel
from detector.models.folding import without_training_parts
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import ARITHMETICS
from detector.structures.selection import SelectConfig

_CHECKED_CONFIDENCE = 0.01  # as low as in evaluation, so that a weak model has boxes to compare too


def open_export(path: Path) -> ExportRuntime:
    """Open an exported file; its suffix selects the target.

    Raises:
        CheckpointError: the file is no export, is damaged or was changed.
        DetectorError: a library is missing.
    """
    name = target_of(path)
    if name is None:
        raise CheckpointError(f"{path}: expected an export that ends in {', '.join(export_suffixes())}; give one")
    return _opened(find_export_target(name), path)


def _opened(target: ExportTarget, path: Path) -> ExportRuntime:
    target.require_libraries(target.open_libraries)
    return target.open_file(path)


@dataclass(frozen=True)
class Exported:
    """An export that was written.

    Attributes:
        files: the files.
        difference: the differences from its model.
        runtime: the export, ready to run.
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
    check_canvases: Sequence[Array],
    calibration_canvases: Sequence[Array] = (),
) -> Exported:
    """Write a model for another runtime after comparing the two.

    Args:
        path: the file, with the suffix of the target.
        model: the model.
        file: its configuration, names and thresholds.
        input_config: the input of the network.
        select: the selection that becomes part of the file, if the settings ask for it.
        settings: the settings of the export.
        check_canvases: canvases (H, W, C) of one size that the two are compared on.
        calibration_canvases: canvases that the ranges of activations are taken from with int8.

    Raises:
        CheckpointError: the export differs from its model by more than the tolerance, and nothing is written; or the
            file cannot be written.
        ConfigError: the target cannot hold what the settings ask for.
        DetectorError: a library is missing.
    """
    target = find_export_target(settings.target)
    require_possible(path, target, settings, calibration_canvases)
    if settings.nms:
        require_expressible(select, model.num_classes)
    target.require_libraries((*target.write_libraries, *target.open_libraries))
    model = without_training_parts(copy.deepcopy(model)).eval().float().cpu()
    description = _description(model, file, input_config, settings)
    encode = _converted(target, model, description, input_config.canvas_hw, settings, calibration_canvases)
    dense, asked = _variants(description, settings, select)
    with tempfile.TemporaryDirectory() as folder:
        twin = _put(target, Path(folder) / f"twin{target.suffix}", encode(dense))
        compared = _opened(target, twin[0])
        check = replace(select, class_confidence=None, confidence=_CHECKED_CONFIDENCE)
        difference = measure_difference(model, compared, check_canvases, check)
        tolerance = TOLERANCES[settings.precision]
        wrong = difference.beyond(tolerance) if tolerance else []
        files = _put(target, Path(folder) / f"model{target.suffix}", content := encode(asked))
        if not wrong and settings.nms:
            selecting = _opened(target, files[0])
            equal, num = count_equal_selections(compared, selecting, _batches(check_canvases), select)
            difference = replace(difference, num_selected=num)
            wrong = [] if equal == num else [f"{num - equal} of {num} detections of its suppression"]
    if wrong:
        raise CheckpointError(
            f"{path} is not written: the export differs from its model in {', '.join(wrong)}; {difference}; please "
            "report that"
        )
    return Exported(_put(target, path, content), difference, _opened(target, path))


def require_possible(
    path: Path, target: ExportTarget, settings: ExportSettings, calibration_canvases: Sequence[Array]
) -> None:
    """Reject a path of another suffix than the target's, and int8 without images.

    Raises:
        ConfigError: one of them.
    """
    if path.suffix.lower() != target.suffix:
        raise ConfigError(f"{path}: expected a file NAME{target.suffix} for {settings.target}; rename it")
    if settings.precision == "int8" and not calibration_canvases:
        raise ConfigError("int8 needs images to take the ranges of activations from; give --calibration FOLDER")


def _description(
    model: DetectionModel, file: ModelFile, input_config: InputConfig, settings: ExportSettings
) -> Description:
    """Return the metadata of an export without suppression."""
    return Description(
        replace(file, state={}),
        settings.target,
        settings.precision,
        model.max_stride,
        input_config.channels,
        "uint8" if ARITHMETICS[input_config.arithmetic].dtype == np.uint8 else "float32",
        None if settings.dynamic else input_config.canvas_hw,
        None,
        {"mish_form": settings.written_mish, "opset": settings.opset, "torch": str(torch.__version__)},
    )


def _converted(
    target: ExportTarget,
    model: DetectionModel,
    description: Description,
    canvas_hw: tuple[int, int],
    settings: ExportSettings,
    calibration_canvases: Sequence[Array],
) -> Encode:
    is_half = settings.precision == "fp16" and target.halves_network
    return target.convert(
        ExportJob(
            DetectionGraph(model, settings.written_mish, is_half=is_half),
            canvas_hw,
            torch.uint8 if description.dtype == "uint8" else torch.float32,
            settings.dynamic,
            settings.opset,
            settings.precision,
            calibration_canvases,
        )
    )


def _variants(
    description: Description, settings: ExportSettings, select: SelectConfig
) -> tuple[FileVariant, FileVariant]:
    """Return the variant to compare with the model, with all boxes and raw maps, and the one that was asked for."""
    dense = FileVariant(description.to_json(), with_raw_maps=True)
    if settings.nms:
        return dense, FileVariant(replace(description, nms=select).to_json(), with_raw_maps=False, selection=select)
    return dense, replace(dense, with_raw_maps=settings.raw_maps)


def _put(target: ExportTarget, path: Path, content: Contents) -> tuple[Path, ...]:
    """Write the files of an export, last the one that refers to the others."""
    files = target.files_of(path)
    for file, part in reversed(list(zip(files, content, strict=True))):
        write_atomically(file, _writer(part))
    return files


def _writer(content: bytes) -> Callable[[BinaryIO], int]:
    return lambda file: file.write(content)


def _batches(canvases: Sequence[Array]) -> list[Array]:
    """Return canvases in batches of up to 3, so that a file is run with several images."""
    return [np.stack(canvases[start : start + 3]) for start in range(0, len(canvases), 3)]
