"""Analysis of one set of detections beyond its COCO numbers: errors, uncertainty, thresholds, calibration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from detector.evaluation.coco_metrics import as_plain
from detector.evaluation.confidence import Calibration, RankedScores, Target, Threshold, calibrate, choose_thresholds
from detector.evaluation.confusion import confusion_matrix
from detector.evaluation.error_split import ErrorSplit, split_errors
from detector.evaluation.matching import match
from detector.evaluation.precision_recall import AREA_NAMES
from detector.evaluation.ranking import Integers, Ranking
from detector.evaluation.resampling import NUM_RESAMPLES, Bootstrap, bootstrap
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.evaluation.slices import Slice, aspect_slices, crowding_slices, overlap_slices, size_slices
from detector.evaluation.worst_errors import Mistake, confident_false_positives, missed_objects, suspect_labels

LOWEST_SHOWN = 0.25  # lowest score that prediction shows by default; calibration is also computed from it on
_WITHOUT_THRESHOLD = 0.5  # confidence of sets without objects or detections, where no threshold can be chosen


@dataclass(frozen=True, eq=False)
class Analysis:
    """Errors of a set of detections and the uncertainty of its numbers.

    Attributes:
        truth: the ground truth.
        results: the detections.
        ranking: the same, matched and ranked.
        intervals: intervals of AP and of AP of small objects over images.
        errors: kind and cost of every error.
        target: the target that the thresholds are chosen for.
        overall: the threshold of all classes together; None without objects or detections.
        by_class: the threshold of each class.
        calibration: calibration of all detections.
        calibration_shown: calibration of the detections with a score of at least `LOWEST_SHOWN`.
        confidence: lowest score of confusion and missed objects: the overall threshold.
        confusion: int64 (C + 1, C + 1), as `confusion_matrix` returns it.
        slices: groups of objects, by the property that they are grouped by.
        false_positives: the most confident false positives.
        missed: the largest missed objects.
        suspects: labels that may be wrong.
    """

    truth: GroundTruth
    results: Results
    ranking: Ranking
    intervals: Bootstrap
    errors: ErrorSplit
    target: Target
    overall: Threshold | None
    by_class: tuple[Threshold | None, ...]
    calibration: Calibration
    calibration_shown: Calibration
    confidence: float
    confusion: Integers
    slices: dict[str, tuple[Slice, ...]]
    false_positives: tuple[Mistake, ...]
    missed: tuple[Mistake, ...]
    suspects: tuple[Mistake, ...]

    def to_plain(self) -> dict[str, object]:
        """Return the analysis as plain data for JSON; a number that does not exist is None."""
        names = self.truth.class_names
        intervals, errors = self.intervals, self.errors
        plain = as_plain(
            {
                "intervals": {
                    **{name: dataclasses.asdict(interval) for name, interval in intervals.stats.items()},
                    "classes": {
                        n: dataclasses.asdict(interval) for n, interval in zip(names, intervals.class_ap, strict=True)
                    },
                    "level": intervals.level,
                    "num_resamples": intervals.num_resamples,
                    "seed": intervals.seed,
                },
                "errors": {
                    "AP50": errors.ap50,
                    "counts": errors.counts,
                    "costs": errors.costs,
                    "false_positives_cost": errors.false_positives_cost,
                    "false_negatives_cost": errors.false_negatives_cost,
                },
                "thresholds": {
                    "target": str(self.target),
                    "overall": _plain_threshold(self.overall),
                    "classes": {n: _plain_threshold(t) for n, t in zip(names, self.by_class, strict=True)},
                },
                "calibration": self.calibration.to_plain(),
                "calibration_shown": self.calibration_shown.to_plain(),
                "confusion": {
                    "confidence": self.confidence,
                    "annotated_as": [*names, None],
                    "detected_as": [*names, None],
                    "counts": self.confusion.tolist(),
                },
                "slices": {what: [dataclasses.asdict(s) for s in parts] for what, parts in self.slices.items()},
            }
        )
        return plain


def _plain_threshold(threshold: Threshold | None) -> dict[str, object] | None:
    return None if threshold is None else dataclasses.asdict(threshold)


def analyse(
    truth: GroundTruth,
    results: Results,
    target: Target | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Analyse detections.

    Args:
        truth: the ground truth.
        results: the detections, down to low scores.
        target: the target that thresholds are chosen for; by default the best F1.
        num_resamples: number of sets drawn for the intervals.
        seed: seed of that draw.
    """
    target = target or Target()
    matches = match(truth, results)
    ranking, small = (Ranking.of(truth, results, matches, AREA_NAMES.index(name)) for name in ("all", "small"))
    errors = split_errors(truth, results, ranking)
    overall, by_class = choose_thresholds(ranking, target)
    confidence = _WITHOUT_THRESHOLD if overall is None else overall.confidence
    counts = RankedScores.of(ranking)
    return Analysis(
        truth=truth,
        results=results,
        ranking=ranking,
        intervals=bootstrap(ranking, small, num_resamples=num_resamples, seed=seed),
        errors=errors,
        target=target,
        overall=overall,
        by_class=by_class,
        calibration=calibrate(counts),
        calibration_shown=calibrate(counts, LOWEST_SHOWN),
        confidence=confidence,
        confusion=confusion_matrix(truth, results, ranking, confidence),
        slices={
            "size": size_slices(truth, results),
            "aspect": aspect_slices(truth, results),
            "crowding": crowding_slices(truth, ranking),
            "overlap": overlap_slices(truth, ranking),
        },
        false_positives=confident_false_positives(truth, results, ranking, errors),
        missed=missed_objects(truth, ranking, confidence),
        suspects=suspect_labels(truth, results),
    )
