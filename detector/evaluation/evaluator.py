"""Measuring a predictor on a split: the same path as prediction, then COCO's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class EvaluateConfig(SelectConfig):
    """What evaluation keeps of the model's boxes, and how they are scored.

    Attributes:
        confidence: lowest score kept; COCO's AP wants the low scores too.
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
            raise ValueError(f"evaluate.batch_size wants to be at least 1, found {self.batch_size}")
        if min(self.other_limits, default=1) < 1:
            raise ValueError(f"evaluate.other_limits wants numbers of at least 1, found {list(self.other_limits)}")


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a model was measured: what two numbers must share to be compared.

    Attributes:
        confidence: lowest score kept.
        nms: what non-maximum suppression bounds, as in `SelectConfig`.
        iou: its threshold.
        max_detections: most detections kept per image.
        class_agnostic: whether boxes of different classes suppressed each other.
        input_hw: height and width of the canvas in pixels.
        fit: how images were fitted into it.
        arithmetic: how they were resized.
        views: how each image was looked at, or None for one plain look.
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
        """The conditions that a predictor and a selection make."""
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


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        metrics: the numbers.
        conditions: under which conditions they were measured.
        truth: the ground truth they were computed from.
        detections: the detections they were computed from.
        results: the same as COCO result records, original category ids, nothing rounded.
        skipped: images that could not be read, each with its reason; their objects count as missed.
        warnings: what is odd about images although they were read.
    """

    metrics: CocoMetrics
    conditions: Conditions
    truth: GroundTruth = field(repr=False, compare=False)
    detections: Results = field(repr=False, compare=False)
    results: list[dict[str, Any]] = field(repr=False)
    skipped: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def annotated_sources(annotations: CocoAnnotations) -> list[ImageSource]:
    """The images of a split, in the order of the file, with their ids and listed sizes."""
    sources = []
    for index, (height, width) in enumerate(annotations.image_hw.tolist()):
        path = annotations.path(index)
        image_id = int(annotations.image_ids[index])
        sources.append(ImageSource(str(path), path, image_id, listed_hw=(height, width) if height and width else None))
    return sources


def evaluate(
    predictor: Predictor,
    annotations: CocoAnnotations,
    config: EvaluateConfig,
    on_image: Callable[[int], None] = lambda done: None,
    world: World | None = None,
) -> Evaluation:
    """Runs a predictor over a split and scores what it finds.

    Args:
        predictor: the model; its category ids must be those of the split.
        annotations: the split.
        config: what to keep of the model's boxes.
        on_image: told the number of images done, after each.
        world: the processes that share the images; each of them gets the whole evaluation.

    Raises:
        DatasetError: the split has a category that the model does not know.
    """
    require_known_categories(predictor, annotations)
    world = world or World()
    known = set(annotations.category_ids)
    sources = annotated_sources(annotations)[world.rank :: world.size]
    own: list[tuple[int, list[dict[str, Any]], list[str], tuple[str, ...]]] = []
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
    images = sorted(world.gathered(own), key=lambda image: image[0])  # as one process sees them
    results = [record for _, records, _, _ in images for record in records]
    skipped = [error for _, _, errors, _ in images for error in errors]
    warnings = [warning for *_, found in images for warning in found]
    truth = GroundTruth.of_annotations(annotations)
    detections = checked_results(results, truth, Findings("the model's detections"))
    metrics = score_results(truth, detections, backend=config.backend, other_limits=config.other_limits)
    conditions = Conditions.of(predictor, config)
    return Evaluation(metrics, conditions, truth, detections, results, tuple(skipped), tuple(warnings))


def require_known_categories(predictor: Predictor, annotations: CocoAnnotations) -> None:
    """Refuses a split with a category that the model does not know.

    Raises:
        DatasetError: it has one.
    """
    unknown = sorted(set(annotations.category_ids) - set(predictor.category_ids))
    if unknown:
        raise DatasetError(
            f"{annotations.annotations}: the model knows the category ids {sorted(predictor.category_ids)}, the file "
            f"also has {unknown}; evaluate on a file with the model's categories"
        )
