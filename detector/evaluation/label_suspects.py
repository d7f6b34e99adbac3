"""Labels that may be wrong, ranked: every label and every confident detection without a label gets a suspicion.

The ideas are those of ObjectLab (Tkachenko et al. 2023, "ObjectLab: Automated Diagnosis of Mislabeled Images in Object
Detection Data"): a label is suspect where the model contradicts it with confidence. A model that was trained on the
same labels contradicts them less, so the list is best made on images that it was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from detector.evaluation.ranking import Flags, Floats, Integers
from detector.evaluation.scoring_arrays import GroundTruth, Results

LOWEST_SCORE = 0.1  # of detections that contradict a label; lower ones are mostly noise
# A detection supports a label fully from the upper IoU on, and not at all below the lower one.
_UNSUPPORTED_IOU, _SUPPORTED_IOU = 0.4, 0.65
_SAME_PLACE_IOU, _TOUCHED_IOU = 0.5, 0.1
# Missed objects and doubled detections are frequent errors of models, and weaker evidence than a contradiction.
_WITHOUT_PROPOSAL = 0.8
_ENOUGH_TO_PROPOSE = 0.5  # of the suspicion: doubt of a detection that makes it the proposal


@dataclass(frozen=True)
class Suspect:
    """Label, or place without one, that may be wrong.

    Attributes:
        kind: `missing` (there is no label), `class`, `place` (another box) or `extra` (there is no object).
        suspicion: 0..1; the list is sorted by it.
        image: index of the image in the ground truth, by ascending id.
        image_id: id of the image.
        category_id: category of the label; None if the label is missing.
        bbox: box of the label, xywh in source pixels, as written; None if it is missing.
        proposed_category_id: category that the model proposes; None for `extra`.
        proposed_bbox: box that the model proposes, xywh in source pixels; None for `extra`.
        score: score of the detection behind the proposal; None for `extra`.
    """

    kind: str
    suspicion: float
    image: int
    image_id: int
    category_id: int | None
    bbox: tuple[float, ...] | None
    proposed_category_id: int | None = None
    proposed_bbox: tuple[float, ...] | None = None
    score: float | None = None

    def to_plain(self) -> dict[str, object]:
        """Return the suspect as plain data."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items() if key != "image"}


def rank_suspects(truth: GroundTruth, results: Results, num: int | None = None) -> tuple[Suspect, ...]:
    """Return every label, and every detection on no label, by falling suspicion.

    Crowd regions are not listed, and neither are detections within one.

    Args:
        truth: the labels.
        results: detections of a model on the same images, down to low scores.
        num: largest number of places; None for all.
    """
    found: list[Suspect] = []
    labels_of, detections_of = _groups(truth.image_ranks, truth), _groups(results.image_ranks, truth)
    for image, (labels, detections) in enumerate(zip(labels_of, detections_of, strict=True)):
        if len(labels) or len(detections):
            found += _OfImage(truth, results, image, labels, detections).suspects()
    return tuple(sorted(found, key=lambda suspect: -suspect.suspicion)[:num])


def _groups(ranks: Integers, truth: GroundTruth) -> list[Integers]:
    """Return the rows of each image."""
    order = np.argsort(ranks, kind="stable")
    return np.split(order, np.searchsorted(ranks[order], np.arange(1, len(truth.image_ids))))


