"""The contract of a detection metric: it turns ground truth and detections into numbers.

A metric is one file in this folder, or a file given with `--import`; `detector evaluate --metric NAME` uses it.
CONTRIBUTING.md leads to an example.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from detector.config.registry import PartConfig
from detector.data.coco import CocoAnnotations
from detector.evaluation.evaluator import EvaluateConfig, SplitDetections, detect_split
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.inference.predictor import Predictor


@dataclass(frozen=True)
class MetricConfig(PartConfig["DetectionMetric"]):
    """Base class of the options of a metric.

    The fields `backend`, `limits`, `points` and `match_iou` are set by the options of `detector evaluate` of these
    names; every field needs a default.
    """

    folders = ("evaluation",)


class MetricNumbers(Protocol):
    """Numbers that a metric computed."""

    def to_plain(self) -> dict[str, object]:
        """Return the numbers as plain data for JSON; the key `metric` names the metric."""

    def to_text(self) -> str:
        """Return the numbers as text for people."""


class DetectionMetric(abc.ABC):
    """Metric of detections, constructed from its config.

    Attributes:
        has_report: whether the report of `detector evaluate` and the thresholds stored with a model, which follow
            COCO's matching, belong to the metric; the numbers are then `CocoMetrics`.
    """

    has_report: ClassVar[bool] = False

    @abc.abstractmethod
    def score(self, truth: GroundTruth, results: Results) -> MetricNumbers:
        """Return the numbers of detections.

        Args:
            truth: the ground truth.
            results: the detections, as a results file holds them.
        """

    def measure(
        self,
        predictor: Predictor,
        annotations: CocoAnnotations,
        config: EvaluateConfig,
        on_image: Callable[[int], None] = lambda done: None,
    ) -> tuple[MetricNumbers, SplitDetections]:
        """Run a model over a split and return its numbers and the detections that they were computed from.

        The detections are those that `config` selects. A metric that scores another selection of the model's boxes
        overrides this method.

        Args:
            predictor: the model; its category ids must be those of the split.
            annotations: the split.
            config: the section `evaluate` of the experiment.
            on_image: called after each image with the number of images done.

        Raises:
            DatasetError: the split has a category that the model does not know.
        """
        found = detect_split(predictor, annotations, config, on_image)
        return self.score(found.truth, found.detections), found

    def overrides(self) -> list[str]:
        """Return the overrides of the experiment that the options of the metric stand for; by default none."""
        return []
