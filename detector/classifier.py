"""The Python interface of classification: one class over the functions that the command line calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detector.classification import (
    ClassificationConfig,
    ClassPrediction,
    LoadedClassifier,
    classify,
    evaluate_classifier,
    load_classifier,
    read_images,
)
from detector.configured import changed_config
from detector.engine.events import Report
from detector.errors import CheckpointError, ConfigError, MediaError
from detector.evaluation.classification import ClassificationMetrics
from detector.experiment import load_experiment
from detector.media.sources import as_sources, require_images
from detector.training import TrainingResult, train


class Classifier:
    """A classifier of images, trained or about to be.

    classifier = Classifier("runs/classify/train/weights/best.safetensors")
    prediction = classifier.predict("ring.png")
    print(prediction.top(3))
    """

    def __init__(self, model: str | Path) -> None:
        """Takes a model file (`.safetensors`, a run's `last.pt`) or a configuration to train from scratch.

        Args:
            model: path of a model file, path of a YAML configuration, or name of a preset such as `classify`.

        Raises:
            CheckpointError: the model file cannot be read or is of a detector.
            ConfigError: there is no such configuration, or it is one of detection.
        """
        self._loaded: LoadedClassifier | None = None
        if Path(model).suffix in (".safetensors", ".pt"):
            self._loaded = load_classifier(Path(model))
            self.config: ClassificationConfig = self._loaded.config
            return
        config = load_experiment(str(model))
        if not isinstance(config, ClassificationConfig):
            raise ConfigError(f"{model}: an experiment of classification is wanted, found detection; use Detector")
        self.config = config

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class the model knows."""
        return self._model().file.class_names

    def _model(self) -> LoadedClassifier:
        if self._loaded is None:
            raise CheckpointError("this classifier has no weights yet; train it, or open a model file")
        return self._loaded

    def predict(self, source: Any) -> ClassPrediction | list[ClassPrediction]:
        """Says of which class images are.

        Args:
            source: an image path, folder, glob or list file; an array uint8 (H, W, C) in RGB order; a PIL image; a
                tensor uint8 (C, H, W); or a list of these.

        Returns:
            One record for a single image, else a list, in order.

        Raises:
            MediaError: an image cannot be read, or the source is a video.
        """
        sources, is_single = as_sources(source)
        images = require_images(sources, "a classifier")
        found = list(classify(self._model(), images, batch_size=min(32, len(images)) or 1))
        for prediction in found:
            if prediction.error is not None:
                raise MediaError(prediction.error)
        return found[0] if is_single else found

    def evaluate(self, data: Any = None, split: str = "val", **settings: Any) -> ClassificationMetrics:
        """Measures the model on a split.

        Args:
            data: a description of the images (a mapping, or a registered name), or None for the one it learned from.
            split: train, val or test.
            **settings: sections of the experiment, such as `evaluate={"batch_size": 64}`.

        Raises:
            DatasetError: the split cannot be used.
        """
        loaded = self._model()
        config = changed_config(self.config, data, settings, "Classifier")
        return evaluate_classifier(LoadedClassifier(config, loaded.model, loaded.file), read_images(config, split))

    def train(self, data: Any = None, *, report: Report = lambda event: None, **settings: Any) -> TrainingResult:
        """Trains, from the weights it has or from scratch, and takes on the best weights of the run.

        Args:
            data: a description of the images, or None for the configured one.
            report: told of every event.
            **settings: sections of the experiment, such as `train={"epochs": 5}`.

        Raises:
            DatasetError: the images cannot be used.
            DivergenceError: a loss or gradient is not finite.
        """
        config = changed_config(self.config, data, settings, "Classifier")
        result = train(config, start=self._loaded.file if self._loaded else None, report=report)
        self._loaded = load_classifier(result.folder.best)
        self.config = self._loaded.config
        return result
