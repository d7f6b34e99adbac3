"""AP as Pascal VOC's development kit computes it, to compare with papers that report it.

Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", section 4.2; the kit's VOCevaldet.m. Each
detection, in the order of falling scores, belongs to the object of its class and image that it overlaps most. It is
right if it overlaps that object by at least the threshold and is the first to do so. Difficult objects need not be
detected, and a detection of one is neither right nor wrong.

Boxes are continuous here. The kit's boxes include the pixels at both ends, which is the same if its corners (xmin,
ymin, xmax, ymax) were converted to the box (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pycocotools import mask

from detector.config.registry import register
from detector.errors import ConfigError
from detector.evaluation.coco_metrics import as_plain
from detector.evaluation.detection_metric import DetectionMetric, MetricConfig
from detector.evaluation.number_text import class_table, number_text, with_note
from detector.evaluation.scoring_arrays import GroundTruth, Results, shared_groups
from detector.io.nouns import plural


@dataclass(frozen=True)
class VocClass:
    """Name of one class, its AP (NaN without objects) and number of objects, difficult ones excluded."""

    name: str
    ap: float
    num_objects: int


@dataclass(frozen=True)
class VocMetrics:
    """Pascal VOC's numbers of one set of detections.

    Attributes:
        mean_ap: mean AP over the classes that have objects; NaN without any.
        classes: the numbers of each class.
        points: recall levels of the AP: 11 as until 2009, 0 for the area under the curve as since 2010.
        iou_threshold: lowest overlap of a match.
        num_images: images evaluated.
        num_objects: ground-truth objects, difficult ones excluded.
        num_difficult: difficult objects: crowd regions of the annotation file.
        num_detections: detections given.
        ground_truth_sha256: the hash of the ground truth as scored, `GroundTruth.sha256`.
    """

    mean_ap: float
    classes: tuple[VocClass, ...]
    points: int
    iou_threshold: float
    num_images: int
    num_objects: int
    num_difficult: int
    num_detections: int
    ground_truth_sha256: str = field(repr=False)

    def to_plain(self) -> dict[str, object]:
        """Return the numbers as plain data for JSON; a number that does not exist is None."""
        return as_plain({"metric": "voc", **dataclasses.asdict(self)})

    def to_text(self) -> str:
        """Return Pascal VOC's mean AP and the AP of each class as text."""
        how = f"{self.points}-point" if self.points else "area under the curve"
        rows = [(c.name, number_text(c.ap, 4), str(c.num_objects)) for c in self.classes]
        lines = [
            f"{plural(self.num_images, 'image')}, {plural(self.num_objects, 'object')}, "
            f"{self.num_difficult} difficult, {plural(self.num_detections, 'detection')}",
            f"ground truth as scored: sha256 {self.ground_truth_sha256}",
            "",
            f"Pascal VOC mAP ({how}, IoU {self.iou_threshold:g}) {number_text(self.mean_ap, 4)}",
            "",
            *class_table(("class", "AP", "objects"), rows),
        ]
        return with_note("\n".join(lines))


@register("voc")
class VocMetric(DetectionMetric):
    """AP as Pascal VOC's development kit computes it."""

    @dataclass(frozen=True)
    class Config(MetricConfig):
        """Options of the metric.

        Attributes:
            points: recall levels of the AP: 0 for the area under the curve of precision and recall, or 11.
            match_iou: lowest overlap of a match, between 0 and 1.
        """

        points: int = 0
        match_iou: float = 0.5

        def __post_init__(self) -> None:
            _check_points(self.points)
            check_match_iou(self.match_iou)

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, truth: GroundTruth, results: Results) -> VocMetrics:
        """Return Pascal VOC's numbers of detections."""
        return voc_map(truth, results, points=self.config.points, iou_threshold=self.config.match_iou)


def check_match_iou(match_iou: float) -> None:
    """Reject an overlap of a match outside of 0..1.

    Raises:
        ValueError: the overlap is 0 or less, or 1 or more.
    """
    if not 0 < match_iou < 1:
        raise ValueError(f"match_iou: expected a number between 0 and 1, got {match_iou:g}")


