"""Measure a predictor on a split: the same path as prediction, then COCO's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from detector.data.coco import CocoAnnotations
from detector.data.problems import Findings
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import Backend, CocoMetrics, score_results
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.inference.predictor import Predictor
from detector.media.sources import ImageSource
from detector.structures.selection import SelectConfig
from detector.training.distributed import World

UNLIMITED = 2**31  # detections of an image; Darknet's map has no limit of its own


@dataclass(frozen=True)
class EvaluateConfig(SelectConfig):
    """Selection of the model's boxes for evaluation, and settings of the scorer.

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

    @classmethod
    def of(cls, predictor: Predictor, config: SelectConfig) -> Conditions:
        """Return the conditions that a predictor and a selection set."""
        return cls(
            config.confidence,
            config.nms if config.nms != "diou" else f"diou, beta {config.nms_beta}",
            config.iou,
            config.max_detections,
            config.class_agnostic,
            predictor.input.canvas_hw,
            predictor.input.fit,
            predictor.input.arithmetic,
            None if predictor.views.is_plain else predictor.views.text,
            predictor.runtime.precision,
        )

    def to_text(self) -> str:
        """Return the conditions on one line."""
        limit = f"at most {self.max_detections} per image" if self.max_detections < UNLIMITED else "no limit"
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
        detections: the detections.
        results: the same as COCO result records, original category ids, nothing rounded.
        skipped: images that could not be read, each with its reason; their objects count as missed.
        warnings: oddities of images that were read.
    """

    conditions: Conditions
    truth: GroundTruth = field(repr=False, compare=False)
    detections: Results = field(repr=False, compare=False)
    results: list[dict[str, object]] = field(repr=False)
    skipped: tuple[str, ...]
    warnings: tuple[str, ...] = ()


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
    world = world or World()
    known = set(annotations.category_ids)
    sources = annotated_sources(annotations)[world.rank :: world.size]
    own: list[tuple[int, list[dict[str, object]], list[str], tuple[str, ...]]] = []
    for done, prediction in enumerate(predictor.stream(sources, config), start=1):
        records, errors = [], []
        if prediction.detections is None or prediction.source.image_id is None:
            errors.append(prediction.error or prediction.source.name)
        else:
            found = prediction.detections.to_coco(prediction.source.image_id)
            records = [record for record in found if record["category_id"] in known]
        place = (done - 1) * world.size + world.rank
        own.append((place, records, errors, prediction.warnings))
        on_image(done)
    images = sorted(world.gathered(own), key=lambda image: image[0])  # in the order of a single process
    results = [record for _, records, _, _ in images for record in records]
    skipped = [error for _, _, errors, _ in images for error in errors]
    warnings = [warning for *_, found in images for warning in found]
    truth = GroundTruth.of_annotations(annotations)
    detections = checked_results(results, truth, Findings("the model's detections"))
    conditions = Conditions.of(predictor, config)
    return SplitDetections(conditions, truth, detections, results, tuple(skipped), tuple(warnings))


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
