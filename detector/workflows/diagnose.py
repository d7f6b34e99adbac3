"""Diagnosis of a training run: evidence from its files, its data and its model, and the causes of a low AP."""

from __future__ import annotations

import csv
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.config import registry
from detector.config.nodes import presets_dir
from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import no_extras
from detector.data.dataset_editing import Portion, take
from detector.data.unlabelled import with_unlabelled
from detector.errors import ConfigError, DatasetError, MediaError
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.evaluator import detect_split
from detector.evaluation.ranking import Flags, Floats
from detector.evaluation.run_causes import Cause, causes_of, finer_levels, to_plain
from detector.evaluation.run_evidence import RunEvidence, SplitEvidence, measured
from detector.media.images import load_image
from detector.models.published_weights import run_weights
from detector.structures.letterbox import Image
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import (
    LoadedModel,
    build_model,
    build_predictor,
    load_detection,
    load_model,
    matched,
    read_split,
    read_train,
)
from detector.tasks.requests import SILENT, Observer

NUM_MEASURED, _NUM_LOOKED_AT = 200, 60  # images of each split that the model is run on, and whose pixels are compared
_NEARLY_ALL = 0.95
_CANVAS_STEP_PX = 64  # the largest stride of any network


@dataclass(frozen=True)
class Diagnosis:
    """Evidence on a run and the causes found in it, that of the largest estimated cost first."""

    evidence: RunEvidence
    causes: tuple[Cause, ...]

    def to_plain(self) -> dict[str, object]:
        """Return the diagnosis as plain data for JSON."""
        return {"causes": [to_plain(cause) for cause in self.causes], "evidence": self.evidence.to_plain()}


def diagnose(
    run: Path, overrides: tuple[str, ...] = (), *, num_images: int = NUM_MEASURED, observer: Observer = SILENT
) -> Diagnosis:
    """Return what holds back the AP of a run, with the evidence.

    Args:
        run: the run folder.
        overrides: texts such as `data=moved.yaml`.
        num_images: images of each split that the model is run on.
        observer: receives notes and progress.

    Raises:
        ConfigError: the folder is not one of a detection run.
        CheckpointError: its model cannot be read.
        DatasetError: its data cannot be used.
    """
    weights = run_weights(run)
    if weights is None and not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: expected the folder of a training run, got another path; check it")
    loaded = load_model(weights, overrides) if weights is not None else None
    config = load_detection(str(run / "config.yaml"), overrides) if loaded is None else loaded.config
    train, val = read_train(config, observer.report)
    if val is None and config.has_val:
        val = read_split(config, "val", observer.report, with_notes=False)
    evidence = _of_files(run, config, train, val)
    if loaded is None:
        observer.note("the run holds no weights, as after training that diverged: nothing is measured")
        return Diagnosis(evidence, causes_of(evidence))
    if weights is not None and weights.stem == "last":
        observer.note(f"the run ended before its first evaluation: continue it with detector train --resume {run}")
    found: dict[str, SplitEvidence] = {}
    splits = {"train": train} if val is None else {"train": train, "val": val}
    for name, split in splits.items():
        if name == "val" and split.is_crowd.all():
            observer.note(f"{split.annotations}: no objects, so only training images are measured")
            continue
        observer.note(f"{name}: measuring on {min(num_images, len(split))} of {len(split)} images")
        found[name] = _of_split(loaded, split, evidence.stride, num_images, observer)
    evidence = replace(evidence, train=found["train"], val=found.get("val"))
    return Diagnosis(evidence, causes_of(evidence))


def _of_files(run: Path, config: DetectionConfig, train: CocoAnnotations, val: CocoAnnotations | None) -> RunEvidence:
    """Return the evidence of the configuration, the curves and the annotations."""
    steps, losses, aps = _curves(run / "results.csv")
    stride = smallest_stride(config, len(train.class_names))
    longer = train.image_hw.max(axis=1)
    relative = _source_sides(train) / np.maximum(np.repeat(longer, np.diff(train.offsets)), 1)
    source_px = float(np.median(longer))
    fitting = [
        size
        for size in range(max(config.input.canvas_hw), math.ceil(source_px) + _CANVAS_STEP_PX, _CANVAS_STEP_PX)
        if (relative * size >= stride).mean() >= _NEARLY_ALL
    ]
    num_shown = len(train)
    if config.data is not None and config.data.unlabelled is not None:
        with suppress(DatasetError):  # the images are no longer there
            num_shown = len(with_unlabelled(train, config.data.unlabelled, () if val is None else (val,)))
    image_of_row = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    num_images_of = {
        name: len(np.unique(image_of_row[(train.labels == label) & ~train.is_crowd]))
        for label, name in enumerate(train.class_names)
    }
    return RunEvidence(
        run=str(run),
        canvas_px=max(config.input.canvas_hw),
        source_px=source_px,
        stride=stride,
        fitting_px=fitting[0] if fitting else None,
        has_levels=has_finer_levels(config, stride),
        optimizer=registry.name_of(config.optimizer),
        lr=config.optimizer.lr,
        usual_lr=_usual_lr(config),
        mosaic=config.augment.mosaic,
        num_steps=config.train.num_steps(num_shown, config.loader.batch_size),
        steps=steps,
        losses=losses,
        aps=aps,
        num_images_of=num_images_of,
        train=SplitEvidence(len(train), train.num_boxes),
    )


