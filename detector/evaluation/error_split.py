"""Split of the loss of AP50 by kind of error: each false positive and each missed object has one kind.

The kinds and their order are those of TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object
Detection Errors", section 2 and its program). A false positive has the first kind that applies:

1. localisation: it overlaps an object of its class by 0.1 to 0.5;
2. classification: it overlaps an object of another class by at least 0.5;
3. duplicate: it overlaps an object of its class by at least 0.5, which a better detection took;
4. background: it overlaps no object by more than 0.1;
5. both: all others, badly placed and of the wrong class.

Missed objects are objects that are neither detected nor the target of a localisation or classification error. Matching
is COCO's, with at most 100 detections of a class in an image, so that the AP50 is the one that evaluation prints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask

from detector.evaluation.ranking import Flags, Floats, Integers, Ranking, mean_precision, weighted_precision
from detector.evaluation.scoring_arrays import GroundTruth, Results, shared_groups

# The order of the kinds is that of the table in the paper; RIGHT and IGNORED are not errors.
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED, RIGHT, IGNORED = range(8)
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # t_f and t_b of the paper
_AT_50 = 0


@dataclass(frozen=True, eq=False)
class ErrorSplit:
    """Errors of a set of detections; D detections in the order of a `Ranking`, A objects.

    Attributes:
        kinds: int8 (D,), the kind of each detection: an index of `KINDS`, `RIGHT` or `IGNORED`.
        objects: int64 (D,), the object that a right detection matches or that an error refers to; -1 for background.
        overlaps: float64 (D,), the overlap with that object; with the nearest of any class for background.
        is_missed: bool (A,), objects that are not detected and that no error refers to.
        is_found: bool (A,), objects that are detected.
        counts: number of errors of each kind, by name.
        costs: AP50 gained by fixing one kind of error alone, by name.
        ap50: AP50 of the set as it is.
        false_positives_cost: AP50 gained by removing all false positives.
        false_negatives_cost: AP50 gained by removing the objects that are not detected from the ground truth.
    """

    kinds: npt.NDArray[np.int8]
    objects: Integers
    overlaps: Floats
    is_missed: Flags
    is_found: Flags
    counts: dict[str, int]
    costs: dict[str, float]
    ap50: float
    false_positives_cost: float
    false_negatives_cost: float


def split_errors(truth: GroundTruth, results: Results, ranking: Ranking) -> ErrorSplit:
    """Split the errors of results, which `ranking` holds in the order of `Ranking.of`."""
    kinds, objects, overlaps, is_found = _kinds(truth, results, ranking)
    is_mendable = np.isin(kinds, (CLASSIFICATION, LOCALISATION))
    is_wanted = ~truth.is_crowd
    is_missed = is_wanted & ~is_found
    is_missed[objects[is_mendable]] = False
    counts = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS[:MISSED])}
    counts[KINDS[MISSED]] = int(is_missed.sum())

    scene = _Scene(truth, ranking, kinds)
    ap50 = scene.ap50(np.ones(len(kinds), np.bool_))
    costs: dict[str, float] = {}
    for kind, name in enumerate(KINDS[:MISSED]):
        is_mended = kinds == kind
        if kind in (CLASSIFICATION, LOCALISATION):
            is_free = ~np.append(is_found, True)[objects]  # the last stands for no object
            best = _best_of_each_object(is_mended & is_free, objects, ranking.scores)
            labels = scene.labels.copy()
            labels[best] = truth.category_ranks[objects[best]]  # only a wrong class changes
            is_right = scene.is_right.copy()
            is_right[best] = True
            costs[name] = scene.ap50(~is_mended | best, is_right=is_right, labels=labels) - ap50
        else:
            costs[name] = scene.ap50(~is_mended) - ap50
    costs[KINDS[MISSED]] = scene.ap50(np.ones(len(kinds), np.bool_), is_asked=is_wanted & ~is_missed) - ap50
    everything = np.ones(len(kinds), np.bool_)
    return ErrorSplit(
        kinds=kinds,
        objects=objects,
        overlaps=overlaps,
        is_missed=is_missed,
        is_found=is_found,
        counts=counts,
        costs=costs,
        ap50=ap50,
        false_positives_cost=scene.ap50(np.isin(kinds, (RIGHT, IGNORED))) - ap50,
        false_negatives_cost=scene.ap50(everything, is_asked=is_found) - ap50,
    )


def _kinds(
    truth: GroundTruth, results: Results, ranking: Ranking
) -> tuple[npt.NDArray[np.int8], Integers, Floats, Flags]:
    """Return kind, object and overlap of each detection, and which objects are detected."""
    num = len(ranking.rows)
    kinds, overlaps = np.full(num, BACKGROUND, np.int8), np.zeros(num)
    objects = ranking.truth_rows[_AT_50].astype(np.int64)
    is_right, is_ignored = ranking.is_right[_AT_50], ranking.is_ignored[_AT_50]
    kinds[is_right], kinds[is_ignored] = RIGHT, IGNORED
    is_found = np.zeros(len(truth.areas), np.bool_)
    is_found[objects[is_right]] = True
    wanted = np.flatnonzero(~truth.is_crowd)
    wanted = wanted[np.argsort(truth.image_ranks[wanted], kind="stable")]
    by_image = np.argsort(ranking.units, kind="stable")
    for own, group in shared_groups(ranking.units[by_image], truth.image_ranks[wanted]):
        places, present = by_image[own], wanted[group]
        boxes, no_crowds = results.boxes_xywh[ranking.rows[places]], np.zeros(len(present), np.uint8)
        iou = np.nan_to_num(mask.iou(boxes, truth.boxes_xywh[present], no_crowds))
        is_same = ranking.labels[places][:, None] == truth.category_ranks[present]
        right = is_right[places]
        found = np.searchsorted(present, objects[places][right])
        overlaps[places[right]] = iou[right, found]
        wrong = np.flatnonzero(~right & ~is_ignored[places])
        iou, is_same = iou[wrong], is_same[wrong]
        same, other = iou * is_same, iou * ~is_same
        taken = same * is_found[present]
        at = np.arange(len(wrong))
        nearest = [part.argmax(axis=1) for part in (same, other, taken, iou)]
        same, other, taken, iou = (p[at, n] for p, n in zip((same, other, taken, iou), nearest, strict=True))
        conditions = [
            (same >= BACKGROUND_IOU) & (same <= FOREGROUND_IOU),
            other >= FOREGROUND_IOU,
            taken >= FOREGROUND_IOU,
            iou <= BACKGROUND_IOU,
        ]
        kinds[places[wrong]] = np.select(conditions, [LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
        choice = np.select(conditions, nearest, nearest[3])
        objects[places[wrong]] = np.where(conditions[3] & ~np.any(conditions[:3], axis=0), -1, present[choice])
        overlaps[places[wrong]] = np.select(conditions, [same, other, taken, iou], iou)
    return kinds, objects, overlaps, is_found


def _best_of_each_object(is_candidate: Flags, objects: Integers, scores: Floats) -> Flags:
    """Return the candidates of highest score among all that refer to the same object: bool (D,)."""
    places = np.flatnonzero(is_candidate)
    places = places[np.argsort(-scores[places], kind="stable")]
    best = np.zeros(len(objects), np.bool_)
    _, first = np.unique(objects[places], return_index=True)
    best[places[first]] = True
    return best


class _Scene:
    """Set of detections that is scored again after some errors are fixed."""

    def __init__(self, truth: GroundTruth, ranking: Ranking, kinds: npt.NDArray[np.int8]) -> None:
        self.labels, self.is_right = ranking.labels, kinds == RIGHT
        self._truth, self._ranking, self._is_ignored = truth, ranking, kinds == IGNORED

    def ap50(
        self,
        is_kept: Flags,
        is_right: Flags | None = None,
        labels: Integers | None = None,
        is_asked: Flags | None = None,
    ) -> float:
        """Return AP50 of the kept detections, over the classes with an object asked for or a detection."""
        is_right = self.is_right if is_right is None else is_right
        labels = self.labels if labels is None else labels
        is_asked = ~self._truth.is_crowd if is_asked is None else is_asked
        ranking = self._ranking
        kept = np.flatnonzero(is_kept)
        order = kept[np.lexsort((-ranking.scores[kept], labels[kept]))]
        asked = np.flatnonzero(is_asked)
        asked = asked[np.argsort(self._truth.category_ranks[asked], kind="stable")]
        classes = np.arange(len(ranking.class_ends))
        changed = Ranking(
            class_ends=np.searchsorted(labels[order], classes, side="right"),
            units=ranking.units[order],
            scores=ranking.scores[order],
            rows=ranking.rows[order],
            truth_rows=np.where(is_right, 0, -1).astype(np.int32)[None, order],
            is_ignored=self._is_ignored[None, order],
            object_images=self._truth.image_ranks[asked],
            object_ends=np.searchsorted(self._truth.category_ranks[asked], classes, side="right"),
            num_images=ranking.num_images,
        )
        ones = np.ones((1, ranking.num_images), np.int32)
        precision = weighted_precision(changed, ones, ones)[0, 0]
        # No object of a class is asked for if all of them were missed; its remaining detections are all wrong.
        has_only_wrong = (precision[0] < 0) & (np.diff(changed.class_ends, prepend=0) > 0)
        had_objects = ranking.num_objects > 0
        precision[:, has_only_wrong & had_objects] = 0
        return mean_precision(precision)
