"""The numbers of Darknet's `detector map`, to the digit: its boxes, its matching, its AP and its counts at a threshold.

The rules differ from COCO's and from Pascal VOC's: a detection belongs to the object of highest overlap even if another
detection already has that object, boxes are neither clipped nor limited in number, a class without objects counts as an
AP of 0, and the counts at a threshold go through the boxes in the order of suppression, not by score.
Reference: https://github.com/AlexeyAB/darknet, `validate_detector_map`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detector.config.registry import register
from detector.data.coco import CocoAnnotations
from detector.errors import ConfigError
from detector.evaluation.detection_metric import DetectionMetric, MetricConfig
from detector.evaluation.evaluator import (
    UNLIMITED,
    Conditions,
    EvaluateConfig,
    SplitDetections,
    annotated_sources,
    require_known_categories,
)
from detector.evaluation.number_text import class_table
from detector.evaluation.scoring_arrays import GroundTruth, Results, shared_groups
from detector.evaluation.voc_ap import average_precision, check_match_iou, is_first
from detector.inference.predictor import Predictor, RawBoxes
from detector.io.nouns import plural
from detector.structures.boxes import xyxy_to_xywh
from detector.structures.selection import SelectConfig, select_rows

# `detector map` drops boxes with a score up to the first and suppresses those that overlap by more than the second.
_CANDIDATE, _NMS_IOU = np.float32(0.005), 0.45


@dataclass(frozen=True)
class DarknetClass:
    """Numbers of one class in Darknet's `map`.

    Attributes:
        name: the class.
        ap: its AP, 0 where it has no objects.
        num_right: true positives above the threshold on the score.
        num_wrong: false positives above it.
    """

    name: str
    ap: float
    num_right: int
    num_wrong: int


@dataclass(frozen=True)
class DarknetMap:
    """Numbers that Darknet's `map` prints.

    Attributes:
        mean_ap: the sum of the APs over the number of classes, those without objects included.
        classes: the numbers of each class.
        precision: true positives among the detections above the threshold on the score, 0 without any.
        recall: true positives among the objects.
        f1: their harmonic mean.
        mean_iou: the overlap of true positives, summed, over the number of detections above the threshold.
        num_missed: objects minus true positives.
        num_images: images evaluated.
        num_objects: ground-truth objects.
        num_detections: detections, of any score.
        points: recall levels of the AP; 0 for the area under the curve.
        iou_threshold: an overlap above it is a match.
        confidence: the threshold on the score of the counts.
        ground_truth_sha256: the hash of the ground truth as scored, `GroundTruth.sha256`.
    """

    mean_ap: float
    classes: tuple[DarknetClass, ...]
    precision: float
    recall: float
    f1: float
    mean_iou: float
    num_missed: int
    num_images: int
    num_objects: int
    num_detections: int
    points: int
    iou_threshold: float
    confidence: float
    ground_truth_sha256: str = field(repr=False)

    @property
    def num_right(self) -> int:
        """True positives above the threshold on the score."""
        return sum(row.num_right for row in self.classes)

    @property
    def num_wrong(self) -> int:
        """False positives above it."""
        return sum(row.num_wrong for row in self.classes)

    def to_plain(self) -> dict[str, object]:
        """Return the numbers as plain data for JSON."""
        return {
            "metric": "darknet",
            **dataclasses.asdict(self),
            "classes": [dataclasses.asdict(c) for c in self.classes],
        }

    def to_text(self) -> str:
        """Return what Darknet's `map` prints, with as many digits."""
        how = f"{self.points} points" if self.points else "area under the curve"
        at = f"above a score of {self.confidence:g}"
        rows = [(c.name, f"{100 * c.ap:.2f}%", str(c.num_right), str(c.num_wrong)) for c in self.classes]
        return "\n".join(
            [
                f"{plural(self.num_images, 'image')}, {plural(self.num_objects, 'object')}, "
                f"{plural(self.num_detections, 'detection')}",
                f"ground truth as scored: sha256 {self.ground_truth_sha256}",
                "",
                f"Darknet mAP@{self.iou_threshold:.2f} ({how}) {self.mean_ap:.6f}, or {100 * self.mean_ap:.2f}%",
                f"{at}: precision {self.precision:.2f}, recall {self.recall:.2f}, F1 {self.f1:.2f}",
                f"{at}: TP {self.num_right}, FP {self.num_wrong}, FN {self.num_missed}, "
                f"average IoU {100 * self.mean_iou:.2f}%",
                "",
                *class_table(("class", "AP", "TP", "FP"), rows),
            ]
        )


