"""Example of an optimiser: one file in `detector/training/`, or a file given with `--import`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from detector.config.registry import register
from detector.training.optimizers import OptimizerConfig


@register("toy")
class SignSGD(torch.optim.Optimizer):
    """Steps of one size in the direction of the sign of the mean gradient (Bernstein et al. 2018, algorithm 2)."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        """Settings of the optimiser.

        Attributes:
            momentum: decay rate of the mean gradient.
        """

        lr: float = 1e-3
        momentum: float = 0.9

    def __init__(self, config: Config, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": config.lr, "weight_decay": config.weight_decay})
        self._momentum = config.momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's own
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                state["mean"].lerp_(parameter.grad, 1 - self._momentum)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(state["mean"].sign(), alpha=group["lr"])
        return loss
