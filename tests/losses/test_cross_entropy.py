from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detector.losses.cross_entropy import CrossEntropyLoss
from detector.models.image_classifier import ImageClassifier
from detector.structures.types import ImageClasses


def loss_of(smoothing: float) -> CrossEntropyLoss:
    model = ImageClassifier(ImageClassifier.Config(depth=0.01, width=0.01), 4)
    return CrossEntropyLoss(CrossEntropyLoss.Config(label_smoothing=smoothing), model)


def reference(logits: Tensor, labels: list[int], smoothing: float) -> list[float]:
    """Return the loss, number by number in float64."""
    found = []
    for row, label in zip(logits.double().tolist(), labels, strict=True):
        log_sum = math.log(sum(math.exp(score) for score in row))
        targets = [smoothing / len(row) + (1 - smoothing) * (index == label) for index in range(len(row))]
        found.append(-sum(t * (score - log_sum) for t, score in zip(targets, row, strict=True)))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_loss_is_the_cross_entropy_to_smoothed_targets(smoothing: float) -> None:
    logits = torch.randn(5, 4, generator=torch.manual_seed(0)) * 3
    parts = loss_of(smoothing)(logits, ImageClasses(torch.tensor([0, 3, 1, 1, 2])))
    wanted = reference(logits, [0, 3, 1, 1, 2], smoothing)
    assert list(parts) == ["entropy"]
    assert parts["entropy"].item() == pytest.approx(sum(wanted) / 5, rel=1e-5)
    assert parts.count.item() == 5.0


def test_a_mixed_image_counts_for_both_its_classes_by_their_shares() -> None:
    logits = torch.randn(3, 4, generator=torch.manual_seed(1))
    targets = ImageClasses(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1]), 0.75)
    own, other = reference(logits, [0, 1, 2], 0.1), reference(logits, [2, 0, 1], 0.1)
    wanted = sum(0.75 * a + 0.25 * b for a, b in zip(own, other, strict=True)) / 3
    assert loss_of(0.1)(logits, targets)["entropy"].item() == pytest.approx(wanted, rel=1e-5)


def test_the_loss_is_float32_under_autocast() -> None:
    logits = torch.randn(3, 4, generator=torch.manual_seed(2)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = loss_of(0.0)(logits, ImageClasses(torch.tensor([0, 1, 2])))
    assert parts["entropy"].dtype == torch.float32
    assert parts["entropy"].item() == pytest.approx(sum(reference(logits.float(), [0, 1, 2], 0.0)) / 3, rel=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= label_smoothing < 1"):
        CrossEntropyLoss.Config(label_smoothing=smoothing)
