"""Prediction with a detector: sources, category ids, the selection of boxes, a predictor, and the run over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import SupportsIndex

from detector.config.name_suggestions import nearest
from detector.config.schema import config_from_plain, config_to_plain
from detector.data.class_matching import matched_names
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.problems import num_accepted, num_skipped
from detector.errors import ConfigError
from detector.evaluation.evaluator import annotated_sources
from detector.evaluation.operating_point import BEST, BEST_OVERALL, OperatingPoint
from detector.inference.prediction_run import OnPicture, PredictionOptions, PredictionRun, Report, batch_size_for
from detector.inference.predictor import Predictor
from detector.io.remote import permit
from detector.media.frame_sequences import as_sequences
from detector.media.memory_images import ChannelOrder
from detector.media.sources import ImageSource, Source, as_sources, require_videos
from detector.models.checkpoint import ModelFile
from detector.models.precision import choose_device
from detector.structures.selection import SelectConfig, with_one_limit
from detector.tasks.detection_model import LoadedModel, build_predictor, load_model, matched
from detector.tasks.requests import Observer, PredictionRequest
from detector.training.run_folder import removed_if_empty, results_folder


@dataclass(frozen=True)
class PredictionInputs:
    """Sources of a run, with their annotation file if they have one.

    Attributes:
        sources: images, videos and streams.
        annotations: the file that gives each image its id, or None.
    """

    sources: Sequence[Source]
    annotations: CocoAnnotations | None = None

    @property
    def has_frames(self) -> bool:
        """True if a source is a video or stream."""
        return not all(isinstance(source, ImageSource) for source in self.sources)

    @property
    def num_faults(self) -> int:
        """Images and objects of the annotation file that were skipped, or accepted with a warning."""
        problems = self.annotations.problems if self.annotations else ()
        return num_skipped(problems) + num_accepted(problems)


def find_inputs(
    given: object,
    *,
    allow_url: bool = False,
    annotations: Path | None = None,
    formats: Sequence[str] = (),
    channel_order: ChannelOrder = "rgb",
    fps: float | None = None,
) -> PredictionInputs:
    """Return the sources of a run.

    Args:
        given: anything that `as_sources` takes; with annotations the folder of their images.
        allow_url: whether the network may be used for an address.
        annotations: a COCO file with the images and their ids, or None.
        formats: the formats of the run; `coco` requires annotations.
        channel_order: the order of the colours of arrays and tensors.
        fps: frames per second of images and stdin, or None.

    Raises:
        ConfigError: annotations are missing, or they come with several sources.
        DatasetError: the annotations cannot be used.
        MediaError: nothing is there.
    """
    if annotations is None:
        if "coco" in formats:
            raise ConfigError(
                "the format coco takes each image's id from an annotation file; give --annotations FILE (in Python: "
                "annotations=FILE)"
            )
        return PredictionInputs(as_sequences(as_sources(given, allow_url, channel_order)[0], fps))
    if fps is not None:
        raise ConfigError("fps: expected images without annotations, got an annotation file; leave one of them out")
    if not isinstance(given, (str, Path)):
        raise ConfigError(f"expected one source with annotations, the folder of their images, got {given!r:.200}")
    if allow_url:
        permit(given, None)
    read = read_coco(annotations, Path(given), require_annotations=False)
    return PredictionInputs(annotated_sources(read), read)


def selection_of(loaded: LoadedModel, formats: Sequence[str]) -> SelectConfig:
    """Return the model's own selection: that of evaluation for COCO results, else that of prediction."""
    return loaded.config.evaluate if "coco" in formats else loaded.config.predict


def open_run(
    loaded: LoadedModel,
    inputs: PredictionInputs,
    select: SelectConfig,
    options: PredictionOptions,
    *,
    build: Callable[[LoadedModel, int], Predictor] = build_predictor,
    on_picture: OnPicture | None = None,
    report: Report = lambda text: None,
    warn: Report | None = None,
) -> PredictionRun:
    """Return a run that writes into the folder of its options, or into a new one under the project of detection.

    Args:
        loaded: the model.
        inputs: the sources.
        select: which of the model's boxes are kept.
        options: what is written, and how videos are gone through.
        build: makes the predictor of a model and a batch size.
        on_picture: as `PredictionRun` takes it.
        report: told of each warning and each skipped image.
        warn: told of the categories of the annotations that are left out; None for `report`.

    Raises:
        ConfigError: the options do not suit the sources or the model.
        DatasetError: the annotations do not suit the model.
        DetectorError: the folder of results cannot be made.
    """
    sources, annotations = inputs.sources, inputs.annotations
    if options.has_tracks:
        require_videos(sources)
    if annotations is not None:
        loaded, annotations = matched(loaded, annotations, report, warn)
    if "coco" in options.formats:
        batch_size = loaded.config.evaluate.batch_size
    else:
        batch_size = batch_size_for(sources, loaded.config.views, choose_device(loaded.config.device))
    predictor = build(loaded, batch_size)
    folder = results_folder(options.save_dir, "predict")
    with removed_if_empty(folder, options.save_dir):
        return PredictionRun(
            predictor,
            sources,
            select,
            replace(options, save_dir=folder),
            category_ids=None if annotations is None else annotations.category_ids,
            num_input_faults=inputs.num_faults,
            on_picture=on_picture,
            report=report,
        )


