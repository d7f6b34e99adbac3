"""Work with images that have no labels yet: pseudo-labels of a model, and the order in which labelling them pays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detector import __version__
from detector.data.conversion import write_json
from detector.data.label_decisions import sha256_of
from detector.errors import ConfigError, DatasetError, MediaError
from detector.evaluation.confidence import Target
from detector.evaluation.evaluator import detect_split
from detector.evaluation.operating_point import OperatingPoint
from detector.evaluation.ranking import Floats, Ranking
from detector.inference.predictor import Prediction
from detector.media.sources import ImageSource, as_sources
from detector.models.published_weights import resolve_weights
from detector.structures.boxes import xyxy_to_xywh
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import LoadedModel, build_predictor, load_model, matched, read_split
from detector.tasks.requests import SILENT, Observer
from detector.tasks.task import split_to_evaluate

DEFAULT_TARGET = Target("precision", 0.9)
LOWEST_SCORE = 0.05  # of detections whose value is counted; a model has many that are lower and mean nothing


@dataclass(frozen=True)
class UnlabelledRequest:
    """A model and images without labels.

    Attributes:
        weights: the model file.
        images: paths of images, folders, globs or list files.
        overrides: texts such as `predict.iou=0.6`; with `data=` thresholds are chosen on its split.
        split: split that thresholds are chosen on; None for val.
        target: target of these thresholds.
        confidence: one threshold for all classes, or None.
    """

    weights: Path
    images: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    split: str | None = None
    target: Target = DEFAULT_TARGET
    confidence: float | None = None

    @property
    def has_data(self) -> bool:
        """True if an override names a data set."""
        return any(override.startswith(("data=", "data.")) for override in self.overrides)


@dataclass(frozen=True)
class PseudoLabels:
    """Written pseudo-labels.

    Attributes:
        path: the COCO file.
        num_images: images in it.
        num_labels: labels in it, by class name.
        num_left_out: images without a detection above the thresholds, which are left out.
        num_unread: images that could not be read.
        thresholds: lowest score of a label, by class name; without the classes that get no labels.
        origin: sentence on where the thresholds come from.
    """

    path: Path
    num_images: int
    num_labels: dict[str, int]
    num_left_out: int
    num_unread: int
    thresholds: dict[str, float]
    origin: str

    def to_plain(self) -> dict[str, object]:
        """Return the numbers as plain data for JSON."""
        return {**vars(self), "path": str(self.path)}


@dataclass(frozen=True)
class ValuedImage:
    """Image without labels: its file, its value (see `value_of`) and the number of detections counted."""

    path: Path
    value: float
    num_detections: int


def pseudo_label(
    request: UnlabelledRequest, target: Path, *, keep_empty: bool = False, observer: Observer = SILENT
) -> PseudoLabels:
    """Write the detections of a model above a threshold for each class as a COCO file with scores and provenance.

    Args:
        request: the model, the images and the origin of the thresholds: `confidence`, or the operating point on a split
            of `data=`, or else the one that the model file holds.
        target: the new file.
        keep_empty: whether to keep images without a label. In training they are background, which is wrong where the
            model missed an object.
        observer: receives notes and progress.

    Raises:
        DatasetError: the file exists, or the split cannot be used.
        ConfigError: no thresholds are there, or no class reaches the target.
        MediaError: no image can be read.
    """
    if target.exists():
        raise DatasetError(f"{target} exists, and no file is replaced; give a new name")
    loaded = load_model(request.weights, request.overrides)
    thresholds, origin = _thresholds(request, loaded, observer)
    names, predict = loaded.file.class_names, loaded.config.predict
    if missed := [name for label, name in enumerate(names) if label not in thresholds]:
        observer.warn(f"{', '.join(missed)}: no threshold reaches the target ({origin}), these get no labels")
    thresholds = {i: value for i, value in thresholds.items() if predict.classes is None or i in predict.classes}
    if not thresholds:
        raise ConfigError("no class is left to label; give another --threshold-for, or --confidence 0.8")
    by_label = tuple(thresholds.get(label, 1.0) for label in range(len(names)))
    select = replace(predict, confidence=min(by_label), class_confidence=by_label, classes=tuple(thresholds))
    found = _detected(request, loaded, select, observer)
    root, images, rows, counts = _coco_entries(found, loaded, keep_empty)
    if not images:
        raise DatasetError(f"none of {len(found)} images has a detection above the thresholds; lower them")
    by_class = {names[label]: value for label, value in thresholds.items()}
    weights = resolve_weights(request.weights)
    info = {
        "description": "pseudo-labels: detections of a model, not checked by a person",
        "model": str(request.weights),
        "model_sha256": sha256_of(weights) if weights.is_file() else None,
        "thresholds": by_class,
        "thresholds_from": origin,
        "images": str(root),
        "written_by": f"detector {__version__}",
    }
    categories = [{"id": i, "name": name} for i, name in zip(loaded.file.category_ids, names, strict=True)]
    content = {"info": info, "images": images, "annotations": rows, "categories": categories}
    write_json(content, target, target)
    num_unread = len(_image_sources(request.images)) - len(found)
    return PseudoLabels(target, len(images), counts, len(found) - len(images), num_unread, by_class, origin)


def _coco_entries(
    found: Sequence[Prediction], loaded: LoadedModel, keep_empty: bool
) -> tuple[Path, list[dict[str, object]], list[dict[str, object]], dict[str, int]]:
    """Return the common folder of the images, the images and labels of the COCO file, and the labels by class."""
    names, category_ids = loaded.file.class_names, loaded.file.category_ids
    root = Path(os.path.commonpath([prediction.source.path.parent for prediction in found if prediction.source.path]))
    images: list[dict[str, object]] = []
    rows: list[dict[str, object]] = []
    counts = dict.fromkeys(names, 0)
    for prediction in found:
        detections, path = prediction.detections, prediction.source.path
        assert detections is not None  # `_detected` returns what was read
        assert path is not None  # and files only
        if not len(detections) and not keep_empty:
            continue
        height, width = detections.image_hw
        name = path.relative_to(root).as_posix()
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        boxes = xyxy_to_xywh(detections.source_xyxy.double()).tolist()
        for box, label, score in zip(boxes, detections.labels.tolist(), detections.scores.tolist(), strict=True):
            counts[names[label]] += 1
            row = {"id": len(rows) + 1, "image_id": len(images), "category_id": category_ids[label]}
            extent = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            rows.append({**row, **extent, "score": score, "origin": "pseudo-label"})
    return root, images, rows, counts


def _thresholds(request: UnlabelledRequest, loaded: LoadedModel, observer: Observer) -> tuple[dict[int, float], str]:
    """Return the threshold of each class index that reaches the target, and words on their origin."""
    num_classes = len(loaded.file.class_names)
    if request.confidence is not None:
        return dict.fromkeys(range(num_classes), request.confidence), "one threshold for all classes, as given"
    if not request.has_data:
        point = OperatingPoint.of_file(loaded.file, str(request.weights))
        return point.reached(), f"{point.target} on {point.num_images} images, as stored in the model file"
    split = split_to_evaluate(loaded.config, request.split, request.has_data, observer.note)
    annotations = read_split(loaded.config, split, observer.report)
    known, annotations = matched(loaded, annotations, observer.note, observer.warn)
    predictor = build_predictor(known, loaded.config.evaluate.batch_size)
    found = detect_split(predictor, annotations, loaded.config.evaluate)
    ranking = Ranking.of(found.truth, found.detections)
    point = OperatingPoint.chosen(found.truth, ranking, request.target, known.file.category_ids)
    return point.reached(), f"{point.target} on the {point.num_images} images of {annotations.annotations.name}"


def rank_images(
    request: UnlabelledRequest, *, seed: int | None = None, observer: Observer = SILENT
) -> tuple[ValuedImage, ...]:
    """Return images by falling value of labelling them, or in random order, the baseline of every such order.

    Args:
        request: the model and the images.
        seed: seed of a random order; None orders by value.
        observer: receives notes and progress.

    Raises:
        MediaError: no image can be read.
    """
    loaded = load_model(request.weights, request.overrides)
    select = replace(loaded.config.predict, confidence=LOWEST_SCORE, class_confidence=None)
    valued = []
    for prediction in _detected(request, loaded, select, observer):
        assert prediction.detections is not None  # `_detected` returns what was read
        assert prediction.source.path is not None  # and files only
        scores = prediction.detections.scores.double().numpy()
        valued.append(ValuedImage(prediction.source.path, value_of(scores), len(scores)))
    if seed is not None:
        return tuple(valued[place] for place in np.random.default_rng(seed).permutation(len(valued)).tolist())
    return tuple(sorted(valued, key=lambda image: -image.value))


def value_of(scores: Floats) -> float:
    """Return the expected number of corrections that a person would make to the detections of an image.

    A detection of score p is right with about that probability: shown (p of at least 0.5) it is wrong with 1 - p, and
    not shown it is a missed object with p. This is the sum of the "1 vs 2" margins of two classes in Brust et al. 2019,
    "Active Learning for Deep Object Detection", section 3.

    Args:
        scores: float64 (N,), scores of the detections of an image, 0..1.
    """
    return float(np.minimum(scores, 1 - scores).sum())


def _image_sources(words: Sequence[str]) -> list[ImageSource]:
    """Return the image files that words name, each once.

    Raises:
        ConfigError: a word names a video or stream.
    """
    sources: dict[str, ImageSource] = {}
    for source in as_sources(words[0] if len(words) == 1 else list(words))[0]:
        if not isinstance(source, ImageSource) or source.path is None:
            raise ConfigError(f"{source.name}: expected image files, got a video or stream; save its frames first")
        path = Path(os.path.realpath(source.path.parent), source.path.name)  # without `..`, which readers refuse
        sources.setdefault(os.path.realpath(path), replace(source, path=path))
    return list(sources.values())


def _detected(
    request: UnlabelledRequest, loaded: LoadedModel, select: SelectConfig, observer: Observer
) -> list[Prediction]:
    """Return the detections of every image that can be read, without its pixels; report the others."""
    sources = _image_sources(request.images)
    found = []
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    for done, prediction in enumerate(predictor.stream(sources, select), start=1):
        if prediction.detections is None:
            observer.note(f"skipped: {prediction.error}")
        else:
            found.append(replace(prediction, image=None))
        observer.on_image(done, len(sources))
    if not found:
        raise MediaError(f"none of {len(sources)} images could be read; check {', '.join(request.images)}")
    return found
