"""The task `classify`: one class for each image."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from detector.config import registry
from detector.config.registry import register
from detector.data.classification_batches import training_batches
from detector.errors import ConfigError, DatasetError
from detector.evaluation.accuracy import ClassificationMetrics
from detector.inference.prediction_run import OnPicture
from detector.media.images import write_image
from detector.models.contracts import TrainableModel
from detector.structures.types import ClassBatch
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.classification_model import (
    ImageScorer,
    build_classifier,
    evaluate_classifier_file,
    measure_images,
    read_images,
)
from detector.tasks.classification_prediction import ClassificationRun
from detector.tasks.requests import EvaluationOutcome, ModelRequest, Observer, PredictionRequest, TaskRun
from detector.tasks.task import Headline, Task
from detector.training.distributed import World
from detector.training.events import Report
from detector.training.run_folder import RunFolder

_NUM_DRAWN, _COLUMNS = 64, 8  # images of the first batch, drawn into the run folder


@register("classify")
class ClassificationTask(Task[ClassificationConfig, TrainableModel]):
    """A classifier on images of one class each."""

    Config = ClassificationConfig
    evaluate_options = frozenset({"out", "data", "split"})
    predict_options = frozenset({"out"})
    product = "classifier"
    headline = Headline("top-1 accuracy", "best_top1")

    def __init__(self, config: ClassificationConfig, report: Report) -> None:
        """Read the splits; report what was left out of them.

        Raises:
            DatasetError: a split cannot be used, it has less than two classes, or one class is in the validation split
                only.
            ConfigError: a teacher or a fold is configured.
        """
        for key in ("teacher", "fold"):
            if getattr(config.train, key) is not None:
                raise ConfigError(f"train.{key}: expected an experiment for a detector, got a classifier; leave it out")
        self._config = config
        self._images = read_images(config, "train", report)
        self.has_val = config.has_val
        self.class_names = self._images.class_names
        if len(self.class_names) < 2:
            raise DatasetError(
                f"{self._images.origin}: expected at least two classes, got "
                f"{', '.join(self.class_names)} alone; check data"
            )
        self._val = read_images(config, "val", report).with_classes(self.class_names) if self.has_val else None
        if self._val is not None and config.train.val_share != (0.0, 1.0):
            self._val = self._val.taken(config.train.val_images(len(self._val)))
        self.category_ids = tuple(range(len(self.class_names)))
        self.num_images, self.batch_size = len(self._images), config.loader.batch_size
        self.num_val_images = len(self._val) if self._val is not None else 0
        self.num_objects = self.num_val_objects = None
        self.data_digest = " ".join(part.digest() for part in (self._images, self._val) if part is not None)
        self.problems = (*self._images.problems, *(self._val.problems if self._val is not None else ()))

    @classmethod
    def evaluate_file(cls, request: ModelRequest, observer: Observer) -> EvaluationOutcome:
        """Evaluate a classifier on a split and write its results."""
        return evaluate_classifier_file(request, observer)

    @classmethod
    def predict_file(cls, request: PredictionRequest, observer: Observer, on_picture: OnPicture | None) -> TaskRun:
        """Open a classifier and sources and return the run over them."""
        return ClassificationRun(request, observer)

    def model(self) -> TrainableModel:
        """Return the network with random weights."""
        return build_classifier(self._config, len(self.class_names))

    def loss(self, model: TrainableModel) -> Any:
        """Return the function from logits and classes to `LossParts`."""
        return registry.build(self._config.loss, model)

    def measure(self, model: TrainableModel, device: torch.device, world: World) -> ClassificationMetrics:
        """Return the accuracy on the validation split."""
        assert self._val is not None  # called only with a validation split
        return measure_images(ImageScorer(model, device, self._config.evaluate.batch_size), self._val, world)

    def seconds_per_val_image(self, model: TrainableModel, device: torch.device) -> float:
        """Return the time per image of a warm batch of validation images, scoring excluded."""
        assert self._val is not None  # called only with a validation split
        batch_size, took_s = self._config.evaluate.batch_size, 0.0
        scorer, images = ImageScorer(model, device, batch_size), self._val.images[:batch_size]
        for _ in range(2):
            started_s = time.monotonic()
            scorer.logits(images)
            took_s = time.monotonic() - started_s
        return took_s / len(images)

    def batches(
        self, model: TrainableModel, first_step: int, num_steps: int, folder: RunFolder, world: World, report: Report
    ) -> Iterator[ClassBatch]:
        """Yield augmented batches; draw the first one at the start of a run."""
        config = self._config

        def stream(first: int) -> Iterator[ClassBatch]:
            return training_batches(
                self._images,
                config.loader,
                config.augment,
                config.train.seed,
                start=first * config.train.accumulate,
                stop=num_steps * config.train.accumulate,
                rank=world.rank,
                world_size=world.size,
            )

        if first_step == 0 and world.is_main and config.input.channels in (1, 3):
            for batch in itertools.islice(stream(0), 1):
                write_image(folder.path / "train_batch0.jpg", _sheet(batch))
        return stream(first_step)

    def drawn_reports(self, folder: RunFolder, report: Report) -> Report:
        """Return the reporter unchanged: nothing is drawn during the run."""
        return report

    def draw_end(self, model: TrainableModel, device: torch.device) -> None:
        """Draw nothing."""


def _sheet(batch: ClassBatch) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the first images of a batch as one picture, uint8 (H, W, 3)."""
    images = batch.images[:_NUM_DRAWN].permute(0, 2, 3, 1).numpy()
    num_rows = -(-len(images) // _COLUMNS)
    blank = np.zeros((num_rows * _COLUMNS - len(images), *images.shape[1:]), np.uint8)
    tiles = np.concatenate([images, blank]).reshape(num_rows, _COLUMNS, *images.shape[1:])
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(num_rows * images.shape[1], _COLUMNS * images.shape[2], -1)
    return np.ascontiguousarray(np.broadcast_to(sheet, (*sheet.shape[:2], 3)))
