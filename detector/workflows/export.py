"""Export from start to end: the images that it is compared and calibrated on, and the loss of AP with int8."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from detector.config.schema import config_to_plain
from detector.data.coco import CocoAnnotations
from detector.data.synthetic_detection import draw_shapes
from detector.errors import CheckpointError, ConfigError, DatasetError, MediaError
from detector.evaluation.evaluator import annotated_sources
from detector.export.export_config import ExportSettings, export_suffixes, target_of
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import find_export_target
from detector.export.quantization import NUM_CALIBRATION_IMAGES
from detector.export.runner_text import RUNNER_NAME, require_runnable, runner_text
from detector.export.writer import Exported, make_export, require_possible
from detector.io.atomic import write_atomically
from detector.media.sources import ImageSource, as_sources
from detector.models.contracts import DetectionModel
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import LoadedModel, evaluate_model, read_split

NUM_CHECKED_IMAGES = 64


@dataclass(frozen=True)
class ExportReport:
    """Files and measurements of an export.

    Attributes:
        exported: the files and their differences from the model.
        checked_on: the images that were compared, in words.
        calibrated_on: the images that the ranges of activations were taken from, in words, or None.
        ap: AP of the model and of its export on the split `val`, or None where it was not measured.
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
    """Write a model for another runtime after comparing the two.

    Args:
        loaded: the model; `predict` of its experiment is the selection of a suppression within the file.
        path: the file to write.
        settings: the settings of the export.
        check_images: a folder of images, or a glob, to compare the two on; by default the split `val` of the model's
            data set, or drawn images where there is none.
        calibration: images that the ranges of activations are taken from with int8; by default the split `train`.

    Raises:
        CheckpointError: the export differs from its model by more than the tolerance, or loses too much AP by int8;
            nothing is written.
        ConfigError: the target cannot hold what the settings ask for.
        DetectorError: a library is missing.
    """
    model = loaded.model
    if not isinstance(model, DetectionModel):
        raise ConfigError("an export cannot be exported again; give the model file it came from")
    if settings.runner:
        require_runnable(loaded.config.input, is_plain=loaded.config.views.is_plain)
    canvases, checked_on = canvases_of(loaded.config, check_images, "val", NUM_CHECKED_IMAGES, may_draw=True)
    calibration_canvases: Sequence[Array] = ()
    calibrated_on = None
    if settings.precision == "int8":
        calibration_canvases, calibrated_on = canvases_of(loaded.config, calibration, "train", NUM_CALIBRATION_IMAGES)
    elif calibration is not None:
        raise ConfigError(f"--calibration is for int8, got {settings.precision}; leave it out")
    file = replace(loaded.file, config=config_to_plain(loaded.config))
    config = loaded.config
    require_possible(path, find_export_target(settings.target), settings, calibration_canvases)

    def make(to: Path, asked: ExportSettings) -> Exported:
        return make_export(to, model, file, config.input, config.predict, asked, canvases, calibration_canvases)

    if settings.precision != "int8":
        return ExportReport(_with_runner(make(path, settings), settings), checked_on)
    with tempfile.TemporaryDirectory() as folder:
        exported = make(Path(folder) / path.name, replace(settings, nms=False))
        ap = _measured(loaded, exported.runtime)
        _require_small_loss(path, ap, settings.max_ap_loss)
        exported = make(path, settings) if settings.nms else _moved(exported, path)
    return ExportReport(_with_runner(exported, settings), checked_on, calibrated_on, ap)


def target_to_write(path: Path, overwrite: bool, *, has_runner: bool = False) -> str:
    """Return the target that the suffix of a path names.

    Raises:
        ConfigError: it names none, or a file exists and `overwrite` is false.
    """
    target = target_of(path)
    if target is None:
        raise ConfigError(f"{path}: an export ends in {', '.join(export_suffixes())}; rename it")
    if not overwrite:
        require_new_files(path, ExportSettings(target, runner=has_runner), "choose another path or give overwrite=True")
    return target