def _check_points(points: int) -> None:
    if points not in (0, 11):
        raise ConfigError(
            f"Pascal VOC's AP: expected 11 points of recall, or 0 for the area under the curve, got {points}"
        )


def voc_map(truth: GroundTruth, results: Results, *, points: int = 0, iou_threshold: float = 0.5) -> VocMetrics:
    """Score detections as Pascal VOC does.

    Args:
        truth: the objects; crowd regions count as difficult objects.
        results: the detections.
        points: 0 for the area under the curve of precision and recall, 11 for the mean at the recalls 0, 0.1 .. 1.
        iou_threshold: lowest overlap of a match.

    Raises:
        ConfigError: `points` is neither 0 nor 11.
    """
    _check_points(points)
    order = np.argsort(-results.scores, kind="stable")
    objects = _best_object(truth, results, iou_threshold)[order]
    is_difficult = (objects >= 0) & truth.is_crowd[objects] if len(truth.is_crowd) else np.zeros(len(order), np.bool_)
    is_right = is_first(objects) & ~is_difficult
    labels = results.category_ranks[order]
    num_wanted = np.bincount(truth.category_ranks[~truth.is_crowd], minlength=len(truth.category_ids)).tolist()
    aps = [
        average_precision(is_right[(labels == label) & ~is_difficult], wanted, points) if wanted else float("nan")
        for label, wanted in enumerate(num_wanted)
    ]
    known = [ap for ap, wanted in zip(aps, num_wanted, strict=True) if wanted]
    return VocMetrics(
        mean_ap=float(np.mean(known)) if known else float("nan"),
        classes=tuple(VocClass(*row) for row in zip(truth.class_names, aps, num_wanted, strict=True)),
        points=points,
        iou_threshold=iou_threshold,
        num_images=len(truth.image_ids),
        num_objects=sum(num_wanted),
        num_difficult=int(truth.is_crowd.sum()),
        num_detections=len(results),
        ground_truth_sha256=truth.sha256,
    )


def average_precision(is_right: npt.NDArray[np.bool_], num_wanted: int, points: int) -> float:
    """Return the AP of the detections of one class, in the order of falling scores: bool (n,).

    With `points` 0 it is the area under the curve of the highest precision at or beyond each recall (Pascal VOC since
    2010), otherwise the mean of that precision at as many recalls from 0 to 1 (11 in Pascal VOC until 2009).
    """
    if not num_wanted or not len(is_right):
        return 0.0
    num_right = np.cumsum(is_right)
    recall = num_right / num_wanted
    precision = np.maximum.accumulate((num_right / np.arange(1, len(is_right) + 1))[::-1])[::-1]
    if points:
        reached = np.searchsorted(recall, np.arange(points) / (points - 1))
        return float(precision[reached[reached < len(recall)]].sum() / points)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def is_first(objects: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which detections are the first to match their object, int64 (n,), -1 for no object: bool (n,)."""
    first = np.zeros(len(objects), np.bool_)
    first[np.unique(objects, return_index=True)[1]] = True
    return first & (objects >= 0)


def _best_object(truth: GroundTruth, results: Results, threshold: float) -> npt.NDArray[np.int64]:
    """Return the object of its class and image that each detection overlaps most, by at least the threshold, or -1."""
    best = np.full(len(results), -1)
    groups = results.image_ranks * len(truth.category_ids) + results.category_ranks
    truth_groups = truth.image_ranks * len(truth.category_ids) + truth.category_ranks
    by_group, truth_by_group = np.argsort(groups, kind="stable"), np.argsort(truth_groups, kind="stable")
    for found, group in shared_groups(groups[by_group], truth_groups[truth_by_group]):
        rows, objects = by_group[found], truth_by_group[group]
        is_crowd = np.zeros(len(objects), np.uint8)  # a difficult object is measured like any other
        overlaps = mask.iou(results.boxes_xywh[rows], truth.boxes_xywh[objects], is_crowd)
        best[rows] = np.where(overlaps.max(axis=1) >= threshold, objects[overlaps.argmax(axis=1)], -1)
    return best
