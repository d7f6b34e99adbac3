"""Single mistakes to review: confident false positives, missed large objects, labels that may be wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detector.evaluation.error_split import BACKGROUND, CLASSIFICATION, KINDS, LOCALISATION, MISSED, ErrorSplit
from detector.evaluation.label_suspects import overlaps, rank_suspects
from detector.evaluation.ranking import Ranking
from detector.evaluation.scoring_arrays import GroundTruth, Results

_SUSPICIOUS = 0.5  # suspicion from which on a label is listed


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


def suspect_labels(truth: GroundTruth, results: Results, num: int = 100) -> tuple[Mistake, ...]:
    """Return places where the annotation, not the model, is more likely wrong than right; the most likely first.

    Args:
        truth: the ground truth.
        results: the detections, down to low scores.
        num: largest number of places.
    """
    name_of: dict[int | None, str] = dict(zip(truth.category_ids, truth.class_names, strict=True))
    suspects = []
    for suspect in rank_suspects(truth, results, num):
        if suspect.suspicion < _SUSPICIOUS:
            break
        labelled, detected = name_of.get(suspect.category_id), name_of.get(suspect.proposed_category_id)
        kind, advice = {
            "missing": (BACKGROUND, f"is a label of class {detected} missing here?"),
            "class": (CLASSIFICATION, f"is this {labelled} of class {detected}?"),
            "place": (LOCALISATION, f"is the box of this {labelled} in the right place?"),
            "extra": (MISSED, f"is anything of class {labelled} here?"),
        }[suspect.kind]
        overlap = None
        if suspect.bbox is not None and suspect.proposed_bbox is not None:
            overlap = float(overlaps(np.array([suspect.proposed_bbox]), np.array([suspect.bbox]))[0, 0])
        suspects.append(
            Mistake(
                kind=KINDS[kind],
                image=suspect.image,
                image_id=suspect.image_id,
                score=suspect.score,
                detected_as=detected,
                detected_xywh=suspect.proposed_bbox,
                labelled_as=labelled,
                labelled_xywh=suspect.bbox,
                overlap=overlap,
                advice=advice,
            )
        )
    return tuple(suspects)


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