def require_new_files(path: Path, settings: ExportSettings, remedy: str) -> None:
    """Reject an export that would replace a file; `remedy` says what to do instead.

    Raises:
        ConfigError: one of the files that an export to the path writes exists; the program of another export may.
    """
    for file in find_export_target(settings.target).files_of(path):
        if file.exists():
            raise ConfigError(f"{file}: already exists; {remedy}")
    program = path.with_name(RUNNER_NAME)
    if settings.runner and program.exists() and program.read_bytes() != runner_text().encode():
        raise ConfigError(f"{program}: already exists and is another program; {remedy}")


def _with_runner(exported: Exported, settings: ExportSettings) -> Exported:
    """Write the program beside an export if the settings ask for it, and return the export with all of its files."""
    if not settings.runner:
        return exported
    program = exported.files[0].with_name(RUNNER_NAME)
    write_atomically(program, functools.partial(_write, runner_text().encode()))
    return replace(exported, files=(*exported.files, program))


def _require_small_loss(path: Path, ap: tuple[float, float] | None, max_loss: float) -> None:
    """Reject an export that loses more than a share of the AP of its model.

    Raises:
        CheckpointError: it does.
    """
    if ap is not None and max_loss < 1 and ap[1] < ap[0] * (1 - max_loss):
        raise CheckpointError(
            f"{path} is not written: int8 lowers AP on val from {ap[0]:.3f} to {ap[1]:.3f}, by more than "
            f"{100 * max_loss:g} % of it (--max-ap-loss); give --calibration more images like those it will be used "
            f"on, use fp16, or write it in any case with --max-ap-loss 1"
        )


def _moved(exported: Exported, path: Path) -> Exported:
    """Return an export with its files copied to the folder of `path`, last the one that refers to the others."""
    files = tuple(path.with_name(file.name) for file in exported.files)
    for file, own in reversed(list(zip(files, exported.files, strict=True))):
        content = own.read_bytes()
        write_atomically(file, functools.partial(_write, content))
    return replace(exported, files=files)


def _write(content: bytes, file: BinaryIO) -> int:
    return file.write(content)


def canvases_of(
    config: DetectionConfig, folder: Path | None, split: str, most: int, *, may_draw: bool = False
) -> tuple[list[Array], str]:
    """Return canvases of up to `most` images spread evenly over a folder or a split, and their origin in words."""
    if folder is not None:
        sources, what = [s for s in as_sources(str(folder))[0] if isinstance(s, ImageSource)], str(folder)
    else:
        try:
            sources, what = annotated_sources(read_split(config, split)), f"the split {split}"
        except DatasetError as error:
            if not may_draw:
                raise ConfigError(
                    f"int8 needs images to take the ranges of activations from: {error}; or give --calibration"
                ) from error
            sources, what = [], ""
    canvases = _fitted(config, sources[:: max(1, len(sources) // most)], most)
    if canvases:
        return canvases, f"{len(canvases)} images of {what}"
    if folder is not None or not may_draw:
        raise ConfigError(f"{folder or what}: none of its images can be read; give a folder of images")
    with tempfile.TemporaryDirectory() as drawn:
        draw_shapes(Path(drawn) / "shapes", num_train=1, num_val=most, image_size=max(64, min(config.input.canvas_hw)))
        sources = [s for s in as_sources(f"{drawn}/shapes/images/val")[0] if isinstance(s, ImageSource)]
        canvases = _fitted(config, sources, most)
    return canvases, f"{len(canvases)} drawn images, because the model's data set is missing"


def _fitted(config: DetectionConfig, sources: Sequence[ImageSource], most: int) -> list[Array]:
    canvases: list[Array] = []
    for source in sources:
        try:
            image = source.load(config.input.channels).pixels
        except MediaError:
            continue  # the other images are enough
        canvases.append(config.input.letterbox(image).apply(image))
        if len(canvases) == most:
            break
    return canvases


def _measured(loaded: LoadedModel, export: ExportRuntime) -> tuple[float, float] | None:
    """Return the AP of a model and of its export on the split `val`, or None where there is none."""
    try:
        annotations = read_split(loaded.config, "val")
    except DatasetError:
        return None
    return _ap(loaded, loaded.model, annotations), _ap(loaded, export, annotations)


def _ap(loaded: LoadedModel, model: DetectionModel | ExportRuntime, annotations: CocoAnnotations) -> float:
    return evaluate_model(LoadedModel(loaded.config, model, loaded.file), annotations).metrics.ap
