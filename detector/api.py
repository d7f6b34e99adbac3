"""Python interface: two classes over the functions that the command line calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from detector.config.registry import nearest
from detector.config.schema import config_from_plain, config_to_plain
from detector.errors import CheckpointError, ConfigError, MediaError
from detector.evaluation.accuracy import ClassificationMetrics
from detector.evaluation.evaluator import Evaluation
from detector.evaluation.operating_point import BEST, BEST_OVERALL, OperatingPoint
from detector.export.export_config import ExportSettings, export_suffixes, target_of
from detector.export.export_runtime import ExportRuntime
from detector.inference.prediction_run import OnPicture, PredictionOptions, PredictionRun, PredictionSummary
from detector.inference.predictor import Prediction, Predictor, only_detections
from detector.inference.views import ViewsConfig
from detector.media.sources import VideoSource, as_sources, require_images, require_videos
from detector.structures.selection import SelectConfig, with_one_limit
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
from detector.tasks.detection_prediction import find_inputs, open_run, selection_of
from detector.tasks.task import changed_config, load_experiment_of
from detector.training.events import Report
from detector.training.run_folder import results_folder
from detector.workflows.export import ExportReport, export_model
from detector.workflows.train import TrainingResult, train

# A data-set description: a path or registered name, or a mapping; None for the configured one.
DataGiven: TypeAlias = "str | Path | Mapping[str, object] | None"

_CARRIED = (BEST, BEST_OVERALL)  # confidences that stand for thresholds in the model file
_OF_FILES = ("formats", "crops", "pictures", "codec")  # options that have an effect on files only


class Detector:
    """Object detector, trained or to be trained.

    detector = Detector("runs/detect/train/weights/best.safetensors")
    detections = detector.predict("street.jpg")
    print(detections.names, detections.scores, detections.source_xyxy)
    """

    def __init__(self, model: str | Path) -> None:
        """Open a model file, an export or a configuration to train from scratch.

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
        """Name of each class of the model."""
        return self._model().file.class_names

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            raise CheckpointError("this detector has no weights yet; train it, or open a model file")
        return self._loaded

    def _viewed(self, views: Mapping[str, object] | None) -> LoadedModel:
        """Return the model with other views of each image, if any are given."""
        loaded = self._model()
        if views is None and loaded.config.views == self.config.views:
            return loaded
        plain = {**config_to_plain(self.config.views), **(views or {})}
        asked = config_from_plain(ViewsConfig, plain, "views")
        return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, views=asked))

    def _predictor(self, loaded: LoadedModel, batch_size: int) -> Predictor:
        key = batch_size, loaded.config.views
        if key not in self._predictors:
            self._predictors[key] = build_predictor(loaded, batch_size)
        return self._predictors[key]

    def predict(
        self, source: object, *, views: Mapping[str, object] | None = None, **settings: object
    ) -> Detections | list[Detections]:
        """Detect objects and return them; `run` writes them to files.

        Args:
            source: an image or video path, folder, glob or list file; an array uint8 (H, W, C) in RGB order; a PIL
                image; a tensor uint8 (C, H, W); or a list of these.
            views: keys of `ViewsConfig`, such as `{"tile": 640, "flip": True}`: several views of each image.
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
        select = self._select(settings, self.config.predict)
        with PredictionRun(self._predictor(self._viewed(views), 1), sources, select) as records:
            found = [only_detections(record) for record in records]
        return found[0] if is_single else found

    def stream(
        self,
        source: object,
        *,
        batch_size: int = 1,
        stride: int = 1,
        allow_url: bool = False,
        track: bool = False,
        views: Mapping[str, object] | None = None,
        **settings: object,
    ) -> Iterator[Prediction]:
        """Detect objects one image or frame after the other.

        Args:
            source: what `predict` takes, and `camera:0`, an address such as `rtsp://camera.lan/1`, or `-` for images
                on stdin; `Prediction.source.frame` gives the frame of a video and its time.
            batch_size: images that go through the network at once.
            stride: look at every `stride`-th frame of a video.
            allow_url: whether an address may be opened.
            track: whether objects are followed from frame to frame (videos only): `Prediction.track_ids` has a number
                for each, and detections without a track are left out.
            views: as `predict` takes them.
            **settings: as `predict` takes them, and keys of `PredictionOptions`, such as lines and zones, whose counts
                are in `Prediction.counts`; with `save_dir`, files are written as by `run`.

        Returns:
            One record per image or frame, with its error where it cannot be read.

        Raises:
            ConfigError: an image is to be tracked, an address is not allowed, or a key is unknown or has no effect.
        """
        sources, _ = as_sources(source, allow_url)
        if settings.get("save_dir") is None and (idle := [name for name in _OF_FILES if name in settings]):
            raise ConfigError(f"Detector.stream: {', '.join(idle)}: no files are written without save_dir; give it")
        options, settings = _split({**settings, "stride": stride, "track": track}, "Detector.stream")
        select, predictor = (
            self._select(settings, self.config.predict),
            self._predictor(self._viewed(views), batch_size),
        )
        if options.has_tracks:
            require_videos(sources)
        if options.save_dir is not None:
            options = dataclasses.replace(options, save_dir=results_folder(options.save_dir, "predict"))
        return PredictionRun(predictor, sources, select, options).records()

    def run(
        self,
        source: object,
        *,
        allow_url: bool = False,
        annotations: str | Path | None = None,
        views: Mapping[str, object] | None = None,
        on_picture: OnPicture | None = None,
        report: Callable[[str], None] = lambda text: None,
        **options: object,
    ) -> PredictionSummary:
        """Detect objects and write the same files as `detector predict`, with options of the same names.

        detector.run("street.mp4", save_dir="out", formats=("csv", "jsonl"), track=True, lines=[(0, 400, 1280, 400)])

        Args:
            source: what `stream` takes.
            allow_url: whether an address may be opened.
            annotations: COCO file with the images and their ids; `source` is their folder.
            views: as `predict` takes them.
            on_picture: called with each annotated picture, uint8 (H, W, 3), RGB; false ends the run.
            report: called with each warning and each skipped image, a sentence.
            **options: keys of `PredictionOptions`: save_dir (by default a new folder runs/detect/predict), formats,
                crops, pictures, stride, every_frame, max_reconnect, codec, track, lines, zones; and settings as
                `predict` takes them.

        Returns:
            The numbers of images and frames read and skipped, warnings, counts and the paths of the files.

        Raises:
            MediaError: nothing could be read, or a file cannot be written.
            ConfigError: a key is unknown, or an option does not suit the sources.
        """
        asked, settings = _split(options, "Detector.run")
        loaded = self._viewed(views)
        known = None if annotations is None else Path(annotations)
        inputs = find_inputs(source, allow_url=allow_url, annotations=known, formats=asked.formats)
        build = self._predictor if annotations is None else build_predictor  # an annotation file changes category ids
        select = self._select(settings, selection_of(loaded, asked.formats))
        with open_run(loaded, inputs, select, asked, build=build, on_picture=on_picture, report=report) as records:
            for _ in records:
                pass
        records.summary.require_read()
        return records.summary

    def _select(self, settings: Mapping[str, object], config: SelectConfig) -> SelectConfig:
        """Return a selection with other settings; `confidence` may be `best` or `best-overall`."""
        if not settings:
            return config
        if "max_detections" in settings:
            config = with_one_limit(config)
        asked = settings.get("confidence")
        given = {key: value for key, value in settings.items() if key != "confidence" or value not in _CARRIED}
        if "confidence" in given:  # one threshold takes the place of the thresholds of the classes
            given = {"class_confidence": None, **given}
        changed = config_from_plain(type(config), {**config_to_plain(config), **given}, "predict")
        if asked in _CARRIED:
            return OperatingPoint.of_file(self._model().file, "this model").applied(changed, str(asked))
        return changed

    def evaluate(self, data: DataGiven = None, split: str = "val", **settings: object) -> Evaluation:
        """Evaluate the model on a split.

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

    def train(
        self, data: DataGiven = None, *, report: Report = lambda event: None, **settings: object
    ) -> TrainingResult:
        """Train from the present weights or from scratch, and take over the best weights of the run.

        Args:
            data: a data-set description (path of a YAML file, or a mapping), or None for the configured one.
            report: called with every event.
            **settings: sections of the experiment, such as `train={"epochs": 50}`, `input={"size": 320}`.

        Raises:
            DatasetError: the data set cannot be used.
            DivergenceError: a loss or gradient is not finite.
            CheckpointError: the detector is an export.
        """
        if self._loaded is not None and isinstance(self._loaded.model, ExportRuntime):
            raise CheckpointError(
                "an export cannot be trained; train the model file it was made from, and export again"
            )
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
        """Write the model for another runtime, and compare the export with the model first.

        Args:
            path: the file; its suffix `.onnx`, `.xml` (OpenVINO), `.torchscript` or `.pt2` names the format.
            check_images: images to compare the two on, instead of the model's own split `val`.
            calibration: images to choose the ranges of 8-bit numbers on, instead of its split `train`.
            **settings: keys of `ExportSettings`, such as nms, dynamic, precision; other keys are sections of the
                experiment, such as `input={"size": 320}`.

        Raises:
            CheckpointError: the export differs from the model by more than the tolerance; it is not kept.
            ConfigError: a key is unknown or not supported by the format.
        """
        loaded, target = self._model(), target_of(Path(path))
        if target is None:
            raise ConfigError(f"{path}: an export ends in {', '.join(export_suffixes())}; rename it")
        own = {f.name for f in dataclasses.fields(ExportSettings)} - {"target"}
        others = {key: value for key, value in settings.items() if key not in own}
        config = changed_config(self.config, None, others, "Detector")
        asked = {key: value for key, value in settings.items() if key in own}
        images = (None if given is None else Path(given) for given in (check_images, calibration))
        changed = LoadedModel(config, loaded.model, loaded.file)
        return export_model(changed, Path(path), ExportSettings(target, **asked), *images)