@register("darknet")
class DarknetMetric(DetectionMetric):
    """The numbers of Darknet's `map`, of boxes as Darknet selects them."""

    @dataclass(frozen=True)
    class Config(MetricConfig):
        """Options of the metric.

        Attributes:
            points: recall levels of the AP: 0 for the area under the curve of precision and recall, or at least 2.
            match_iou: an overlap above it is a match, between 0 and 1.
        """

        points: int = 0
        match_iou: float = 0.5

        def __post_init__(self) -> None:
            _check_points(self.points)
            check_match_iou(self.match_iou)

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, truth: GroundTruth, results: Results) -> DarknetMap:
        """Return Darknet's numbers of detections, those of an image in Darknet's order."""
        return darknet_map(truth, results, points=self.config.points, iou_threshold=self.config.match_iou)

    def measure(
        self,
        predictor: Predictor,
        annotations: CocoAnnotations,
        config: EvaluateConfig,
        on_image: Callable[[int], None] = lambda done: None,
    ) -> tuple[DarknetMap, SplitDetections]:
        """Run a model over a split and return the numbers of its boxes as Darknet selects them, and those boxes."""
        found = darknet_results(predictor, annotations, darknet_selection(config), on_image)
        return self.score(found.truth, found.detections), found


def _check_points(points: int) -> None:
    if points < 0 or points == 1:
        raise ConfigError(f"Darknet's map: expected 0 or at least 2 points of recall, got {points}")


def darknet_map(
    truth: GroundTruth, results: Results, *, points: int = 0, iou_threshold: float = 0.5, confidence: float = 0.25
) -> DarknetMap:
    """Score detections as Darknet's `map` does.

    Args:
        truth: the objects; crowd regions count as what Darknet calls difficult.
        results: the detections, those of an image in Darknet's order (`darknet_results`).
        points: 0 for the area under the curve of precision and recall, otherwise the number of recalls to average over.
        iou_threshold: an overlap above it is a match.
        confidence: the threshold on the score of the counts.

    Raises:
        ConfigError: `points` is 1 or negative.
    """
    _check_points(points)
    objects, overlaps, is_removed = _matched(truth, results, np.float32(iou_threshold))
    kept = np.flatnonzero(~is_removed)
    objects, overlaps = objects[kept], overlaps[kept]
    scores, labels = results.scores[kept].astype(np.float32), results.category_ranks[kept]
    num_classes = len(truth.category_ids)
    num_wanted = np.bincount(truth.category_ranks[~truth.is_crowd], minlength=num_classes)

    by_score = np.argsort(-scores, kind="stable")
    is_right = is_first(objects[by_score])
    aps = [
        average_precision(is_right[labels[by_score] == label], int(num_wanted[label]), points)
        for label in range(num_classes)
    ]
    is_shown = scores > np.float32(confidence)
    is_hit = is_shown & is_first(objects)  # a hit of any score before it takes the object
    num_right = np.bincount(labels[is_hit], minlength=num_classes)
    num_wrong = np.bincount(labels[is_shown], minlength=num_classes) - num_right
    hits, shown, wanted = int(num_right.sum()), int(is_shown.sum()), int(num_wanted.sum())
    precision, recall = hits / shown if shown else 0.0, hits / wanted if wanted else 0.0
    return DarknetMap(
        mean_ap=sum(aps) / num_classes,
        classes=tuple(
            DarknetClass(*row)
            for row in zip(truth.class_names, aps, num_right.tolist(), num_wrong.tolist(), strict=True)
        ),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        mean_iou=float(overlaps[is_hit].sum(dtype=np.float64)) / shown if shown else 0.0,
        num_missed=wanted - hits,
        num_images=len(truth.image_ids),
        num_objects=wanted,
        num_detections=len(kept),
        points=points,
        iou_threshold=iou_threshold,
        confidence=confidence,
        ground_truth_sha256=truth.sha256,
    )


