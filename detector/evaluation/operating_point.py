"""Thresholds of a model: chosen on a split, stored in its file, used by prediction on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.errors import CheckpointError, ConfigError, DatasetError
from detector.evaluation.confidence import Target, choose_thresholds
from detector.evaluation.ranking import Ranking
from detector.evaluation.scoring_arrays import GroundTruth
from detector.export.export_config import target_of
from detector.models.checkpoint import ModelFile
from detector.structures.selection import SelectConfig

BEST, BEST_OVERALL = "best", "best-overall"  # options of prediction: a threshold for each class, or one for all


@dataclass(frozen=True)
class OperatingPoint:
    """Lowest scores at which a model's detections are shown.

    Attributes:
        target: the target that the thresholds were chosen for, in words.
        overall: one threshold for all classes.
        by_class: one for each class, in the order of the model's class indices; a class without objects or detections
            to choose it on has the overall one.
        num_images: number of images that they were chosen on.
        ground_truth_sha256: the hash of the ground truth that they were chosen on, as scored.
        is_reached: for each class whether its threshold reaches the target; empty in files of older versions.
    """

    target: str
    overall: float
    by_class: tuple[float, ...]
    num_images: int
    ground_truth_sha256: str
    is_reached: tuple[bool, ...] = ()

    @classmethod
    def chosen(
        cls, truth: GroundTruth, ranking: Ranking, target: Target, category_ids: Sequence[int]
    ) -> OperatingPoint:
        """Return the best thresholds for a target on a split.

        Args:
            truth: the split.
            ranking: the model's detections on it.
            target: the target.
            category_ids: the id in that split of each class of the model.

        Raises:
            DatasetError: there is no object or no detection to choose them on.
        """
        overall, by_class = choose_thresholds(ranking, target)
        if overall is None:
            raise DatasetError(
                "thresholds: expected objects and detections to choose them on, got none; use another split"
            )
        known = dict(zip(truth.category_ids, by_class, strict=True))
        chosen = [known.get(category_id) or overall for category_id in category_ids]
        return cls(
            target=str(target),
            overall=overall.confidence,
            by_class=tuple(threshold.confidence for threshold in chosen),
            num_images=len(truth.image_ids),
            ground_truth_sha256=truth.sha256,
            is_reached=tuple(threshold.is_reached for threshold in chosen),
        )

    @classmethod
    def of_file(cls, file: ModelFile, who: str) -> OperatingPoint:
        """Return the thresholds that a model file holds.

        Raises:
            ConfigError: it holds none.
            CheckpointError: they are not one number within 0..1 for each class.
        """
        if not file.operating_point:
            is_export = target_of(Path(who)) is not None
            again = ", WEIGHTS being the model file it was made of, then export FILE" if is_export else ""
            raise ConfigError(
                f"{who} holds no thresholds; store some with detector evaluate {'WEIGHTS' if is_export else who} "
                f"--store-thresholds FILE{again}"
            )
        found = cls._read(file.operating_point)
        if found is None or len(found.by_class) != len(file.class_names):
            raise CheckpointError(
                f"{who}: expected a threshold within 0..1 for each of its {len(file.class_names)} classes, got "
                f"{file.operating_point!r:.80}; store them again with detector evaluate --store-thresholds FILE"
            )
        return found

    @classmethod
    def _read(cls, plain: Mapping[str, object]) -> OperatingPoint | None:
        overall, by_class = plain.get("overall"), plain.get("by_class")
        values: list[Any] = [overall, *by_class] if isinstance(by_class, (list, tuple)) else [None]
        if not all(type(v) in (int, float) and 0 <= v <= 1 for v in values):
            return None
        overall, *others = map(float, values)
        num_images, is_reached = plain.get("num_images"), plain.get("is_reached")
        return cls(
            target=str(plain.get("target", "")),
            overall=overall,
            by_class=tuple(others),
            num_images=num_images if isinstance(num_images, int) else 0,
            ground_truth_sha256=str(plain.get("ground_truth_sha256", "")),
            is_reached=tuple(map(bool, is_reached)) if isinstance(is_reached, (list, tuple)) else (),
        )

    def reached(self) -> dict[int, float]:
        """Return the thresholds that reach the target, by class index."""
        pairs = zip(self.by_class, self.is_reached or [True] * len(self.by_class), strict=False)
        return {label: value for label, (value, is_reached) in enumerate(pairs) if is_reached}

    def to_plain(self) -> dict[str, object]:
        """Return the thresholds as plain data for a model file."""
        return dataclasses.asdict(self)

    def applied(self, config: SelectConfig, which: str = BEST) -> SelectConfig:
        """Return a selection with these thresholds, `best` or `best-overall`, in place of its own."""
        if which == BEST_OVERALL:
            return dataclasses.replace(config, confidence=self.overall, class_confidence=None)
        return dataclasses.replace(config, confidence=min(self.by_class), class_confidence=self.by_class)
