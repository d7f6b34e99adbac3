"""Measuring a predictor on a split: the same path as prediction, then pycocotools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detector.data.coco import CocoAnnotations
from detector.engine.predictor import Predictor
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import CocoMetrics, score_results
from detector.media.sources import ImageSource
from detector.postprocess import SelectConfig


@dataclass(frozen=True)
class EvaluateConfig(SelectConfig):
    """What evaluation keeps of the model's boxes.

    Attributes:
        confidence: lowest score kept; COCO's AP wants the low scores too.
        batch_size: images in a batch.
    """

    confidence: float = 0.001
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"evaluate.batch_size wants to be at least 1, found {self.batch_size}")


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        metrics: the numbers.
        results: the COCO result records they were computed from, original category ids, nothing rounded.
        skipped: images that could not be read, each with its reason; their objects count as missed.
        warnings: what is odd about images although they were read.
    """

    metrics: CocoMetrics
    results: list[dict[str, Any]]
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
    config: SelectConfig,
    on_image: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Runs a predictor over a split and scores what it finds.

    Args:
        predictor: the model; its category ids must be those of the split.
        annotations: the split.
        config: what to keep of the model's boxes.
        on_image: told the number of images done, after each.

    Raises:
        DatasetError: the split has a category that the model does not know.
    """
    unknown = sorted(set(annotations.category_ids) - set(predictor.category_ids))
    if unknown:
        raise DatasetError(
            f"{annotations.annotations}: the model knows the category ids {sorted(predictor.category_ids)}, the file "
            f"also has {unknown}; evaluate on a file with the model's categories"
        )
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    warnings: list[str] = []
    known = set(annotations.category_ids)
    for done, prediction in enumerate(predictor.stream(annotated_sources(annotations), config), start=1):
        warnings.extend(prediction.warnings)
        if prediction.detections is None or prediction.source.image_id is None:
            skipped.append(prediction.error or prediction.source.name)
        else:
            records = prediction.detections.to_coco(prediction.source.image_id)
            results.extend(record for record in records if record["category_id"] in known)
        on_image(done)
    return Evaluation(score_results(annotations.ground_truth(), results), results, tuple(skipped), tuple(warnings))
