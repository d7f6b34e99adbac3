"""COCO's numbers as a registered metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from detector.config.registry import register
from detector.data.coco import CocoAnnotations
from detector.evaluation.coco_metrics import Backend, CocoMetrics, score_results
from detector.evaluation.detection_metric import DetectionMetric, MetricConfig
from detector.evaluation.evaluator import EvaluateConfig, SplitDetections, detect_split
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.inference.predictor import Predictor


@register("coco")
class CocoMetric(DetectionMetric):
    """The twelve COCO numbers and AP per class."""

    has_report: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Config(MetricConfig):
        """Options of the metric; None takes the value of the experiment, or its default for a results file.

        Attributes:
            backend: `pycocotools`, or `fast` for the same bits in a fraction of the time; `auto` is `fast`.
            limits: numbers of detections per class and image to give AP for besides COCO's 100.
        """

        backend: Backend | None = None
        limits: tuple[int, ...] | None = None

        def __post_init__(self) -> None:
            if min(self.limits or (), default=1) < 1:
                raise ValueError(f"limits: expected numbers of at least 1, got {list(self.limits or ())}")

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, truth: GroundTruth, results: Results) -> CocoMetrics:
        """Return COCO's numbers of detections."""
        return self._score(truth, results, EvaluateConfig())

    def measure(
        self,
        predictor: Predictor,
        annotations: CocoAnnotations,
        config: EvaluateConfig,
        on_image: Callable[[int], None] = lambda done: None,
    ) -> tuple[CocoMetrics, SplitDetections]:
        """Run a model over a split and return its numbers and its detections, as `DetectionMetric.measure` does."""
        found = detect_split(predictor, annotations, config, on_image)
        return self._score(found.truth, found.detections, config), found

    def overrides(self) -> list[str]:
        """Return the keys of the section `evaluate` that the options set."""
        keys = {"backend": self.config.backend, "other_limits": self.config.limits}
        return [
            f"evaluate.{key}={list(value) if isinstance(value, tuple) else value}"
            for key, value in keys.items()
            if value is not None
        ]

    def _score(self, truth: GroundTruth, results: Results, config: EvaluateConfig) -> CocoMetrics:
        backend = config.backend if self.config.backend is None else self.config.backend
        limits = config.other_limits if self.config.limits is None else self.config.limits
        return score_results(truth, results, backend=backend, other_limits=limits)
