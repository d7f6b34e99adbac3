"""Moving average of the weights of a model, which is evaluated and saved as the best model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Exponential moving average of parameters and buffers; `.module` is the averaged model.

    After t updates the average covers about min(horizon_steps, t / 2) steps, so that it follows the model closely at
    the start of a run and smooths it later.
    """

    def __init__(self, model: nn.Module, horizon_steps: float) -> None:
        """Copy the model in training; `horizon_steps`, above 0, is what the average covers after its warm-up."""
        super().__init__(model, use_buffers=True)
        self._horizon_steps = horizon_steps
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of a model into the average; torch's method copies the count to the GPU and waits."""
        count, pairs = int(self.n_averaged), list(zip(_values(self.module), _values(model), strict=True))
        averaged = [pair for pair in pairs if count and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (count and pair[0].is_floating_point())]
        if averaged:
            weight = 1.0 / (1.0 + min(self._horizon_steps, count / 2))
            torch._foreach_lerp_([average for average, _ in averaged], [value for _, value in averaged], weight)
        if copied:
            torch._foreach_copy_([average for average, _ in copied], [value for _, value in copied])
        self.n_averaged += 1


def _values(model: nn.Module) -> list[Tensor]:
    return [value.detach() for value in (*model.parameters(), *model.buffers())]
