"""The Python interface: one class over the same functions that the command line calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detector.config import config_from_plain, config_to_plain
from detector.engine.events import Report
from detector.engine.predictor import Prediction, Predictor, only_detections
from detector.errors import CheckpointError
from detector.evaluation.evaluate import Evaluation
from detector.evaluation.operating_point import BEST, BEST_OVERALL, OperatingPoint
from detector.experiment import (
    ExperimentConfig,
    LoadedModel,
    build_predictor,
    evaluate_model,
    load_experiment,
    load_model,
    read_split,
)
from detector.media.sources import as_sources
from detector.postprocess import SelectConfig
from detector.structures import Detections
from detector.training import TrainingResult, train


class Detector:
    """A detector, trained or about to be.

    detector = Detector("runs/detect/train/weights/best.safetensors")
    detections = detector.predict("street.jpg")
    print(detections.names, detections.scores, detections.source_xyxy)
    """

    def __init__(self, model: str | Path) -> None:
        """Takes a model file (`.safetensors`, a run's `last.pt`, `.weights`) or a configuration to train from scratch.

        Args:
            model: path of a model file, path of a YAML configuration or .cfg, or name of a preset such as `mish-n`; a
                .weights file wants its .cfg beside it.

        Raises:
            CheckpointError: the model file cannot be read.
            ConfigError: there is no such configuration.
        """
        self._predictors: dict[int, Predictor] = {}
        self._loaded: LoadedModel | None = None
        if Path(model).suffix in (".safetensors", ".pt", ".weights"):
            self._loaded = load_model(Path(model))
            self.config: ExperimentConfig = self._loaded.config
        else:
            self.config = load_experiment(str(model))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class the model knows."""
        return self._model().file.class_names

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            raise CheckpointError("this detector has no weights yet; train it, or open a model file")
        return self._loaded

    def _predictor(self, batch_size: int) -> Predictor:
        if batch_size not in self._predictors:
            self._predictors[batch_size] = build_predictor(self._model(), batch_size)
        return self._predictors[batch_size]

    def predict(self, source: Any, **settings: Any) -> Detections | list[Detections]:
        """Detects objects.

        Args:
            source: an image path, folder, glob or list file; an array uint8 (H, W, C) in RGB order; a PIL image; a
                tensor uint8 (C, H, W); or a list of these.
            **settings: keys of `SelectConfig`, such as confidence, iou, max_detections, classes, class_agnostic;
                `confidence="best"` takes the thresholds that the model carries.

        Returns:
            One `Detections` for a single image, else a list, in order.

        Raises:
            MediaError: an image cannot be read; `stream` gives a record for it instead.
        """
        sources, is_single = as_sources(source)
        select = self._select(settings)
        found = [only_detections(p) for p in self._predictor(1).stream(sources, select)]
        return found[0] if is_single else found

    def stream(self, source: Any, *, batch_size: int = 1, **settings: Any) -> Iterator[Prediction]:
        """Detects objects one image after the other: one record per input, with its error where it cannot be read."""
        sources, _ = as_sources(source)
        return self._predictor(batch_size).stream(sources, self._select(settings))

    def _select(self, settings: dict[str, Any]) -> SelectConfig:
        asked = settings.get("confidence")
        if asked in (BEST, BEST_OVERALL):
            settings = {key: value for key, value in settings.items() if key != "confidence"}
        plain = {**config_to_plain(self.config.predict), **settings}
        config: SelectConfig = config_from_plain(SelectConfig, plain, "predict")
        if asked in (BEST, BEST_OVERALL):
            return OperatingPoint.of_file(self._model().file, "this model").applied(config, str(asked))
        return config

    def evaluate(self, data: Any = None, split: str = "val", **settings: Any) -> Evaluation:
        """Measures the model on a split.

        Args:
            data: a data-set description (path of a YAML file, or a mapping), or None for the one it was trained with.
            split: train, val or test.
            **settings: sections or keys of the experiment, such as `evaluate={"iou": 0.6}`.

        Raises:
            DatasetError: the split cannot be used.
        """
        loaded = self._model()
        config = self._changed(data, settings)
        return evaluate_model(LoadedModel(config, loaded.model, loaded.file), read_split(config, split))

    def train(self, data: Any = None, *, report: Report = lambda event: None, **settings: Any) -> TrainingResult:
        """Trains, from the weights it has or from scratch, and takes on the best weights of the run.

        Args:
            data: a data-set description (path of a YAML file, or a mapping), or None for the configured one.
            report: told of every event.
            **settings: sections of the experiment, such as `train={"epochs": 50}`, `input={"size": 320}`.

        Raises:
            DatasetError: the data set cannot be used.
            DivergenceError: a loss or gradient is not finite.
        """
        config = self._changed(data, settings)
        result = train(config, start=self._loaded.file if self._loaded else None, report=report)
        self._loaded = load_model(result.folder.best)
        self.config, self._predictors = self._loaded.config, {}
        return result

    def _changed(self, data: Any, settings: dict[str, Any]) -> ExperimentConfig:
        plain = _merged(config_to_plain(self.config), settings)
        if data is not None:
            plain["data"] = str(data) if isinstance(data, Path) else data
        return config_from_plain(ExperimentConfig, plain, "Detector")


def _merged(base: Any, over: Any) -> Any:
    """Plain settings on top of others, as overrides on a command line: one that names another part starts anew."""
    if not (isinstance(base, dict) and isinstance(over, dict)) or over.get("name", base.get("name")) != base.get(
        "name"
    ):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
