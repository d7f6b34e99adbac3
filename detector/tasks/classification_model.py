"""Classifiers: opened from files, run and evaluated."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from detector.config import registry
from detector.data.classification_split import LabelledImages
from detector.data.problems import num_accepted, num_skipped
from detector.errors import DatasetError, MediaError
from detector.evaluation.accuracy import ClassificationMetrics, classification_metrics
from detector.media.images import LoadedImage
from detector.media.sources import ImageSource
from detector.media.writers import write_text
from detector.models.checkpoint import ModelFile, load_model_file, load_state
from detector.models.contracts import TrainableModel
from detector.models.folding import fold
from detector.models.precision import choose_device
from detector.models.published_weights import resolve_weights
from detector.structures.canvas import Canvas
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.requests import SILENT, EvaluationOutcome, ModelRequest, Observer
from detector.tasks.task import build_checked, config_of_file, split_to_evaluate
from detector.training.distributed import World
from detector.training.events import Noted, Report
from detector.training.run_folder import results_folder


def build_classifier(config: ClassificationConfig, num_classes: int) -> TrainableModel:
    """Build a classifier with random weights.

    Raises:
        ConfigError: the input size does not suit the model.
    """
    model: TrainableModel = build_checked(config.model, num_classes, config.input)
    return model


def read_images(config: ClassificationConfig, split: str, report: Report = lambda event: None) -> LabelledImages:
    """Read a split of the experiment's images and report what was left out.

    Raises:
        DatasetError: there is no such split, or it cannot be used.
    """
    if config.data is None:
        raise DatasetError("no images are configured; give data=FOLDER with a folder for each class")
    canvas = Canvas(config.input.canvas_hw, config.input.channels, config.input.fit)
    images: LabelledImages = registry.build(config.data).split(split, canvas)
    if not len(images):
        raise DatasetError(f"{images.origin}: expected at least one image, got none; check data")
    for problem in images.problems:
        report(Noted(f"{images.origin}: {problem}", is_of_data=True))
    return images


class ImageScorer:
    """Classifier ready to run: folded, in channels_last, with padded batches so that results ignore the batch size.

    Attributes:
        device: the device it runs on.
    """

    def __init__(self, model: TrainableModel, device: torch.device, batch_size: int) -> None:
        """Copy the model to the device; arithmetic is float32."""
        folded = fold(copy.deepcopy(model))
        self._model = folded.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub gap
        self.device, self._batch_size, self._num_classes = device, batch_size, model.num_classes

    @torch.inference_mode()
    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return logits float32 (N, classes) of fitted images uint8 (N, H, W, C)."""
        found = np.zeros((len(images), self._num_classes), np.float32)
        for first in range(0, len(images), self._batch_size):
            part = images[first : first + self._batch_size]
            batch = np.zeros((self._batch_size, *images.shape[1:]), np.uint8)
            batch[: len(part)] = part
            scores = self._model(torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device))
            found[first : first + len(part)] = scores[: len(part)].float().cpu().numpy()
        return found


def measure_images(scorer: ImageScorer, split: LabelledImages, world: World | None = None) -> ClassificationMetrics:
    """Return the metrics of a classifier on a split; several processes share the images, and each gets all metrics."""
    world = world or World()
    own = np.array_split(np.arange(len(split)), world.size)[world.rank]
    parts = world.gathered([scorer.logits(split.images[own])])
    return classification_metrics(np.concatenate(parts), split.labels, split.class_names)


@dataclass(frozen=True)
class LoadedClassifier:
    """An opened model file of a classifier: its experiment, its model and its description."""

    config: ClassificationConfig
    model: TrainableModel
    file: ModelFile


