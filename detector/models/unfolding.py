"""Batch norm with statistics of images, for models whose batch norm was folded into the convolutions.

A folded norm has mean 0, variance 1 and scale 1: in evaluation it does nothing but shift. In training it would
normalise with the statistics of the batch, which changes the function at once. With the mean m and the variance v of
its input over some images as its statistics, the scale sqrt(v + eps) and the shift raised by m, the function in
evaluation is the same, and the function in training is nearly the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class _Statistics:
    """Sums over the inputs of a norm, float64, one number for each channel."""

    total: Tensor
    squares: Tensor
    count: int = 0

    def add(self, x: Tensor) -> None:
        wide = x.detach().double().transpose(0, 1).flatten(1)
        self.total += wide.sum(1)
        self.squares += wide.square().sum(1)
        self.count += wide.shape[1]

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


def _blocks_with_norm(model: nn.Module) -> list[tuple[nn.Module, nn.BatchNorm2d]]:
    """Return the convolution and the norm of each block that has both."""
    pairs = []
    for block in model.modules():
        conv, norm = getattr(block, "conv", None), getattr(block, "norm", None)
        if isinstance(conv, nn.Module) and isinstance(norm, nn.BatchNorm2d):
            pairs.append((conv, norm))
    return pairs


def is_folded(model: nn.Module) -> bool:
    """Return whether the model has batch norm and each norm has mean 0, variance 1 and scale 1, as after folding."""
    norms = [norm for _, norm in _blocks_with_norm(model)]
    return bool(norms) and all(_is_neutral(norm) for norm in norms)


def _is_neutral(norm: nn.BatchNorm2d) -> bool:
    assert norm.running_mean is not None  # the norms of this package track statistics
    assert norm.running_var is not None
    deviation = (norm.running_var + norm.eps - 1).abs().max()
    return not norm.running_mean.any() and bool(deviation < 2 * norm.eps) and bool((norm.weight == 1).all())


@torch.no_grad()
def unfold(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every batch norm of a model the statistics of its inputs on images, in place; the function stays the same.

    Args:
        model: the model; it is left in evaluation mode.
        batches: images as the model takes them, (B, C, H, W), at least one.

    Raises:
        ValueError: there is no image.
    """
    model.eval()
    pairs = _blocks_with_norm(model)
    found = {norm: _Statistics(*torch.zeros(2, norm.num_features, dtype=torch.float64)) for _, norm in pairs}
    hooks = [conv.register_forward_hook(lambda module, given, x, norm=norm: found[norm].add(x)) for conv, norm in pairs]
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(statistics.count for statistics in found.values()):
        raise ValueError("unfold: expected at least one image, got none")
    for norm, statistics in found.items():
        assert norm.running_mean is not None  # the norms of this package track statistics
        assert norm.running_var is not None
        mean, variance = statistics.mean_and_variance()
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * gain
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        # From here on with the rounded statistics, so that the function stays the same.
        norm.weight.copy_(gain * (norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(shift + gain * norm.running_mean.double())
