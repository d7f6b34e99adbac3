"""Prediction from start to end: sources, category ids, a predictor with batches that suit, and the run over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detector.data.coco import CocoAnnotations, read_coco
from detector.errors import ConfigError
from detector.evaluation.evaluator import annotated_sources
from detector.inference.prediction_run import OnPicture, PredictionOptions, PredictionRun, Report, batch_size_for
from detector.inference.predictor import Predictor
from detector.media.sources import ImageSource, Source, as_sources, require_videos
from detector.models.precision import choose_device
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import LoadedModel, build_predictor, with_category_ids_of
from detector.training.run_folder import results_folder


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


def find_inputs(
    given: object, *, allow_url: bool = False, annotations: Path | None = None, formats: Sequence[str] = ()
) -> PredictionInputs:
    """Return the sources of a run.

    Args:
        given: anything that `as_sources` takes; with annotations the folder of their images.
        allow_url: whether the network may be used for an address.
        annotations: a COCO file with the images and their ids, or None.
        formats: the formats of the run; `coco` requires annotations.

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
        return PredictionInputs(as_sources(given, allow_url)[0])
    if not isinstance(given, (str, Path)):
        raise ConfigError(f"expected one source with annotations, the folder of their images, got {given!r:.200}")
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

    Raises:
        ConfigError: the options do not suit the sources or the model.
        DatasetError: the annotations do not suit the model.
        DetectorError: the folder of results cannot be made.
    """
    sources, annotations = inputs.sources, inputs.annotations
    if options.has_tracks:
        require_videos(sources)
    if annotations is not None:
        loaded = with_category_ids_of(loaded, annotations)
    if "coco" in options.formats:
        batch_size = loaded.config.evaluate.batch_size
    else:
        batch_size = batch_size_for(sources, loaded.config.views, choose_device(loaded.config.device))
    predictor = build(loaded, batch_size)
    return PredictionRun(
        predictor,
        sources,
        select,
        replace(options, save_dir=results_folder(options.save_dir, "predict")),
        category_ids=None if annotations is None else annotations.category_ids,
        on_picture=on_picture,
        report=report,
    )
