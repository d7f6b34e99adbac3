"""Moving average of the weights of a model, which is evaluated and saved as the best model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_model(model: nn.Module, horizon_steps: float) -> AveragedModel:
    """Return an exponential moving average of parameters and buffers; `.module` is the averaged model.

    After t updates the average covers about min(horizon_steps, t / 2) steps, so that it follows the model closely at
    the start of a run and smooths it later.

    Args:
        model: the model in training, which is copied.
        horizon_steps: steps that the average covers after its warm-up, above 0.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        look_back = min(horizon_steps, float(num_averaged) / 2)
        weight = 1.0 / (1.0 + look_back)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), weight)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    averaged.requires_grad_(False)
    averaged.eval()
    return averaged