def _curves(path: Path) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Return steps, losses (the sum of their parts) and APs of the evaluations in `results.csv`, if it is there.

    Raises:
        DatasetError: it cannot be read.
    """
    if not path.is_file():
        return (), (), ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        steps = tuple(int(row["step"]) for row in rows)
        losses = tuple(sum(float(row[name]) for name in row if name.startswith("train/") and row[name]) for row in rows)
        return steps, losses, tuple(float(row.get("metrics/mAP50-95(B)") or "nan") for row in rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise DatasetError(f"{path}: the numbers cannot be read ({error}); restore the file or remove it") from error


def _usual_lr(config: DetectionConfig) -> float:
    """Return the default learning rate of a run with the same optimiser and the same kind of start."""
    base, own = load_detection(str(presets_dir() / "base.yaml")).optimizer, type(config.optimizer)()
    usual = base.lr if type(base) is type(own) else own.lr
    bound = None if config.train.weights is None else own.fine_tuning_lr
    return usual if bound is None else min(usual, bound)


def smallest_stride(config: DetectionConfig, num_classes: int) -> int:
    """Return the stride of the finest raw map of a network, canvas pixels."""
    height, width = config.input.canvas_hw
    with torch.device("meta"):
        model = build_model(config, num_classes).eval()
        maps = model(torch.zeros(1, config.input.channels, height, width, dtype=torch.uint8))
    cells: int = max(each.shape[-2] for each in maps)
    return round(height / cells)


def has_finer_levels(config: DetectionConfig, stride: int) -> bool:
    """Return whether the network takes the finer levels that a cause would propose."""
    levels: Any = {"levels": finer_levels(stride)}
    try:
        return bool(smallest_stride(replace(config, model=replace(config.model, **levels)), 1))
    except (ConfigError, TypeError):  # the network has no such key
        return False


def _source_sides(annotations: CocoAnnotations) -> Floats:
    """Return the size of each box, the square root of its area, in source pixels: float64 (A,)."""
    sides: Floats = np.sqrt(annotations.boxes_xywh[:, 2] * annotations.boxes_xywh[:, 3])
    return sides


def _canvas_sides(annotations: CocoAnnotations, canvas_hw: tuple[int, int]) -> Floats:
    """Return the size of each box on the canvas: float64 (A,)."""
    with np.errstate(divide="ignore"):
        scales = (np.array(canvas_hw) / annotations.image_hw).min(axis=1)
    scales = np.where(np.isfinite(scales), scales, 1.0)  # the size of an image may be unknown
    sides: Floats = _source_sides(annotations) * np.repeat(scales, np.diff(annotations.offsets))
    return sides


def _of_split(
    loaded: LoadedModel, annotations: CocoAnnotations, stride: int, num_images: int, observer: Observer
) -> SplitEvidence:
    """Return the evidence on a split, measured on a sample of its images that have objects."""
    known, annotations = matched(loaded, annotations, observer.note, observer.warn)
    config, is_object = known.config, ~annotations.is_crowd
    if not is_object.any():
        raise DatasetError(f"{annotations.annotations}: expected objects to diagnose the run on, got none; give data=")
    sides = _canvas_sides(annotations, config.input.canvas_hw)[is_object]
    evidence = SplitEvidence(
        num_images=len(annotations),
        num_objects=int(is_object.sum()),
        share_below=float((sides < stride).mean()),
        share_below_in_source=float((_source_sides(annotations)[is_object] < stride).mean()),
        canvas_px=float(np.median(sides)),
    )
    chosen = np.random.default_rng(0).permutation(len(annotations))[:num_images]
    sample = take(Portion(annotations, no_extras(annotations)), np.sort(chosen)).annotations
    evidence = replace(evidence, looks=_looks(sample, config.input.channels))
    predictor = build_predictor(known, config.evaluate.batch_size)
    found = detect_split(predictor, sample, config.evaluate, lambda done: observer.on_image(done, len(sample)))
    metrics = score_results(found.truth, found.detections, backend=config.evaluate.backend)
    return measured(evidence, metrics, found.truth, found.detections, _is_below(sample, config, stride))


def _is_below(sample: CocoAnnotations, config: DetectionConfig, stride: int) -> Flags:
    """Return the objects below a stride in the order of `GroundTruth`, by ascending image id: bool (A,)."""
    image_ids = np.repeat(sample.image_ids, np.diff(sample.offsets))
    order = np.argsort(image_ids, kind="stable")
    is_below: Flags = _canvas_sides(sample, config.input.canvas_hw)[order] < stride
    return is_below


def _looks(sample: CocoAnnotations, channels: int) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation over some images of brightness, contrast, saturation and sharpness."""
    rows = []
    for index in range(min(len(sample), _NUM_LOOKED_AT)):
        try:
            rows.append(_look(load_image(sample.path(index), channels).pixels))
        except MediaError:
            continue  # detection reports the image
    if len(rows) < 2:
        return {}
    columns = np.array(rows)
    names = ("brightness", "contrast", "saturation", "sharpness")
    return dict(zip(names, zip(columns.mean(axis=0).tolist(), columns.std(axis=0).tolist(), strict=True), strict=True))


def _look(image: Image) -> tuple[float, float, float, float]:
    """Return brightness and contrast in 0..255, saturation and sharpness relative to them."""
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2)
    contrast = float(grey.std())
    saturation = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return float(grey.mean()), contrast, saturation, float(steps) / max(contrast, 1.0)
