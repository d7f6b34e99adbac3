"""Measure a predictor on a split: the same path as prediction, then COCO's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import Backend, CocoMetrics, score_results
from detector.evaluation.precision_recall import LIMITS
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.inference.predictor import Prediction, Predictor
from detector.media.sources import ImageSource
from detector.structures.boxes import xyxy_to_xywh
from detector.structures.selection import SelectConfig
from detector.training.distributed import World

UNLIMITED = 2**31  # detections of an image; Darknet's map has no limit of its own
# Scoring takes about 400 bytes for a detection (its match at ten thresholds and four ranges of area), so about 2 GB.
MAX_SCORED = 5_000_000


@dataclass(frozen=True)
class EvaluateConfig(SelectConfig):
    """Selection of the model's boxes for evaluation, and settings of the scorer.

    COCO's AP has a limit for each class. Whatever `max_detections` is, evaluation keeps the best 100 detections of each
    class in an image, or as many as `other_limits` asks for.

    Attributes:
        confidence: lowest score kept; COCO's AP needs the low scores too.
        batch_size: images in a batch.
        backend: `pycocotools`, the reference, or `fast`, the same bits in a fraction of the time; `auto` is `fast`.
        other_limits: numbers of detections per class and image to give AP for besides COCO's 100, labelled.
    """

    confidence: float = 0.001
    batch_size: int = 16
    backend: Backend = "auto"
    other_limits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"evaluate.batch_size: expected at least 1, got {self.batch_size}")
        if min(self.other_limits, default=1) < 1:
            raise ValueError(f"evaluate.other_limits: expected numbers of at least 1, got {list(self.other_limits)}")

    @property
    def min_per_class(self) -> int:
        """Number of detections of each class that are kept beyond `max_detections`, best first: the largest limit."""
        return max(*LIMITS, *self.other_limits)


@dataclass(frozen=True)
class Conditions:
    """Conditions of a measurement; two numbers can be compared only where these agree.

    Attributes:
        confidence: lowest score kept.
        nms: quantity that non-maximum suppression bounds, as in `SelectConfig`.
        iou: its threshold.
        max_detections: most detections kept per image.
        class_agnostic: whether boxes of different classes suppressed each other.
        input_hw: height and width of the canvas in pixels.
        fit: how images were fitted into it.
        arithmetic: how they were resized.
        views: the views of each image, or None for one plain view.
        precision: number format of the network's arithmetic.
        min_per_class: detections of each class kept per image beyond `max_detections`.
    """

    confidence: float
    nms: str
    iou: float
    max_detections: int
    class_agnostic: bool
    input_hw: tuple[int, int]
    fit: str
    arithmetic: str
    views: str | None = None
    precision: str = "fp32"
    min_per_class: int = 0

    @classmethod
    def of(cls, predictor: Predictor, config: SelectConfig) -> Conditions:
        """Return the conditions that a predictor and a selection set."""
        nms = config.nms if config.nms != "diou" else f"diou, beta {config.nms_beta}"
        return cls(
            config.confidence,
            f"{nms}, best class of each box" if config.best_class else nms,
            config.iou,
            config.max_detections,
            config.class_agnostic,
            predictor.input.canvas_hw,
            predictor.input.fit,
            predictor.input.arithmetic,
            None if predictor.views.is_plain else predictor.views.text,
            predictor.runtime.precision,
            config.min_per_class,
        )

    def to_text(self) -> str:
        """Return the conditions on one line."""
        limit = f"at most {self.max_detections} per image" if self.max_detections < UNLIMITED else "no limit"
        limit += f" or {self.min_per_class} per class" if self.min_per_class else ""
        height, width = self.input_hw
        agnostic = ", over all classes" if self.class_agnostic else ""
        suppression = f"suppression {self.nms} above IoU {self.iou:g}{agnostic}"
        return (
            f"confidence {self.confidence:g}, {'no suppression' if self.nms == 'none' else suppression}, "
            f"{limit}; input {width} x {height}, {self.fit}, resized as by {self.arithmetic}"
            + (f"; views: {self.views}" if self.views else "")
            + (f"; computed in {self.precision}" if self.precision != "fp32" else "")
        )


@dataclass(frozen=True)
class SplitDetections:
    """Detections of a model on a split, before they are scored.

    Attributes:
        conditions: the conditions that they were made under.
        truth: the ground truth of the split.
        detections: the detections, in the order of the split and, within an image, by falling score.
        skipped: images that could not be read, each with its reason; their objects count as missed.
        warnings: oddities of images that were read, and of the number of detections.
    """

    conditions: Conditions
    truth: GroundTruth = field(repr=False, compare=False)
    detections: Results = field(repr=False, compare=False)
    skipped: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def results(self) -> list[dict[str, object]]:
        """The detections as COCO result records, original category ids, nothing rounded."""
        return self.detections.to_records(self.truth)


@dataclass(frozen=True)
class Evaluation(SplitDetections):
    """Detections of a model on a split and COCO's numbers of them.

    Attributes:
        metrics: the numbers.
    """

    metrics: CocoMetrics = field(kw_only=True)


def annotated_sources(annotations: CocoAnnotations) -> list[ImageSource]:
    """Return the images of a split, in the order of the file, with their ids and listed sizes."""
    sources = []
    for index, (height, width) in enumerate(annotations.image_hw.tolist()):
        path = annotations.path(index)
        image_id = int(annotations.image_ids[index])
        sources.append(ImageSource(str(path), path, image_id, listed_hw=(height, width) if height and width else None))
    return sources


def detect_split(
    predictor: Predictor,
    annotations: CocoAnnotations,
    config: SelectConfig,
    on_image: Callable[[int], None] = lambda done: None,
    world: World | None = None,
) -> SplitDetections:
    """Run a predictor over a split.

    Args:
        predictor: the model; its category ids must be those of the split.
        annotations: the split.
        config: the selection of the model's boxes.
        on_image: called after each image with the number of images done.
        world: the processes that share the images; each of them gets all detections.

    Raises:
        DatasetError: the split has a category that the model does not know.
    """
    require_known_categories(predictor, annotations)
    world, truth = world or World(), GroundTruth.of_annotations(annotations)
    category_rank = {identifier: rank for rank, identifier in enumerate(truth.category_ids)}
    rank_of_label = np.array([category_rank.get(identifier, -1) for identifier in predictor.category_ids], np.int64)
    sources = annotated_sources(annotations)[world.rank :: world.size]
    own: list[_OfImage] = []
    for done, prediction in enumerate(predictor.stream(sources, config), start=1):
        place = (done - 1) * world.size + world.rank
        own.append(_OfImage.of(place, prediction, rank_of_label))
        on_image(done)
    images = sorted(world.gathered(own), key=lambda image: image.place)  # in the order of a single process
    skipped = tuple(image.error for image in images if image.error is not None)
    warnings = [warning for image in images for warning in image.warnings]
    counts = np.array([len(image.scores) for image in images], np.int64)
    most, notes = _most_per_image(counts, config, predictor.runtime.selection)
    image_rank = {identifier: rank for rank, identifier in enumerate(truth.image_ids)}
    ranks = np.array([image_rank[identifier] for identifier in annotations.image_ids.tolist()], np.int64)
    empty = np.zeros(0, np.int64)
    detections = Results(
        np.repeat(ranks, np.minimum(counts, most)),
        np.concatenate([empty, *(image.category_ranks[:most] for image in images)]),
        np.concatenate([np.zeros((0, 4)), *(image.boxes_xywh[:most] for image in images)]),
        np.concatenate([np.zeros(0), *(image.scores[:most] for image in images)]),
    )
    return SplitDetections(Conditions.of(predictor, config), truth, detections, skipped, (*warnings, *notes))


@dataclass(frozen=True, eq=False)
class _OfImage:
    """Detections of one image of a split, n rows by falling score, or the reason why there are none.

    Attributes:
        place: the position of the image in the split.
        boxes_xywh: float64 (n, 4), source pixels.
        scores: float64 (n,).
        category_ranks: int64 (n,), as in `GroundTruth`.
        error: the reason why the image could not be read, or None.
        warnings: oddities of the image.
    """

    place: int
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    category_ranks: npt.NDArray[np.int64]
    error: str | None
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, place: int, prediction: Prediction, rank_of_label: npt.NDArray[np.int64]) -> _OfImage:
        """Return the detections of classes that the split has; `rank_of_label` is -1 for the others."""
        found, warnings = prediction.detections, prediction.warnings
        if found is None:
            reason = prediction.error or prediction.source.name
            return cls(place, np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), reason, warnings)
        ranks = rank_of_label[found.labels.numpy()]
        # As `Detections.to_coco`: float32 coordinates, their differences in float64.
        boxes_xywh = xyxy_to_xywh(found.source_xyxy.double()).numpy()
        is_listed = ranks >= 0
        return cls(
            place, boxes_xywh[is_listed], found.scores.double().numpy()[is_listed], ranks[is_listed], None, warnings
        )


def _most_per_image(
    counts: npt.NDArray[np.int64], config: SelectConfig, of_file: SelectConfig | None
) -> tuple[int, list[str]]:
    """Return the number of detections of an image that are scored, and what to tell about limits that were reached.

    Args:
        counts: int64 (N,), detections of each image.
        config: the selection that was asked for.
        of_file: the selection of a file that selects by itself, or None.
    """
    notes = []
    most = int(counts.max(initial=0))
    if of_file is not None and config.min_per_class and (num := int((counts >= of_file.max_detections).sum())):
        notes.append(
            f"{num} images have the {of_file.max_detections} detections that the file gives at most, over all classes; "
            f"AP may be too low: export with a larger predict.max_detections, or without --nms"
        )
    if counts.sum() > MAX_SCORED:
        low, high = min(config.max_detections, most), most
        while low < high:  # the largest limit with which all are few enough
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(counts, middle).sum() <= MAX_SCORED else (low, middle - 1)
        most = low
        notes.append(
            f"{counts.sum():,} detections are more than the {MAX_SCORED:,} that memory is planned for: only the best "
            f"{most} of each image are scored, fewer than {config.min_per_class} of each class in "
            f"{int((counts > most).sum())} images; raise evaluate.confidence or evaluate.max_detections"
        )
    return most, notes


def evaluate(
    predictor: Predictor,
    annotations: CocoAnnotations,
    config: EvaluateConfig,
    on_image: Callable[[int], None] = lambda done: None,
    world: World | None = None,
) -> Evaluation:
    """Run a predictor over a split and compute COCO's numbers.

    Args:
        predictor: the model; its category ids must be those of the split.
        annotations: the split.
        config: the selection of the model's boxes and the settings of the scorer.
        on_image: called after each image with the number of images done.
        world: the processes that share the images; each of them gets the whole evaluation.

    Raises:
        DatasetError: the split has a category that the model does not know.
    """
    found = detect_split(predictor, annotations, config, on_image, world)
    metrics = score_results(found.truth, found.detections, backend=config.backend, other_limits=config.other_limits)
    return Evaluation(**vars(found), metrics=metrics)


def require_known_categories(predictor: Predictor, annotations: CocoAnnotations) -> None:
    """Reject a split with a category that the model does not know.

    Raises:
        DatasetError: the split has such a category.
    """
    unknown = sorted(set(annotations.category_ids) - set(predictor.category_ids))
    if unknown:
        raise DatasetError(
            f"{annotations.annotations}: the model knows the category ids {sorted(predictor.category_ids)}, the file "
            f"also has {unknown}; evaluate on a file with the model's categories"
        )
