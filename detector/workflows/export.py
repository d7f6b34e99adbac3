"""Exporting as a whole: which images an export is checked and calibrated on, and what it costs in AP."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from detector.config.schema import config_to_plain
from detector.data.synthetic_detection import draw_shapes
from detector.errors import CheckpointError, ConfigError, DatasetError, MediaError
from detector.evaluation.evaluator import annotated_sources
from detector.export.export_config import ExportSettings
from detector.export.quantization import NUM_CALIBRATION_IMAGES
from detector.export.writer import Exported, make_export
from detector.media.sources import ImageSource, as_sources
from detector.models.contracts import DetectionModel
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import LoadedModel, evaluate_model, load_model, read_split

NUM_CHECKED_IMAGES = 64


@dataclass(frozen=True)
class ExportReport:
    """What an export came to.

    Attributes:
        exported: the files and how far they are from their model.
        checked_on: the images that was measured on, in words.
        calibrated_on: those that the ranges of 8 bits were found on, in words, or None.
        ap: AP of the model and of its export on the split `val`, or None where that was not measured.
    """

    exported: Exported
    checked_on: str
    calibrated_on: str | None = None
    ap: tuple[float, float] | None = None


def export_model(
    loaded: LoadedModel,
    path: Path,
    settings: ExportSettings,
    check_images: Path | None = None,
    calibration: Path | None = None,
) -> ExportReport:
    """Writes a model for another runtime, checked against the model it came from.

    Args:
        loaded: the model; `predict` of its experiment is what a suppression within the file does.
        path: the file to write.
        settings: what to write.
        check_images: a folder of images, or a glob, to compare the two on; by default those of the split `val` of the
            model's data set, or drawn ones where there is none.
        calibration: images that the ranges of 8 bits are found on; by default those of the split `train`.

    Raises:
        CheckpointError: the export differs from its model by more than it may; nothing is left of it.
        ConfigError: the target cannot hold what is asked.
        DetectorError: a library is missing.
    """
    model = loaded.model
    if not isinstance(model, DetectionModel):
        raise ConfigError("an export is not exported again; give the model file it came from")
    canvases, checked_on = _canvases(loaded.config, check_images, "val", NUM_CHECKED_IMAGES, may_draw=True)
    found: Sequence[npt.NDArray[Any]] = ()
    calibrated_on = None
    if settings.precision == "int8":
        found, calibrated_on = _canvases(loaded.config, calibration, "train", NUM_CALIBRATION_IMAGES)
    elif calibration is not None:
        raise ConfigError(f"--calibration belongs to int8, found {settings.precision}; leave it out")
    file = replace(loaded.file, config=config_to_plain(loaded.config))
    chosen = loaded.config.input, loaded.config.predict
    exported = make_export(path, model, file, *chosen, settings, canvases, found)
    ap = _measured(loaded, path) if settings.precision == "int8" and not settings.nms else None
    return ExportReport(exported, checked_on, calibrated_on, ap)


def _canvases(
    config: DetectionConfig, folder: Path | None, split: str, most: int, *, may_draw: bool = False
) -> tuple[list[npt.NDArray[Any]], str]:
    """Canvases of up to `most` images spread evenly over a folder or a split, and what they are in words."""
    if folder is not None:
        sources, what = [s for s in as_sources(str(folder))[0] if isinstance(s, ImageSource)], str(folder)
    else:
        try:
            sources, what = annotated_sources(read_split(config, split)), f"the split {split}"
        except DatasetError as error:
            if not may_draw:
                raise ConfigError(f"int8 wants images to find ranges on: {error}; or give --calibration") from error
            sources, what = [], ""
    canvases = _fitted(config, sources[:: max(1, len(sources) // most)], most)
    if canvases:
        return canvases, f"{len(canvases)} images of {what}"
    if folder is not None or not may_draw:
        raise ConfigError(f"{folder or what}: no image there can be read; give a folder of images")
    with tempfile.TemporaryDirectory() as drawn:
        draw_shapes(Path(drawn) / "shapes", num_train=1, num_val=most, image_size=max(64, min(config.input.canvas_hw)))
        sources = [s for s in as_sources(f"{drawn}/shapes/images/val")[0] if isinstance(s, ImageSource)]
        canvases = _fitted(config, sources, most)
    return canvases, f"{len(canvases)} drawn images, as the model's data set is not there"


def _fitted(config: DetectionConfig, sources: Sequence[ImageSource], most: int) -> list[npt.NDArray[Any]]:
    canvases = []
    for source in sources:
        try:
            image = source.load(config.input.channels).pixels
        except MediaError:
            continue  # an image less to compare on
        canvases.append(config.input.letterbox(image).apply(image))
        if len(canvases) == most:
            break
    return canvases


def _measured(loaded: LoadedModel, path: Path) -> tuple[float, float] | None:
    """AP of a model and of its export on the split `val`, or None where there is none."""
    try:
        annotations = read_split(loaded.config, "val")
        exported = load_model(path)
        return tuple(  # type: ignore[return-value]  # two of them
            evaluate_model(LoadedModel(loaded.config, m, loaded.file), annotations).metrics.ap
            for m in (loaded.model, exported.model)
        )
    except (DatasetError, CheckpointError):
        return None
