"""Confusion matrix: the classes of objects against the classes of detections from a threshold on."""

from __future__ import annotations

import numpy as np
from pycocotools import mask

from detector.evaluation.ranking import Integers, Ranking
from detector.evaluation.scoring_arrays import GroundTruth, Results, shared_groups

_AT_50, _IOU = 0, 0.5


def confusion_matrix(truth: GroundTruth, results: Results, ranking: Ranking, confidence: float) -> Integers:
    """Count objects by their class and the class that they are detected as: int64 (C + 1, C + 1).

    Detections and objects of the same class are matched first, as COCO matches them at IoU 0.5: the diagonal counts the
    right detections at the threshold. The others are matched regardless of class: by falling score, each detection
    takes the unmatched object that it overlaps most, by at least 0.5. Crowd regions and detections matched to them are
    not counted.

    Args:
        truth: the ground truth, of C classes.
        results: the detections.
        ranking: the same, ranked.
        confidence: lowest score of the detections that are counted.

    Returns:
        A row for each class of objects and a last one for no object; a column for each class of detections and a last
        one for missed objects.
    """
    num_classes = len(truth.category_ids)
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    is_shown = (ranking.scores >= confidence) & ~ranking.is_ignored[_AT_50]
    is_right = ranking.is_right[_AT_50] & is_shown
    found_by = np.full(len(truth.areas), num_classes)  # the class that each object is detected as
    found_by[ranking.truth_rows[_AT_50, is_right]] = ranking.labels[is_right]
    label_of = np.full(len(ranking.rows), num_classes)  # the class of the object that each detection is matched to
    label_of[is_right] = ranking.labels[is_right]

    left = np.flatnonzero(is_shown & ~is_right)
    left = left[np.lexsort((-ranking.scores[left], ranking.units[left]))]
    free = np.flatnonzero(~truth.is_crowd & (found_by == num_classes))
    free = free[np.argsort(truth.image_ranks[free], kind="stable")]
    for own, group in shared_groups(ranking.units[left], truth.image_ranks[free]):
        boxes, objects = results.boxes_xywh[ranking.rows[left[own]]], free[group]
        overlaps = mask.iou(boxes, truth.boxes_xywh[objects], np.zeros(len(objects), np.uint8))
        for place, row in zip(left[own].tolist(), overlaps, strict=True):
            best = int(np.argmax(row))
            if row[best] >= _IOU:
                overlaps[:, best] = -1
                found_by[objects[best]] = ranking.labels[place]
                label_of[place] = truth.category_ranks[objects[best]]
    wanted = ~truth.is_crowd
    np.add.at(matrix, (truth.category_ranks[wanted], found_by[wanted]), 1)
    is_false = is_shown & (label_of == num_classes)
    np.add.at(matrix, (num_classes, ranking.labels[is_false]), 1)
    return matrix