def _split(given: Mapping[str, object], who: str) -> tuple[PredictionOptions, dict[str, object]]:
    """Split keywords into the options of a prediction run and the settings of a selection.

    Raises:
        ConfigError: a key is neither, or an option is wrong.
    """
    own = {f.name for f in dataclasses.fields(PredictionOptions)}
    known = own | {f.name for f in dataclasses.fields(SelectConfig)}
    for key in given:
        if key not in known:
            raise ConfigError(f"{who}: unknown key {key!r}{nearest(key, known)}")
    options = {key: value for key, value in given.items() if key in own}
    settings = {key: value for key, value in given.items() if key not in own}
    return config_from_plain(PredictionOptions, options, who), settings


class Classifier:
    """A classifier of images, trained or about to be.

    classifier = Classifier("runs/classify/train/weights/best.safetensors")
    prediction = classifier.predict("ring.png")
    print(prediction.top(3))
    """

    def __init__(self, model: str | Path) -> None:
        """Load a model file (`.safetensors`, a run's `last.pt`), or a configuration to train from scratch.

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

    def predict(self, source: object) -> ClassPrediction | list[ClassPrediction]:
        """Classify images.

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

    def evaluate(self, data: DataGiven = None, split: str = "val", **settings: object) -> ClassificationMetrics:
        """Evaluate the model on a split.

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

    def train(
        self, data: DataGiven = None, *, report: Report = lambda event: None, **settings: object
    ) -> TrainingResult:
        """Train, from the present weights or from scratch, and take over the best weights of the run.

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
