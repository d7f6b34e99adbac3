"""Single mistakes to review: confident false positives, missed large objects, labels that may be wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from detector.evaluation.error_split import (
    BACKGROUND,
    BACKGROUND_IOU,
    CLASSIFICATION,
    FOREGROUND_IOU,
    KINDS,
    LOCALISATION,
    MISSED,
    ErrorSplit,
)
from detector.evaluation.ranking import Flags, Integers, Ranking
from detector.evaluation.scoring_arrays import GroundTruth, Results


@dataclass(frozen=True)
class Mistake:
    """Wrong detection, missed object or label that may be wrong.

    Attributes:
        kind: one of `KINDS`.
        image: the index of the image in the ground truth, by ascending id.
        image_id: the id of the image.
        score: score of the detection; None for a missed object.
        detected_as: class of the detection; None for a missed object.
        detected_xywh: box of the detection, source pixels; None for a missed object.
        labelled_as: class of the object that it refers to; None if it refers to none.
        labelled_xywh: box of that object, source pixels; None if it refers to none.
        overlap: IoU of the two boxes; None if one is missing.
        advice: question to answer about the label; empty for mistakes of the model.
    """

    kind: str
    image: int
    image_id: int
    score: float | None
    detected_as: str | None
    detected_xywh: tuple[float, ...] | None
    labelled_as: str | None
    labelled_xywh: tuple[float, ...] | None
    overlap: float | None
    advice: str = ""

    def to_plain(self) -> dict[str, object]:
        """Return the mistake as plain data, boxes as lists."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items() if key != "image"}
        return plain


def confident_false_positives(
    truth: GroundTruth, results: Results, ranking: Ranking, split: ErrorSplit, num_each: int = 6
) -> tuple[Mistake, ...]:
    """Return the false positives of highest score, at most `num_each` of each kind."""
    found: list[Mistake] = []
    for kind in range(MISSED):
        places = np.flatnonzero(split.kinds == kind)
        best = places[np.argsort(-ranking.scores[places], kind="stable")][:num_each]
        found += [_of_detection(truth, results, ranking, split, int(place)) for place in best]
    return tuple(found)


def missed_objects(truth: GroundTruth, ranking: Ranking, confidence: float, num: int = 12) -> tuple[Mistake, ...]:
    """Return the largest objects without a match at IoU 0.5 of at least the confidence, largest first."""
    is_shown = ranking.is_right[0] & (ranking.scores >= confidence)
    is_missed = ~truth.is_crowd
    is_missed[ranking.truth_rows[0, is_shown]] = False
    rows = np.flatnonzero(is_missed)
    largest = rows[np.argsort(-truth.areas[rows], kind="stable")][:num]
    return tuple(_of_object(truth, int(row)) for row in largest)


def suspect_labels(
    truth: GroundTruth, results: Results, ranking: Ranking, split: ErrorSplit, confidence: float, num: int = 100
) -> tuple[Mistake, ...]:
    """Return places where the annotation, not the model, may be wrong; the most likely first.

    First come detections of at least the confidence, by falling score: on no object (a missing label?), on an object of
    another class that no detection of its own class matches (another class?), or partly on an object that no detection
    matches (another box?). Then come objects that no detection of any class and score overlaps, largest first (is there
    an object?).

    Args:
        truth: the ground truth.
        results: the detections.
        ranking: the same, ranked.
        split: their errors.
        confidence: lowest score of a detection that contradicts a label.
        num: largest number of places.
    """
    is_about_unfound = (split.objects >= 0) & ~np.append(split.is_found, True)[split.objects]
    is_contradiction = np.isin(split.kinds, (CLASSIFICATION, LOCALISATION)) & is_about_unfound
    places = np.flatnonzero((ranking.scores >= confidence) & ((split.kinds == BACKGROUND) | is_contradiction))
    places = places[np.argsort(-ranking.scores[places], kind="stable")]
    suspects = []
    for place in _apart(results, ranking, places, num):
        mistake = _of_detection(truth, results, ranking, split, place)
        advice = {
            "background": f"is a label of class {mistake.detected_as} missing here?",
            "classification": f"is this {mistake.labelled_as} of class {mistake.detected_as}?",
            "localisation": f"is the box of this {mistake.labelled_as} in the right place?",
        }[mistake.kind]
        suspects.append(Mistake(**{**vars(mistake), "advice": advice}))
    rows = np.flatnonzero(split.is_missed & ~_touched(truth, results))
    largest = rows[np.argsort(-truth.areas[rows], kind="stable")]
    for row in largest[: max(num - len(suspects), 0)].tolist():
        mistake = _of_object(truth, row)
        suspects.append(Mistake(**{**vars(mistake), "advice": f"is anything of class {mistake.labelled_as} here?"}))
    return tuple(suspects)


def _apart(results: Results, ranking: Ranking, places: Integers, num: int) -> list[int]:
    """Return the first places, best first, without those that overlap a better one in the same image."""
    kept: dict[int, list[int]] = {}
    chosen: list[int] = []
    for place in places.tolist():
        if len(chosen) == num:
            break
        others = kept.setdefault(int(ranking.units[place]), [])
        boxes = results.boxes_xywh[ranking.rows[[place, *others]]]
        overlaps = mask.iou(boxes[:1], boxes[1:], np.zeros(len(others), np.uint8)) if others else np.zeros(0)
        if not (np.asarray(overlaps) >= FOREGROUND_IOU).any():
            others.append(place)
            chosen.append(place)
    return chosen


def _touched(truth: GroundTruth, results: Results) -> Flags:
    """Return which objects a detection of any class and score overlaps by more than 0.1: bool (A,)."""
    touched = np.zeros(len(truth.areas), np.bool_)
    order = np.argsort(results.image_ranks, kind="stable")
    starts = np.searchsorted(results.image_ranks[order], np.arange(len(truth.image_ids) + 1))
    for image in np.unique(truth.image_ranks).tolist():
        own = order[starts[image] : starts[image + 1]]
        objects = np.flatnonzero(truth.image_ranks == image)
        if len(own):
            overlaps = mask.iou(results.boxes_xywh[own], truth.boxes_xywh[objects], np.zeros(len(objects), np.uint8))
            touched[objects] = overlaps.max(axis=0) > BACKGROUND_IOU
    return touched


def _of_detection(truth: GroundTruth, results: Results, ranking: Ranking, split: ErrorSplit, place: int) -> Mistake:
    image, target, overlap = int(ranking.units[place]), int(split.objects[place]), float(split.overlaps[place])
    return Mistake(
        kind=KINDS[int(split.kinds[place])],
        image=image,
        image_id=truth.image_ids[image],
        score=float(ranking.scores[place]),
        detected_as=truth.class_names[int(ranking.labels[place])],
        detected_xywh=tuple(results.boxes_xywh[ranking.rows[place]].tolist()),
        labelled_as=None if target < 0 else truth.class_names[int(truth.category_ranks[target])],
        labelled_xywh=None if target < 0 else tuple(truth.boxes_xywh[target].tolist()),
        overlap=None if target < 0 or math.isnan(overlap) else overlap,
    )


def _of_object(truth: GroundTruth, row: int) -> Mistake:
    image, name = int(truth.image_ranks[row]), truth.class_names[int(truth.category_ranks[row])]
    box = tuple(truth.boxes_xywh[row].tolist())
    return Mistake(KINDS[MISSED], image, truth.image_ids[image], None, None, None, name, box, None)
