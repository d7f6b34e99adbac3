"""Selection against greedy suppression written in plain Python, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detector.errors import ConfigError
from detector.structures.selection import SelectConfig, select


def iou_of(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def select_by_loops(boxes, scores, config):
    """Return the kept boxes, scores and labels, and the smallest distance of a decision to the threshold."""
    candidates = []
    for row, box in enumerate(boxes.tolist()):
        for label, score in enumerate(scores[row].tolist()):
            passes = score >= float(np.float32(config.confidence)) and math.isfinite(score)
            allowed = config.classes is None or label in config.classes
            if passes and allowed and all(math.isfinite(v) for v in box):
                candidates.append((box, score, label))
    candidates.sort(key=lambda c: -c[1])  # stable
    kept, nearest = [], math.inf
    for box, score, label in candidates:
        overlaps = [iou_of(box, k[0]) for k in kept if config.class_agnostic or k[2] == label]
        nearest = min([nearest, *(abs(o - config.iou) for o in overlaps)])
        if all(o <= config.iou for o in overlaps):
            kept.append((box, score, label))
    return kept[: config.max_detections], nearest


def random_boxes(rng, num, canvas=640.0):
    """Return boxes in clusters, some beyond the canvas, so that many overlap."""
    centres = rng.uniform(-50, canvas + 50, (max(num // 4, 1), 2))[rng.integers(0, max(num // 4, 1), num)]
    sizes = rng.uniform(5, 150, (num, 2))
    corner = centres + rng.normal(0, 12, (num, 2)) - sizes / 2
    return torch.from_numpy(np.concatenate([corner, corner + sizes], axis=1).astype(np.float32))


def assert_same(found, kept):
    boxes, scores, labels = found
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert boxes.tolist() == [k[0] for k in kept]
    assert scores.tolist() == [k[1] for k in kept]
    assert labels.tolist() == [k[2] for k in kept]


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_selection_is_greedy_suppression(num_classes, class_agnostic):
    rng = np.random.default_rng(num_classes)
    num_compared = num_suppressed = 0
    for _ in range(40):
        num = int(rng.integers(1, 60))
        boxes = random_boxes(rng, num)
        scores = torch.from_numpy(rng.uniform(0, 1, (num, num_classes)).astype(np.float32) ** 4)
        config = SelectConfig(
            confidence=float(rng.uniform(0.05, 0.5)), iou=float(rng.uniform(0.2, 0.9)), class_agnostic=class_agnostic
        )
        kept, nearest = select_by_loops(boxes, scores, config)
        if nearest < 1e-5:  # float32 may decide otherwise
            continue
        num_compared += 1
        num_suppressed += int((scores >= config.confidence).sum()) - len(kept)
        assert_same(select(boxes, scores, config), kept)
    assert num_compared > 20
    assert num_suppressed > 0


def test_many_candidates_give_the_same_result_as_the_reference():
    """With more than a thousand candidates a library may use another algorithm; the result must not change."""
    rng = np.random.default_rng(1)
    for class_agnostic in (False, True):
        boxes, scores = random_boxes(rng, 700), torch.from_numpy(rng.uniform(0, 1, (700, 3)).astype(np.float32))
        config = SelectConfig(confidence=0.2, iou=0.612345, class_agnostic=class_agnostic, max_detections=10**6)
        kept, nearest = select_by_loops(boxes, scores, config)
        assert nearest > 1e-7
        assert_same(select(boxes, scores, config), kept)


def test_classes_do_not_suppress_each_other_at_any_position():
    """Shifting each class by the largest coordinate would put a box left of the canvas on one inside it."""
    boxes = torch.tensor([[1.0, 1.0, 100.0, 100.0], [-100.0, -100.0, -1.0, -1.0], [50.0, 50.0, 100.0, 100.0]])
    scores = torch.tensor([[0.9, 0.0, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.7]])
    found = select(boxes, scores, SelectConfig(confidence=0.5, iou=0.5))
    assert found[2].tolist() == [0, 1, 2]


def test_one_absurd_box_does_not_affect_the_others():
    """Coordinates of 1e30 are finite; arithmetic that mixes them with others would round those to nothing."""
    boxes = torch.tensor([[10.0, 10, 50, 50], [11, 10, 51, 50], [200, 200, 240, 240], [0, 0, 1e30, 1e30]])
    scores = torch.tensor([[0.0, 0.9], [0.0, 0.8], [0.0, 0.7], [0.6, 0.0]])
    found = select(boxes, scores, SelectConfig(confidence=0.5, iou=0.5))
    assert found[0].tolist() == boxes[[0, 2, 3]].tolist()


def test_a_box_counts_once_for_every_class_that_passes():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    scores = torch.tensor([[0.6, 0.9, 0.1]])
    found = select(boxes, scores, SelectConfig(confidence=0.5))
    assert (found[1].tolist(), found[2].tolist()) == (scores[0, [1, 0]].tolist(), [1, 0])
    assert select(boxes, scores, SelectConfig(confidence=0.5, class_agnostic=True))[2].tolist() == [1]


def test_the_score_at_the_threshold_passes():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    scores = torch.tensor([[0.3]])
    assert len(select(boxes, scores, SelectConfig(confidence=0.3))[0]) == 1
    below = torch.nextafter(scores, torch.zeros(1))
    assert len(select(boxes, below, SelectConfig(confidence=0.3))[0]) == 0


def test_the_overlap_at_the_threshold_is_kept():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])  # an IoU of exactly one half
    scores = torch.tensor([[0.9], [0.8]])
    assert len(select(boxes, scores, SelectConfig(iou=0.5))[0]) == 2
    assert len(select(boxes, scores, SelectConfig(iou=0.499))[0]) == 1


def test_only_the_selected_classes_are_returned():
    rng = np.random.default_rng(2)
    boxes, scores = random_boxes(rng, 50), torch.from_numpy(rng.uniform(0, 1, (50, 6)).astype(np.float32))
    for classes in ((1, 4), (0,), (5, 5)):
        config = SelectConfig(confidence=0.3, iou=0.512345, classes=classes)
        kept, _ = select_by_loops(boxes, scores, config)
        found = select(boxes, scores, config)
        assert_same(found, kept)
        assert set(found[2].tolist()) == set(classes)


def test_a_class_that_the_model_does_not_have_is_refused():
    boxes, scores = torch.zeros(1, 4), torch.zeros(1, 6)
    with pytest.raises(ConfigError, match=r"classes of 0 to 5, got 6"):
        select(boxes, scores, SelectConfig(classes=(2, 6)))
    with pytest.raises(ValueError, match="classes: expected indices of at least 0, got -1"):
        SelectConfig(classes=(-1,))
    with pytest.raises(ValueError, match="classes: expected at least one class, got an empty list"):
        SelectConfig(classes=())


def test_the_best_max_detections_are_kept():
    rng = np.random.default_rng(3)
    boxes, scores = random_boxes(rng, 300), torch.from_numpy(rng.uniform(0, 1, (300, 2)).astype(np.float32))
    whole = select(boxes, scores, SelectConfig(confidence=0.1, max_detections=10_000))
    assert len(whole[0]) > 50
    for most in (1, 7, 50):
        found = select(boxes, scores, SelectConfig(confidence=0.1, max_detections=most))
        for part, full in zip(found, whole, strict=True):
            assert torch.equal(part, full[:most])


def test_scores_are_descending():
    rng = np.random.default_rng(4)
    boxes, scores = random_boxes(rng, 2000), torch.from_numpy(rng.uniform(0, 1, (2000, 5)).astype(np.float32))
    found = select(boxes, scores, SelectConfig(confidence=0.01, max_detections=1000))[1]
    assert len(found) == 1000
    assert (found[1:] <= found[:-1]).all()


@pytest.mark.parametrize("num", [40, 3000])
def test_equal_scores_keep_the_order_of_the_boxes(num):
    """Also where there are many: an unstable sort shows on larger inputs only."""
    rng = np.random.default_rng(5)
    boxes = torch.from_numpy(np.stack([np.arange(num) * 10, np.zeros(num)], 1).astype(np.float32))
    boxes = torch.cat([boxes, boxes + 5], dim=1)  # none overlaps
    scores = torch.from_numpy(rng.choice([0.25, 0.5, 0.75], (num, 4)).astype(np.float32))
    config = SelectConfig(confidence=0.5, max_detections=10**6)
    kept, _ = select_by_loops(boxes[:40], scores[:40], config)
    if num == 40:
        assert_same(select(boxes, scores, config), kept)
    wanted = [(row, label) for value in (0.75, 0.5) for row, label in (scores == value).nonzero().tolist()]
    found_boxes, _, found_labels = select(boxes, scores, config)
    assert list(zip((found_boxes[:, 0] / 10).int().tolist(), found_labels.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_non_finite_boxes_are_never_returned_and_suppress_nothing(bad, class_agnostic):
    rng = np.random.default_rng(6)
    for _ in range(10):
        boxes, scores = random_boxes(rng, 60), torch.from_numpy(rng.uniform(0, 1, (60, 3)).astype(np.float32))
        boxes[torch.from_numpy(rng.random((60, 4)) < 0.1)] = bad
        scores[torch.from_numpy(rng.random((60, 3)) < 0.1)] = bad
        config = SelectConfig(confidence=0.2, iou=0.512345, class_agnostic=class_agnostic)
        kept, nearest = select_by_loops(boxes, scores, config)
        assert nearest > 1e-6
        found = select(boxes, scores, config)
        assert_same(found, kept)
        assert all(part.isfinite().all() for part in found[:2])
        assert 0 < len(found[0]) < 60 * 3


def test_scores_of_nan_alone_give_no_detections():
    found = select(torch.full((10, 4), math.nan), torch.full((10, 3), math.nan), SelectConfig(confidence=0.0))
    assert [len(part) for part in found] == [0, 0, 0]


@pytest.mark.parametrize(("num", "num_classes"), [(0, 3), (5, 3), (0, 1)])
def test_no_boxes_or_no_passing_scores_give_no_detections(num, num_classes):
    for class_agnostic in (False, True):
        boxes, scores, labels = select(
            torch.zeros(num, 4), torch.zeros(num, num_classes), SelectConfig(class_agnostic=class_agnostic)
        )
        assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
        assert (boxes.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_boxes_without_area_are_kept_apart():
    """An IoU of 0 / 0 is not an overlap."""
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]])
    assert len(select(boxes, torch.tensor([[0.9], [0.8]]), SelectConfig())[0]) == 2


def test_the_arguments_are_not_modified():
    rng = np.random.default_rng(7)
    boxes, scores = random_boxes(rng, 30), torch.from_numpy(rng.uniform(0, 1, (30, 3)).astype(np.float32))
    before = boxes.clone(), scores.clone()
    select(boxes, scores, SelectConfig(classes=(1,)))
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.1}, "within 0..1, got 1.1 and 0.7"),
        ({"confidence": -0.1}, "within 0..1"),
        ({"confidence": math.nan}, "within 0..1, got nan"),
        ({"iou": 2.0}, "within 0..1, got 0.25 and 2.0"),
        ({"max_detections": 0}, "max_detections: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectConfig(**settings)


def test_best_class_keeps_one_class_of_each_box():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([[0.6, 0.8, 0.7], [0.5, 0.5, 0.1]])
    every = select(boxes, scores, SelectConfig(0.3))
    best = select(boxes, scores, SelectConfig(0.3, best_class=True))
    assert every[2].tolist() == [1, 2, 0, 0, 1]
    assert best[2].tolist() == [1, 0]  # the first of equal scores
    assert best[1].tolist() == pytest.approx([0.8, 0.5])


def test_best_class_that_does_not_pass_leaves_the_box_out():
    scores = torch.tensor([[0.4, 0.8]])
    found = select(torch.tensor([[0.0, 0, 1, 1]]), scores, SelectConfig(0.3, classes=(0,), best_class=True))
    assert len(found[0]) == 0
