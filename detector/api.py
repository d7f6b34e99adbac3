"""The Python interface: two classes over the same functions that the command line calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.config.schema import config_from_plain, config_to_plain
from detector.errors import CheckpointError, ConfigError, MediaError
from detector.evaluation.accuracy import ClassificationMetrics
from detector.evaluation.evaluator import Evaluation
from detector.evaluation.operating_point import BEST, BEST_OVERALL, OperatingPoint
from detector.export.export_config import SUFFIXES, ExportSettings, target_of
from detector.export.export_runtime import ExportRuntime
from detector.inference.pipeline import Pipeline, PipelineConfig
from detector.inference.predictor import Prediction, Predictor, only_detections
from detector.inference.views import ViewsConfig
from detector.media.sources import ImageSource, Source, VideoSource, as_sources, require_images
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.classification_model import (
    ClassPrediction,
    LoadedClassifier,
    classify,
    evaluate_classifier,
    load_classifier,
    read_images,
)
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import (
    LoadedModel,
    build_predictor,
    evaluate_model,
    load_detection,
    load_model,
    read_split,
)
from detector.tasks.task import changed_config, load_experiment_of
from detector.training.events import Report
from detector.workflows.export import ExportReport, export_model
from detector.workflows.train import TrainingResult, train


class Detector:
    """A detector, trained or about to be.

    detector = Detector("runs/detect/train/weights/best.safetensors")
    detections = detector.predict("street.jpg")
    print(detections.names, detections.scores, detections.source_xyxy)
    """

    def __init__(self, model: str | Path) -> None:
        """Takes a model file, an export or a configuration to train from scratch.

        Args:
            model: path of a model file (`.safetensors`, a run's `last.pt`, `.weights` with its .cfg beside it) or of an
                export (`.onnx`, `.xml`, `.torchscript`, `.pt2`), path of a YAML configuration or .cfg, or name of a
                preset such as `mish-n`.

        Raises:
            CheckpointError: the model file cannot be read.
            ConfigError: there is no such configuration.
        """
        self._predictors: dict[tuple[int, ViewsConfig], Predictor] = {}
        self._loaded: LoadedModel | None = None
        if Path(model).suffix in (".safetensors", ".pt", ".weights") or target_of(Path(model)) is not None:
            self._loaded = load_model(Path(model))
            self.config: DetectionConfig = self._loaded.config
        else:
            self.config = load_detection(str(model))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class the model knows."""
        return self._model().file.class_names

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            raise CheckpointError("this detector has no weights yet; train it, or open a model file")
        return self._loaded

    def _predictor(self, batch_size: int, views: Mapping[str, Any] | None) -> Predictor:
        loaded, plain = self._model(), {**config_to_plain(self.config.views), **(views or {})}
        asked = config_from_plain(ViewsConfig, plain, "views")
        if (batch_size, asked) not in self._predictors:
            loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, views=asked))
            self._predictors[batch_size, asked] = build_predictor(loaded, batch_size)
        return self._predictors[batch_size, asked]

    def predict(
        self, source: Any, *, views: Mapping[str, Any] | None = None, **settings: Any
    ) -> Detections | list[Detections]:
        """Detects objects.

        Args:
            source: an image or video path, folder, glob or list file; an array uint8 (H, W, C) in RGB order; a PIL
                image; a tensor uint8 (C, H, W); or a list of these.
            views: keys of `ViewsConfig`, such as `{"tile": 640, "flip": True}`: several looks at each image.
            **settings: keys of `SelectConfig`, such as confidence, iou, max_detections, classes, class_agnostic;
                `confidence="best"` takes the thresholds that the model carries.

        Returns:
            One `Detections` for a single image, else a list, in order: one for each image and each frame of a video.

        Raises:
            MediaError: an image cannot be read; `stream` gives a record for it instead.
            ConfigError: a camera or network stream, which `stream` takes.
        """
        sources, is_single = as_sources(source)
        live = [s.name for s in sources if isinstance(s, VideoSource) and s.is_live]
        if live:
            raise ConfigError(f"{live[0]} has no end that predict could wait for; use stream")
        found = [
            only_detections(p) for p in self._stream(sources, self._predictor(1, views), 1, 1, self._select(settings))
        ]
        return found[0] if is_single else found

    def stream(
        self,
        source: Any,
        *,
        batch_size: int = 1,
        stride: int = 1,
        allow_url: bool = False,
        track: bool = False,
        views: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Iterator[Prediction]:
        """Detects objects one image or frame after the other.

        Args:
            source: what `predict` takes, and `camera:0`, an address such as `rtsp://camera.lan/1`, or `-` for images
                on stdin; `Prediction.source.frame` says which frame of a video it is, and its time.
            batch_size: images that go through the network at once.
            stride: every how many frames of a video one is looked at.
            allow_url: whether an address may be opened.
            track: whether objects are followed from frame to frame (videos only): `Prediction.track_ids` has a number
                for each, and what belongs to no track is left out.
            views: as `predict` takes them.
            **settings: as `predict` takes them.

        Returns:
            One record per image or frame, with its error where it cannot be read.

        Raises:
            ConfigError: an image is to be tracked, or an address is not allowed.
        """
        sources, _ = as_sources(source, allow_url)
        select, predictor = self._select(settings), self._predictor(batch_size, views)
        if not track:
            return self._stream(sources, predictor, batch_size, stride, select)
        from detector.inference.tracking import TrackConfig, VideoTracks, require_videos  # loads SciPy's optimisers

        require_videos(sources)
        config = TrackConfig.of(select)
        if predictor.runtime.selection is None:
            select = config.widened(select)
        return map(VideoTracks(config).follow, self._stream(sources, predictor, batch_size, stride, select))

    def _stream(
        self, sources: Sequence[Source], predictor: Predictor, batch_size: int, stride: int, select: SelectConfig
    ) -> Iterator[Prediction]:
        images = [s for s in sources if isinstance(s, ImageSource)]
        if len(images) == len(sources):
            yield from predictor.stream(images, select)
            return
        with Pipeline(predictor, select, sources, config=PipelineConfig(stride), batch_size=batch_size) as results:
            for result in results:
                yield result.prediction

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
        config = changed_config(self.config, data, settings, "Detector")
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
            CheckpointError: the detector is an export.
        """
        if self._loaded is not None and isinstance(self._loaded.model, ExportRuntime):
            raise CheckpointError("an export is not trained; train the model file it came from, and export again")
        config = changed_config(self.config, data, settings, "Detector")
        result = train(config, start=self._loaded.file if self._loaded else None, report=report)
        self._loaded = load_model(result.folder.best)
        self.config, self._predictors = self._loaded.config, {}
        return result

    def export(
        self,
        path: str | Path,
        *,
        check_images: str | Path | None = None,
        calibration: str | Path | None = None,
        **settings: Any,
    ) -> ExportReport:
        """Writes the model for another runtime, checked against this one.

        Args:
            path: the file; its suffix `.onnx`, `.xml` (OpenVINO), `.torchscript` or `.pt2` says which.
            check_images: images to compare the two on, instead of the model's own split `val`.
            calibration: images to find the ranges of 8 bits on, instead of its split `train`.
            **settings: keys of `ExportSettings`, such as nms, dynamic, precision; else sections of the experiment, such
                as `input={"size": 320}`.

        Raises:
            CheckpointError: the export differs from the model by more than it may; nothing is left of it.
            ConfigError: a key is unknown or cannot be honoured.
        """
        loaded, target = self._model(), target_of(Path(path))
        if target is None:
            raise ConfigError(f"{path}: an export ends in {', '.join(SUFFIXES.values())}; rename it")
        own = {f.name for f in dataclasses.fields(ExportSettings)} - {"target"}
        others = {key: value for key, value in settings.items() if key not in own}
        config = changed_config(self.config, None, others, "Detector")
        asked = {key: value for key, value in settings.items() if key in own}
        images = (None if given is None else Path(given) for given in (check_images, calibration))
        changed = LoadedModel(config, loaded.model, loaded.file)
        return export_model(changed, Path(path), ExportSettings(target, **asked), *images)


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
        self.config = load_experiment_of(ClassificationConfig, str(model))

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