def _matched(
    truth: GroundTruth, results: Results, threshold: np.float32
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the object of each detection or -1, their overlap, and whether the detection is left out: (N,) each."""
    objects, overlaps = np.full(len(results), -1), np.zeros(len(results), np.float32)
    is_removed = np.zeros(len(results), np.bool_)
    boxes = _relative(results.boxes_xywh, truth.image_hw[results.image_ranks])
    truth_boxes = _relative(truth.boxes_xywh, truth.image_hw[truth.image_ranks])
    groups = results.image_ranks * len(truth.category_ids) + results.category_ranks
    truth_groups = truth.image_ranks * len(truth.category_ids) + truth.category_ranks
    by_group, truth_by_group = np.argsort(groups, kind="stable"), np.argsort(truth_groups, kind="stable")
    for found, group in shared_groups(groups[by_group], truth_groups[truth_by_group]):
        rows, truth_rows = by_group[found], truth_by_group[group]
        iou = _overlaps(boxes[rows], truth_boxes[truth_rows])
        is_crowd = truth.is_crowd[truth_rows]
        if not is_crowd.all():
            plain, plain_rows = iou[:, ~is_crowd], truth_rows[~is_crowd]
            best = plain.argmax(axis=1)  # the first of equals
            overlaps[rows] = plain.max(axis=1)
            objects[rows] = np.where(overlaps[rows] > threshold, plain_rows[best], -1)
        is_removed[rows] = (objects[rows] < 0) & (iou[:, is_crowd] > threshold).any(axis=1)
    return objects, overlaps, is_removed


def _relative(boxes_xywh: npt.NDArray[np.float64], image_hw: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return boxes in Darknet's form: centre, width and height in shares of the image, float32 (N, 4)."""
    width_height = np.maximum(image_hw[:, ::-1], 1)  # pixels where no size is known: overlaps have no unit
    centres, sizes = boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2, boxes_xywh[:, 2:]
    return np.concatenate([centres / width_height, sizes / width_height], axis=1).astype(np.float32)


def _overlaps(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the IoU of boxes (n, 4) and (m, 4), centre form: float32 (n, m), each step as in Darknet."""
    a, b = first[:, None], second[None]
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    sides = high - low
    shared = np.where((sides < 0).any(axis=2), np.float32(0), sides[..., 0] * sides[..., 1])
    union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - shared
    overlaps: npt.NDArray[np.float32] = np.zeros_like(shared)
    np.divide(shared, union, out=overlaps, where=(shared != 0) & (union != 0))
    return overlaps


def darknet_selection(config: SelectConfig) -> SelectConfig:
    """Return the selection of Darknet's `map`: the suppression of a configuration with Darknet's thresholds."""
    lowest = float(np.nextafter(_CANDIDATE, np.float32(1)))  # above the threshold, not at it
    return SelectConfig(
        lowest, _NMS_IOU, UNLIMITED, nms=config.nms, nms_beta=config.nms_beta, best_class=config.best_class
    )


def darknet_results(
    predictor: Predictor,
    annotations: CocoAnnotations,
    config: SelectConfig,
    on_image: Callable[[int], None] = lambda done: None,
) -> SplitDetections:
    """Return the detections that Darknet's `map` would score on a split, in its order.

    No box is clipped, and the number of detections is only limited by `selection.MAX_CANDIDATES` candidates per image.

    Args:
        predictor: the model; its category ids must be those of the split.
        annotations: the split.
        config: the selection, as `darknet_selection` returns it.
        on_image: called after each image with the number of images done.

    Raises:
        DatasetError: the split has a category that the model does not know.
    """
    require_known_categories(predictor, annotations)
    truth = GroundTruth.of_annotations(annotations)
    image_rank = {identifier: rank for rank, identifier in enumerate(truth.image_ids)}
    category_rank = {identifier: rank for rank, identifier in enumerate(truth.category_ids)}
    rank_of_label = np.array([category_rank.get(identifier, -1) for identifier in predictor.category_ids])
    images: list[npt.NDArray[np.int64]] = []
    labels: list[npt.NDArray[np.int64]] = []
    numbers: list[npt.NDArray[np.float64]] = []
    skipped: list[str] = []
    for done, (source, raw, error) in enumerate(predictor.stream_raw(annotated_sources(annotations)), start=1):
        if raw is None or source.image_id is None:
            skipped.append(error or source.name)
        else:
            boxes_xywh, scores, found = _of_image(raw, config)
            is_listed = rank_of_label[found] >= 0
            numbers.append(np.column_stack([boxes_xywh, scores])[is_listed])
            labels.append(rank_of_label[found[is_listed]])
            images.append(np.full(int(is_listed.sum()), image_rank[source.image_id]))
        on_image(done)
    columns = np.concatenate([np.zeros((0, 5)), *numbers])
    empty = np.zeros(0, np.int64)
    results = Results(np.concatenate([empty, *images]), np.concatenate([empty, *labels]), columns[:, :4], columns[:, 4])
    conditions = Conditions.of(predictor, config)
    return SplitDetections(conditions, truth, results, tuple(skipped))


def _of_image(
    raw: RawBoxes, config: SelectConfig
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return boxes xywh in source pixels (N, 4), scores and labels (N,) of an image after Darknet's suppression.

    Darknet sorts the boxes by the scores of one class after the other, each time starting with the order that the last
    sort left, and finally lists the classes of each box in order.
    """
    rows, labels = (t.cpu().numpy() for t in select_rows(raw.canvas_xyxy, raw.scores, config, raw.letterbox.resized_hw))
    scores = raw.scores.cpu().numpy()
    candidates = np.unique(rows)
    passing = np.where(scores[candidates] >= config.confidence, scores[candidates], 0)
    position = np.empty(len(scores), np.int64)
    position[candidates[np.lexsort((-passing).T)]] = np.arange(len(candidates))
    order = np.lexsort((labels, position[rows]))
    rows, labels = rows[order], labels[order]
    source_xyxy = raw.letterbox.boxes_to_source(raw.canvas_xyxy.cpu().numpy()[rows].astype(np.float64))
    return xyxy_to_xywh(source_xyxy), scores[rows, labels].astype(np.float64), labels
