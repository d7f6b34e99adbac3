"""Python interface: two classes over the functions that the command line calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from detector.config.registry import ImportedFiles
from detector.config.schema import config_from_plain
from detector.errors import CheckpointError, ConfigError, MediaError
from detector.evaluation.accuracy import ClassificationMetrics
from detector.evaluation.evaluator import Evaluation
from detector.export.export_config import ExportSettings, target_of
from detector.export.export_runtime import ExportRuntime
from detector.inference.prediction_run import OnPicture, PredictionRun
from detector.inference.prediction_summary import PredictionSummary
from detector.inference.predictor import Prediction, Predictor, only_detections
from detector.inference.shown_results import ImageDetections
from detector.inference.views import ViewsConfig
from detector.media.frame_sequences import stream_sources
from detector.media.memory_images import ChannelOrder
from detector.media.sources import VideoSource, as_sources, require_images
from detector.models.published_weights import DEFAULT_MODEL, MODEL_SUFFIXES, is_published, published_file
from detector.structures.selection import SelectConfig
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
    with_views,
)
from detector.tasks.detection_prediction import find_inputs, open_run, select_boxes, selection_of
from detector.tasks.task import changed_config, load_experiment_of, split_to_evaluate, with_device
from detector.training.events import Report
from detector.training.run_folder import results_folder
from detector.workflows import keywords
from detector.workflows.export import ExportReport, export_model, target_to_write
from detector.workflows.train import TrainingResult, train
from detector.workflows.training_progress import shown_progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A data-set description: a path or registered name, or a mapping; None for the configured one.
DataGiven: TypeAlias = "str | Path | Mapping[str, object] | None"

_OF_FILES = ("formats", "crops", "pictures", "codec")  # options that have an effect on files only


class Detector:
    """Object detector, trained or to be trained; without a model, the shipped one for COCO's 80 classes.

    detector = Detector()
    detections = detector.predict("street.jpg")
    print(detector, detections.names, detections.scores, detections.source_xyxy)

    Attributes:
        name: the model as it was given, `yolox-nano` by default; after training, the path of the best weights.
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, *, device: str | torch.device | None = None) -> None:
        """Open a model file, an export, published weights or a configuration to train from scratch.

        Args:
            model: name of published weights such as `yolox-s`, which are used if they are on this machine, path of a
                model file (`.safetensors`, `.pth` of YOLOX, `.weights` with its .cfg beside it), of an export (`.onnx`,
                `.xml`, `.torchscript`, `.pt2`), of a YAML configuration or .cfg, or name of a preset such as `mish-n`.
            device: cpu, cuda, cuda:N, mps or auto, for training, evaluation and prediction; None for the model's own.

        Raises:
            CheckpointError: the model file cannot be read.
            ConfigError: there is no such configuration or device.
        """
        self._predictors: dict[tuple[int, ViewsConfig], Predictor] = {}
        self._loaded: LoadedModel | None = None
        self._device = None if device is None else str(device)
        self.name = str(model)
        found = published_file(self.name) if is_published(model) else None
        if found or Path(model).suffix in MODEL_SUFFIXES or target_of(Path(model)) is not None:
            self._take(found or Path(model))
        else:
            self.config: DetectionConfig = with_device(load_detection(str(model)), self._device)

    def _take(self, weights: Path) -> None:
        """Load a model file and forget what was made of the model before."""
        loaded = load_model(weights)
        self._loaded = dataclasses.replace(loaded, config=with_device(loaded.config, self._device))
        self._weights, self.config, self._predictors = weights.absolute(), self._loaded.config, {}

    def __getstate__(self) -> dict[str, object]:
        """Return the detector for `pickle` and `copy`, without the networks that were made ready to run.

        An export is opened again from its file.
        """
        loaded = self._loaded
        is_export = loaded is not None and isinstance(loaded.model, ExportRuntime)
        # The files of own parts come first: their classes must exist before objects of them are restored.
        own = {"_imported": ImportedFiles(), **self.__dict__, "_predictors": {}}
        return {**own, "_loaded": None if is_export else loaded, "_reopened": is_export}

    def __setstate__(self, state: dict[str, object]) -> None:
        is_export = state.pop("_reopened")
        del state["_imported"]
        self.__dict__.update(state)
        if is_export:
            self._loaded = dataclasses.replace(load_model(self._weights), config=self.config)

    def __repr__(self) -> str:
        what = "no weights" if self._loaded is None else f"{str(self._weights)!r}, {len(self.class_names)} classes"
        return f"Detector({what})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of the model."""
        return self._model().file.class_names

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            fetch = f", fetch published ones with `detector download {self.name}`" if is_published(self.name) else ""
            raise CheckpointError(f"this detector has no weights yet; train it, or open a model file{fetch}")
        return self._loaded

    def _viewed(self, views: keywords.Section | None) -> LoadedModel:
        return with_views(self._model(), self.config.views, views)

    def _predictor(self, loaded: LoadedModel, batch_size: int) -> Predictor:
        key = batch_size, loaded.config.views
        if key not in self._predictors:
            self._predictors[key] = build_predictor(loaded, batch_size)
        return self._predictors[key]

    @keywords.with_keywords(keywords.SelectionKeywords)
    def predict(
        self,
        source: object,
        *,
        views: keywords.Section | None = None,
        channel_order: ChannelOrder = "rgb",
        allow_url: bool = False,
        **settings: Unpack[keywords.SelectionKeywords],
    ) -> ImageDetections | list[ImageDetections]:
        """Detect objects and return them; `run` writes them to files.

        Arrays and tensors are RGB by default. `cv2.imread` and `cv2.VideoCapture` give BGR: pass
        `channel_order="bgr"` with their arrays. With the wrong order nothing fails, but detections get worse.

        Args:
            source: an image or video path, folder, glob or list file; an array uint8 (H, W, C) or (H, W), whose 16-bit
                or boolean values are converted as those of files; a PIL image, turned upright by its EXIF orientation;
                a tensor uint8 (C, H, W); the bytes of an image file; the address of a picture; or a list of these.
            views: keys of `ViewsConfig`, such as `{"tile": 640, "flip": True}`: several views of each image.
            channel_order: the order of the colours of arrays and tensors, `rgb` or `bgr`; all others know their own.
            allow_url: whether an address may be opened.
            **settings: keys of `SelectConfig`, such as confidence, iou, max_detections, classes, class_agnostic;
                `confidence="best"` takes the thresholds that the model carries, and `classes=["person"]` keeps classes
                by name or index.

        Returns:
            One `ImageDetections` for a single image, else a list, in order: one for each image and each frame of a
            video.

        Raises:
            MediaError: an image cannot be read; `stream` gives a record for it instead.
            ConfigError: a camera or network stream, which `stream` takes, or a setting is wrong.
        """
        select = self._select(settings)
        sources, is_single = as_sources(source, allow_url, channel_order)
        live = [s.name for s in sources if isinstance(s, VideoSource) and s.is_live]
        if live:
            raise ConfigError(f"{live[0]} has no end that predict could wait for; use stream")
        predictor = self._predictor(self._viewed(views), 1)
        with PredictionRun(predictor, sources, select) as records:
            channels = predictor.input.channels
            found = [ImageDetections.of(only_detections(record), record.source, channels) for record in records]
        return found[0] if is_single else found

    @keywords.with_keywords(keywords.RunKeywords)
    def stream(
        self,
        source: object,
        *,
        batch_size: int = 1,
        views: keywords.Section | None = None,
        channel_order: ChannelOrder = "rgb",
        allow_url: bool = False,
        **settings: Unpack[keywords.RunKeywords],
    ) -> Iterator[Prediction]:
        """Detect objects one image or frame after the other.

        Args:
            source: what `predict` takes, and `camera:0`, an address such as `rtsp://camera.lan/1`, or `-` for images
                on stdin; `Prediction.source.frame` gives the frame of a video and its time. A generator may have no
                end: an item is taken when the record of the one before it has been (with `batch_size` above 1, when a
                batch is full), and records are written like those of frames.
            batch_size: images that go through the network at once.
            views: as `predict` takes them.
            channel_order: as `predict` takes it.
            allow_url: whether an address may be opened.
            **settings: as `predict` takes them, and keys of `PredictionOptions`: `stride=3` looks at every third frame
                of a video; `fps=25` makes one video of the images of a folder or list; `track=True` follows objects
                from frame to frame (videos only), so that `Prediction.track_ids` has a number for each, and detections
                without a track are left out; lines and zones give `Prediction.counts`; with `save_dir`, files are
                written as by `run`.

        Returns:
            One record per image or frame, with its error where it cannot be read.

        Raises:
            ConfigError: an image is to be tracked, an address is not allowed, or a key is unknown or has no effect.
        """
        options, selection = keywords.split_keywords(settings, "Detector.stream")
        if options.save_dir is None and (idle := [name for name in _OF_FILES if name in settings]):
            raise ConfigError(f"Detector.stream: {', '.join(idle)}: no files are written without save_dir; give it")
        select, predictor = self._select(selection), self._predictor(self._viewed(views), batch_size)
        sources = stream_sources(source, allow_url, channel_order, options.fps, options.has_tracks)
        if options.save_dir is not None:
            options = dataclasses.replace(options, save_dir=results_folder(options.save_dir, "predict"))
        return PredictionRun(predictor, sources, select, options).records()

    @keywords.with_keywords(keywords.RunKeywords)
    def run(
        self,
        source: object,
        *,
        annotations: str | Path | None = None,
        views: keywords.Section | None = None,
        channel_order: ChannelOrder = "rgb",
        allow_url: bool = False,
        on_picture: OnPicture | None = None,
        report: Callable[[str], None] = lambda text: None,
        **options: Unpack[keywords.RunKeywords],
    ) -> PredictionSummary:
        """Detect objects and write the same files as `detector predict`, with options of the same names.

        detector.run("street.mp4", save_dir="out", formats=("csv", "jsonl"), track=True, lines=[(0, 400, 1280, 400)])

        Args:
            source: what `stream` takes; a generator is read to its end first.
            annotations: COCO file with the images and their ids; `source` is their folder.
            views: as `predict` takes them.
            channel_order: as `predict` takes it.
            allow_url: whether an address may be opened.
            on_picture: called with each annotated picture, uint8 (H, W, 3), RGB; false ends the run.
            report: called with each warning and each skipped image, a sentence.
            **options: keys of `PredictionOptions`: save_dir (by default a new folder runs/detect/predict), formats,
                crops, pictures, fps, stride, every_frame, max_reconnect, codec, track, lines, zones; and settings as
                `predict` takes them.

        Returns:
            The numbers of images and frames read and skipped, warnings, counts and the paths of the files.

        Raises:
            MediaError: nothing could be read, or a file cannot be written.
            ConfigError: a key is unknown, or an option does not suit the sources.
        """
        asked, selection = keywords.split_keywords(options, "Detector.run")
        loaded = self._viewed(views)
        known = None if annotations is None else Path(annotations)
        inputs = find_inputs(
            source,
            allow_url=allow_url,
            annotations=known,
            formats=asked.formats,
            channel_order=channel_order,
            fps=asked.fps,
        )
        build = self._predictor if annotations is None else build_predictor  # an annotation file changes category ids
        select = select_boxes(selection_of(loaded, asked.formats), loaded.file, selection, "this model")
        with open_run(loaded, inputs, select, asked, build=build, on_picture=on_picture, report=report) as records:
            for _ in records:
                pass
        records.summary.require_read()
        return records.summary

    def _select(self, settings: Mapping[str, object]) -> SelectConfig:
        """Return the selection of prediction with other settings."""
        return select_boxes(self.config.predict, self._model().file, settings, "this model")

    @keywords.with_keywords(keywords.DetectionKeywords)
    def evaluate(
        self, data: DataGiven = None, split: str | None = None, **settings: Unpack[keywords.DetectionKeywords]
    ) -> Evaluation:
        """Evaluate the model on a split.

        Args:
            data: a data set (folder, zip, file, name or mapping), or None for the one that it was trained with.
            split: train, val or test; None for val, or for the only split of other data.
            **settings: sections or keys of the experiment, such as `evaluate={"iou": 0.6}`.

        Raises:
            DatasetError: the split cannot be used.
        """
        loaded = self._model()
        config = changed_config(self.config, data, settings, "Detector")
        annotations = read_split(config, split_to_evaluate(config, split, data is not None))
        return evaluate_model(LoadedModel(config, loaded.model, loaded.file), annotations)

    @keywords.with_keywords(keywords.DetectionKeywords)
    def train(
        self,
        data: DataGiven = None,
        *,
        report: Report | None = None,
        progress: bool | None = None,
        **settings: Unpack[keywords.DetectionKeywords],
    ) -> TrainingResult:
        """Train from the present weights or from scratch, and take over the best weights of the run.

        With `loader.workers` above 0 and processes that start by spawn or forkserver (Windows, macOS, and Python 3.14
        everywhere), a script must call this below `if __name__ == "__main__":`.

        Args:
            data: a data set (folder, zip, file, name or mapping), or None for the configured one.
            report: called with every event.
            progress: whether a bar and the results of evaluations are shown on stderr or in the notebook; None shows
                them in a terminal or notebook, unless `report` is given.
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
        with shown_progress(report, progress) as told:
            config = changed_config(self.config, data, settings, "Detector", told)
            result = train(config, start=self._loaded.file if self._loaded else None, report=told)
        self._take(result.folder.best)
        self.name = str(result.folder.best)
        return result

    @keywords.with_keywords(keywords.ExportKeywords)
    def export(
        self,
        path: str | Path,
        *,
        check_images: str | Path | None = None,
        calibration: str | Path | None = None,
        overwrite: bool = False,
        **settings: Unpack[keywords.ExportKeywords],
    ) -> ExportReport:
        """Write the model for another runtime, and compare the export with the model first.

        Args:
            path: the file; its suffix `.onnx`, `.xml` (OpenVINO), `.torchscript` or `.pt2` names the format.
            check_images: images to compare the two on, instead of the model's own split `val`.
            calibration: images to choose the ranges of 8-bit numbers on, instead of its split `train`.
            overwrite: whether existing files are replaced.
            **settings: keys of `ExportSettings`, such as nms, dynamic, precision; other keys are sections of the
                experiment, such as `input={"size": 320}`.

        Raises:
            CheckpointError: the export differs from the model by more than the tolerance; it is not kept.
            ConfigError: a key is unknown or not supported by the format, or a file exists.
        """
        loaded, target = self._model(), target_to_write(Path(path), overwrite, has_runner=bool(settings.get("runner")))
        own = {f.name for f in dataclasses.fields(ExportSettings)} - {"target"}
        others = {key: value for key, value in settings.items() if key not in own}
        config = changed_config(self.config, None, others, "Detector")
        asked = {"target": target, **{key: value for key, value in settings.items() if key in own}}
        images = (None if given is None else Path(given) for given in (check_images, calibration))
        changed = LoadedModel(config, loaded.model, loaded.file)
        return export_model(changed, Path(path), config_from_plain(ExportSettings, asked, "Detector.export"), *images)


class Classifier:
    """A classifier of images, trained or about to be.

    classifier = Classifier("runs/classify/train/weights/best.safetensors")
    prediction = classifier.predict("ring.png")
    print(prediction.top(3))
    """

    def __init__(self, model: str | Path, *, device: str | torch.device | None = None) -> None:
        """Load a model file (`.safetensors`, a run's `last.safetensors`), or a configuration to train from scratch.

        Args:
            model: path of a model file, path of a YAML configuration, or name of a preset such as `classify`.
            device: cpu, cuda, cuda:N, mps or auto, for training, evaluation and prediction; None for the model's own.

        Raises:
            CheckpointError: the model file cannot be read or is of a detector.
            ConfigError: there is no such configuration or device, or the configuration is one of detection.
        """
        self._loaded: LoadedClassifier | None = None
        self._device = None if device is None else str(device)
        if Path(model).suffix in (".safetensors", ".pt"):
            self._take(Path(model))
            return
        config = load_experiment_of(ClassificationConfig, str(model))
        self.config: ClassificationConfig = with_device(config, self._device)

    def _take(self, weights: Path) -> None:
        loaded = load_classifier(weights)
        self._loaded = dataclasses.replace(loaded, config=with_device(loaded.config, self._device))
        self.config = self._loaded.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class the model knows."""
        return self._model().file.class_names

    def _model(self) -> LoadedClassifier:
        if self._loaded is None:
            raise CheckpointError("this classifier has no weights yet; train it, or open a model file")
        return self._loaded

    def predict(
        self, source: object, *, channel_order: ChannelOrder = "rgb", allow_url: bool = False
    ) -> ClassPrediction | list[ClassPrediction]:
        """Classify images.

        Args:
            source: what `Detector.predict` takes, without videos.
            channel_order: as `Detector.predict` takes it.
            allow_url: whether an address may be opened.

        Returns:
            One record for a single image, else a list, in order.

        Raises:
            MediaError: an image cannot be read, or the source is a video.
        """
        sources, is_single = as_sources(source, allow_url, channel_order)
        images = require_images(sources, "a classifier")
        found = list(classify(self._model(), images, batch_size=min(32, len(images)) or 1))
        for prediction in found:
            if prediction.error is not None:
                raise MediaError(prediction.error)
        return found[0] if is_single else found

    @keywords.with_keywords(keywords.ClassificationKeywords)
    def evaluate(
        self, data: DataGiven = None, split: str | None = None, **settings: Unpack[keywords.ClassificationKeywords]
    ) -> ClassificationMetrics:
        """Evaluate the model on a split.

        Args:
            data: a folder of folders of classes, a mapping or a registered name, or None for the one it learned from.
            split: train, val or test; None for val, or for the only split of other data.
            **settings: sections of the experiment, such as `evaluate={"batch_size": 64}`.

        Raises:
            DatasetError: the split cannot be used.
        """
        loaded = self._model()
        config = changed_config(self.config, data, settings, "Classifier")
        chosen = split_to_evaluate(config, split, data is not None)
        return evaluate_classifier(LoadedClassifier(config, loaded.model, loaded.file), read_images(config, chosen))

    @keywords.with_keywords(keywords.ClassificationKeywords)
    def train(
        self,
        data: DataGiven = None,
        *,
        report: Report | None = None,
        progress: bool | None = None,
        **settings: Unpack[keywords.ClassificationKeywords],
    ) -> TrainingResult:
        """Train, from the present weights or from scratch, and take over the best weights of the run.

        Args:
            data: a folder of folders of classes, a mapping or a registered name, or None for the configured one.
            report: called with every event.
            progress: as `Detector.train` takes it.
            **settings: sections of the experiment, such as `train={"epochs": 5}`.

        Raises:
            DatasetError: the images cannot be used.
            DivergenceError: a loss or gradient is not finite.
        """
        with shown_progress(report, progress) as told:
            config = changed_config(self.config, data, settings, "Classifier", told)
            result = train(config, start=self._loaded.file if self._loaded else None, report=told)
        self._take(result.folder.best)
        return result