def load_classifier(weights: Path, overrides: Sequence[str] = ()) -> LoadedClassifier:
    """Load a trained classifier from a model file, with overrides on the experiment it carries.

    Raises:
        CheckpointError: the file cannot be read, is of a detector, or does not fit its own configuration.
        ConfigError: an override is wrong.
    """
    weights = resolve_weights(weights)
    file = load_model_file(weights)
    _, config = config_of_file(ClassificationConfig, file, weights, overrides)
    model = build_classifier(config, len(file.class_names))
    load_state(model, file.state, str(weights))
    return LoadedClassifier(config, model, file)


def build_scorer(loaded: LoadedClassifier, batch_size: int | None = None) -> ImageScorer:
    """Return a loaded classifier ready to run."""
    size = batch_size or loaded.config.evaluate.batch_size
    return ImageScorer(loaded.model, choose_device(loaded.config.device), size)


def evaluate_classifier(loaded: LoadedClassifier, split: LabelledImages) -> ClassificationMetrics:
    """Evaluate a loaded classifier on a split.

    Raises:
        DatasetError: the split has a class that the model lacks.
    """
    return measure_images(build_scorer(loaded), split.with_classes(loaded.file.class_names))


@dataclass(frozen=True)
class ClassPrediction:
    """The classes of one image.

    Attributes:
        source: name of the image.
        class_names: the classes, the most probable first; empty if the image could not be read.
        probabilities: probabilities of these classes, float64, descending; they sum to 1.
        error: the reason why the image could not be read, or None.
        warnings: sentences about an image that was read but looks damaged or unusual.
    """

    source: str
    class_names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    warnings: tuple[str, ...] = ()

    def top(self, num: int) -> list[tuple[str, float]]:
        """Return the `num` most probable classes, each with its probability."""
        return list(zip(self.class_names[:num], self.probabilities[:num], strict=True))


def classify(
    loaded: LoadedClassifier, sources: Iterable[ImageSource], batch_size: int = 32
) -> Iterator[ClassPrediction]:
    """Classify images; yield one record each, in their order."""
    scorer, given = build_scorer(loaded, batch_size), loaded.config.input
    sources = iter(sources)
    while group := list(itertools.islice(sources, batch_size)):
        read = list[tuple[ImageSource, LoadedImage | None, str | None]]()
        for source in group:
            try:
                read.append((source, source.load(given.channels), None))
            except MediaError as error:
                read.append((source, None, str(error)))
        images = [image.pixels for _, image, _ in read if image is not None]
        fitted = [given.letterbox(image).apply(image) for image in images]
        scores = scorer.logits(np.stack(fitted)).astype(np.float64) if fitted else np.zeros((0, 0))
        rows = iter(scores)
        for source, image_read, reason in read:
            if image_read is None:
                yield ClassPrediction(source.name, error=reason)
                continue
            row = next(rows)
            exponentials = np.exp(row - row.max())
            probabilities = exponentials / exponentials.sum()
            order = np.argsort(-probabilities, kind="stable").tolist()
            names = tuple(loaded.file.class_names[index] for index in order)
            yield ClassPrediction(
                source.name, names, tuple(probabilities[order].tolist()), warnings=image_read.warnings
            )


def evaluate_classifier_file(request: ModelRequest, observer: Observer = SILENT) -> EvaluationOutcome:
    """Evaluate a classifier on a split and write its metrics.

    Raises:
        CheckpointError: the model file cannot be read.
        DatasetError: the split cannot be used.
        MediaError: the metrics cannot be written.
    """
    loaded = load_classifier(request.weights, request.overrides)
    name = split_to_evaluate(loaded.config, request.split, request.is_other_data, observer.note)
    split = read_images(loaded.config, name, observer.report)
    metrics = evaluate_classifier(loaded, split)
    num_left_out = num_skipped(split.problems)
    document = {**metrics.to_plain(), "num_skipped": num_left_out, "images": split.origin}
    folder = results_folder(request.save_dir, "val", loaded.config.train.project)
    write_text(folder / "metrics.json", json.dumps(document, indent=1))
    observer.note(f"numbers: {folder / 'metrics.json'}")
    return EvaluationOutcome(metrics, document, (), num_left_out + num_accepted(split.problems))
