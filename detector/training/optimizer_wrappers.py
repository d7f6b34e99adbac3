"""What can be laid around any optimiser: gradient centralisation and Lookahead; and Ranger, which is both around RAdam.

Both are hooks of torch's optimisers, and what they remember lies in the optimiser's own state, so that saving, resuming
and the schedule need to know nothing of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def centralise(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """A pre-step hook: takes the mean over the inputs off the gradient of every weight (Yong et al. 2020, eq. 1)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.ndim > 1:
                parameter.grad -= parameter.grad.mean(dim=tuple(range(1, parameter.ndim)), keepdim=True)


class Lookahead:
    """Slow weights that follow the optimiser's every few steps, and from which it then goes on (Zhang et al. 2019)."""

    def __init__(self, optimizer: torch.optim.Optimizer, num_steps: int, share: float) -> None:
        """Attaches itself to an optimiser.

        Args:
            optimizer: the fast one.
            num_steps: its steps between two of the slow weights.
            share: of the way to the fast weights that the slow ones go.
        """
        self._num_steps, self._share = num_steps, share
        self._start: dict[Tensor, Tensor] = {}  # the first slow weights, until the optimiser has a state of its own
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and "slow" not in optimizer.state.get(parameter, {}):
                    self._start[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, slow in self._start.items():
            optimizer.state[parameter]["slow"] = slow
        self._start = {}
        for group in optimizer.param_groups:
            group["num_steps"] = group.get("num_steps", 0) + 1
            if group["num_steps"] % self._num_steps:
                continue
            for parameter in group["params"]:
                if "slow" in optimizer.state.get(parameter, {}):
                    slow = optimizer.state[parameter]["slow"]
                    slow.lerp_(parameter, self._share)
                    parameter.copy_(slow)
