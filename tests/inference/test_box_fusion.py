"""Weighted box fusion compared with the steps of the paper in plain Python, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.inference.box_fusion import fuse

EVERYWHERE = np.array([[-1e9, -1e9, 1e9, 1e9]])


def iou_of(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared) if shared else 0.0


def fuse_by_steps(
    boxes: list[list[float]], scores: list[float], labels: list[int], num_models: int, threshold: float
) -> tuple[list[tuple[list[float], float, int]], float]:
    """Follow section 3.3, steps 1 to 6, for models that all see the whole image; also return the closest decision."""
    clusters: list[list[int]] = []
    fused: list[tuple[list[float], float, int]] = []
    nearest = 1.0
    for row in sorted(range(len(boxes)), key=lambda r: -scores[r]):
        overlaps = [(iou_of(boxes[row], f[0]) if f[2] == labels[row] else 0.0, i) for i, f in enumerate(fused)]
        nearest = min([nearest, *(abs(overlap - threshold) for overlap, _ in overlaps)])
        best, place = max(overlaps, default=(0.0, 0), key=lambda o: (o[0], -o[1]))
        if best > threshold:
            clusters[place].append(row)
        else:
            place = len(clusters)
            clusters.append([row])
            fused.append((boxes[row], scores[row], labels[row]))
        members = clusters[place]
        weight = sum(scores[m] for m in members)
        mean = [sum(scores[m] * boxes[m][side] for m in members) / weight for side in range(4)]
        fused[place] = (mean, weight / len(members), labels[row])
    rescaled = [
        (box, score * min(len(c), num_models) / num_models, label)
        for (box, score, label), c in zip(fused, clusters, strict=True)
    ]
    return rescaled, nearest


@pytest.mark.parametrize("num_models", [1, 2, 5])
def test_fusion_agrees_with_the_paper(num_models: int) -> None:
    rng = np.random.default_rng(num_models)
    num_compared = num_fused = 0
    for _ in range(60):
        num = int(rng.integers(1, 40))
        centres = rng.uniform(0, 200, (max(num // 4, 1), 2))[rng.integers(0, max(num // 4, 1), num)]
        corner = centres + rng.normal(0, 6, (num, 2))
        boxes = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(20, 60, (num, 2))], 1).astype(np.float32))
        scores = torch.from_numpy(rng.uniform(0.01, 1, num).astype(np.float32))
        labels = torch.from_numpy(rng.integers(0, 2, num))
        threshold = float(rng.uniform(0.3, 0.7))
        wanted, nearest = fuse_by_steps(
            boxes.double().tolist(), scores.double().tolist(), labels.tolist(), num_models, threshold
        )
        if nearest < 1e-9:  # two orders of summation may decide otherwise
            continue
        found = fuse(boxes, scores, labels, np.repeat(EVERYWHERE, num_models, axis=0), threshold)
        num_compared += 1
        num_fused += num - len(wanted)
        assert [t.dtype for t in found] == [torch.float32, torch.float32, torch.int64]
        np.testing.assert_allclose(found[0].numpy(), [box for box, _, _ in wanted], rtol=2e-7)  # one rounding
        np.testing.assert_allclose(found[1].numpy(), [score for _, score, _ in wanted], rtol=2e-7)
        assert found[2].tolist() == [label for _, _, label in wanted]
    assert num_compared > 50
    assert num_fused > 100


def test_view_that_cannot_contain_an_object_does_not_lower_its_score() -> None:
    box, score, label = torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([0.8]), torch.tensor([0])
    whole, tile, elsewhere, half = [0, 0, 100, 100], [0, 0, 50, 50], [50, 0, 100, 50], [0, 0, 15, 50]
    for regions, share in (
        ([whole], 1),
        ([whole, tile], 1 / 2),
        ([whole, elsewhere, half], 1),
        ([whole, tile, elsewhere, tile], 1 / 3),
        ([elsewhere], 1),
    ):
        found = fuse(box, score, label, np.array(regions, np.float64), 0.55)
        assert found[1].item() == pytest.approx(0.8 * share, rel=1e-6)


def test_classes_are_fused_separately_by_default() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]])
    scores, labels = torch.tensor([0.5, 0.9]), torch.tensor([3, 1])
    assert fuse(boxes, scores, labels, EVERYWHERE, 0.5)[2].tolist() == [1, 3]
    fused, score, label = fuse(boxes, scores, labels, EVERYWHERE, 0.5, class_agnostic=True)
    assert (label.tolist(), score.tolist()) == ([1], [pytest.approx(0.7)])
    assert fused[0, 3].item() == pytest.approx((0.5 * 10 + 0.9 * 12) / 1.4)


def test_no_boxes_and_scores_of_zero_give_no_nan() -> None:
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert [len(t) for t in fuse(*empty, EVERYWHERE, 0.5)] == [0, 0, 0]
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    found = fuse(boxes, torch.zeros(2), torch.zeros(2, dtype=torch.int64), EVERYWHERE, 0.5)
    assert torch.equal(found[0], boxes)
    assert found[1].tolist() == [0, 0]