class _OfImage:
    """Labels and detections of one image: K labels, N detections by falling score."""

    def __init__(
        self, truth: GroundTruth, results: Results, image: int, labels: Integers, detections: Integers
    ) -> None:
        self._truth, self._image = truth, image
        self._rows = labels[~truth.is_crowd[labels]]
        self._scores = results.scores[detections].clip(0, 1)
        order = np.argsort(-self._scores, kind="stable")
        detections, self._scores = detections[order], self._scores[order]
        self._boxes, self._labels = results.boxes_xywh[detections], results.category_ranks[detections]
        own = truth.boxes_xywh[self._rows]
        self._iou = overlaps(self._boxes, own)
        self._is_same = self._labels[:, None] == truth.category_ranks[self._rows]
        self._support = ((self._iou - _UNSUPPORTED_IOU) / (_SUPPORTED_IOU - _UNSUPPORTED_IOU)).clip(0, 1)
        crowds = truth.boxes_xywh[labels[truth.is_crowd[labels]]]
        self._is_in_crowd = overlaps(self._boxes, crowds, is_crowd=True).max(axis=1, initial=0) >= _SAME_PLACE_IOU

    def suspects(self) -> list[Suspect]:
        found, used = [], set[int]()
        for column in range(len(self._rows)):
            suspect, detection = self._of_label(column)
            found.append(suspect)
            if suspect.kind == "place":
                used.add(detection)
        return [*found, *self._missing(used)]

    def _of_label(self, column: int) -> tuple[Suspect, int]:
        """Return the strongest doubt about a label, and the detection behind it."""
        doubt = 1 - (self._scores * self._support[:, column] * self._is_same[:, column]).max(initial=0)
        iou, is_same = self._iou[:, column], self._is_same[:, column]
        other_class = self._scores * ((iou >= _SAME_PLACE_IOU) & ~is_same)
        others = np.delete(self._iou * self._is_same, column, axis=1)
        is_free = others.max(axis=1, initial=0) < _SAME_PLACE_IOU  # explained by no other label
        is_beside = (iou >= _TOUCHED_IOU) & (iou < _SUPPORTED_IOU) & is_same & is_free
        other_place = self._scores * is_beside * (1 - self._support[:, column])
        doubts = [("extra", _WITHOUT_PROPOSAL * doubt, -1)]
        for kind, scores in (("class", other_class), ("place", other_place)):
            if len(scores):
                best = int(scores.argmax())
                doubts.append((kind, float(scores[best] * doubt), best))
        strongest = max(doubts, key=lambda each: each[1])
        suspicion = strongest[1]
        # A box or class to accept helps a person more than the question whether anything is there.
        proposals = [each for each in doubts[1:] if each[1] > _ENOUGH_TO_PROPOSE * suspicion]
        kind, _, detection = max(proposals, key=lambda each: each[1], default=strongest)
        return self._suspect(kind, suspicion, int(self._rows[column]), detection), detection

    def _missing(self, used: set[int]) -> list[Suspect]:
        """Return detections on no label; each place once."""
        nearest, explained = self._iou.max(axis=1, initial=0), self._support.max(axis=1, initial=0)
        found: list[Suspect] = []
        kept: list[int] = []
        for detection in range(len(self._scores)):
            if self._scores[detection] < LOWEST_SCORE:
                break
            is_used = detection in used
            if not is_used and (nearest[detection] >= _SAME_PLACE_IOU or self._is_in_crowd[detection]):
                continue
            again = overlaps(self._boxes[[detection]], self._boxes[kept]).max(initial=0) >= _SAME_PLACE_IOU
            if again and not is_used:
                continue
            kept.append(detection)
            if not is_used:
                suspicion = _WITHOUT_PROPOSAL * float(self._scores[detection] * (1 - explained[detection]))
                found.append(self._suspect("missing", suspicion, -1, detection))
        return found

    def _suspect(self, kind: str, suspicion: float, row: int, detection: int) -> Suspect:
        truth = self._truth
        has_label, has_proposal = row >= 0, detection >= 0
        return Suspect(
            kind=kind,
            suspicion=float(suspicion),
            image=self._image,
            image_id=truth.image_ids[self._image],
            category_id=truth.category_ids[truth.category_ranks[row]] if has_label else None,
            bbox=tuple(truth.boxes_xywh[row].tolist()) if has_label else None,
            proposed_category_id=truth.category_ids[self._labels[detection]] if has_proposal else None,
            proposed_bbox=tuple(self._boxes[detection].tolist()) if has_proposal else None,
            score=float(self._scores[detection]) if has_proposal else None,
        )


def overlaps(boxes_xywh: Floats, others_xywh: Floats, *, is_crowd: bool = False) -> Floats:
    """Return the IoU of each two boxes, float64 (N, K); with crowd regions the share of a box within the region."""
    if not len(boxes_xywh) or not len(others_xywh):
        return np.zeros((len(boxes_xywh), len(others_xywh)))
    flags: Flags = np.full(len(others_xywh), is_crowd)
    iou: Floats = np.nan_to_num(mask.iou(boxes_xywh, others_xywh, flags.astype(np.uint8)))
    return iou