def select_boxes(config: SelectConfig, file: ModelFile, settings: Mapping[str, object], who: str) -> SelectConfig:
    """Return a selection of boxes with other settings, for the command line and Python alike.

    Args:
        config: the selection that the settings change.
        file: the model, for its class names and thresholds.
        settings: keys of `SelectConfig`; `confidence` may be `best` or `best-overall`, which take the thresholds that
            the model carries, and a class may be given by its name.
        who: name of the model for messages.

    Raises:
        ConfigError: a setting is wrong or has no effect, or the model carries no thresholds.
    """
    if not settings:
        return config
    if "max_detections" in settings:
        config = with_one_limit(config)
    given, confidence = dict(settings), settings.get("confidence")
    carried = confidence if isinstance(confidence, str) and confidence in (BEST, BEST_OVERALL) else None
    if carried is not None:
        del given["confidence"]
    elif "confidence" in given:  # one threshold takes the place of those of the classes
        given = {"class_confidence": None, **given}
    if given.get("classes") is not None:
        given["classes"] = _class_indices(given["classes"], file.class_names)
    changed = config_from_plain(type(config), {**config_to_plain(config), **given}, "predict")
    if "iou" in settings and changed.nms == "none":
        raise ConfigError(
            f"iou: expected a model whose boxes suppress each other, got {who} with nms=none, which gives each object "
            f"one box by itself; leave iou out, or choose nms=plain"
        )
    return changed if carried is None else OperatingPoint.of_file(file, who).applied(changed, carried)


def _class_indices(given: object, class_names: Sequence[str]) -> list[int]:
    """Return the indices of classes that are given by name or index, one or several.

    Raises:
        ConfigError: the model has no such class.
    """
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    return [_class_index(word, class_names) for word in several]


def _class_index(word: object, class_names: Sequence[str]) -> int:
    if isinstance(word, str) and word in class_names:
        return class_names.index(word)
    if isinstance(word, str) and (found := matched_names([word], class_names)[0]) is not None:
        return found
    if isinstance(word, str) and word.isdecimal():
        word = int(word)
    if isinstance(word, SupportsIndex) and not isinstance(word, bool) and 0 <= word.__index__() < len(class_names):
        return word.__index__()
    known = nearest(word, class_names) if isinstance(word, str) else f"; it has 0 to {len(class_names) - 1}"
    raise ConfigError(f"classes: expected a class of the model, got {word!r}{known}")


@dataclass(frozen=True)
class OpenedRequest:
    """Model, sources and selection of a request, opened and checked; no file has been written.

    Attributes:
        loaded: the model.
        inputs: the sources.
        select: which of the model's boxes are kept.
    """

    loaded: LoadedModel
    inputs: PredictionInputs
    select: SelectConfig


def open_request(request: PredictionRequest, observer: Observer) -> OpenedRequest:
    """Open the model and the sources of a request.

    Raises:
        CheckpointError: the model file cannot be read.
        ConfigError: a setting is wrong or does not suit the sources.
        DatasetError: the annotations cannot be used.
    """
    options = request.options
    loaded = load_model(request.weights, request.overrides, cfg=request.cfg, names=request.names)
    request.check_views(loaded.config.views)
    for text in loaded.model.notes:
        observer.note(text)
    inputs = find_inputs(
        request.sources,
        allow_url=request.allow_url,
        annotations=request.annotations,
        formats=options.formats,
        fps=options.fps,
    )
    if options.has_tracks:
        require_videos(inputs.sources)
    for problem in inputs.annotations.problems if inputs.annotations else ():
        observer.note(f"{request.annotations}: {problem}")
    own = selection_of(loaded, options.formats)
    select = select_boxes(own, loaded.file, request.selection, str(request.weights))
    request.check_frames(inputs.has_frames)
    return OpenedRequest(loaded, inputs, select)


def predict_with_detector(
    request: PredictionRequest, observer: Observer, on_picture: OnPicture | None = None
) -> PredictionRun:
    """Open the model and the sources of a request and return the run over them.

    Raises:
        CheckpointError: the model file cannot be read.
        ConfigError: a setting is wrong or does not suit the sources.
        DatasetError: the annotations cannot be used.
        DetectorError: the folder of results cannot be made.
    """
    opened, options = open_request(request, observer), request.options
    return open_run(
        opened.loaded,
        opened.inputs,
        opened.select,
        options,
        on_picture=on_picture,
        report=observer.note,
        warn=observer.warn,
    )
