"""Optimiser wrappers: gradient centralisation and Lookahead, both of which Ranger adds to RAdam, and a quicker start.

The first two are hooks of torch's optimisers and keep their state in the optimiser, so that saving, resuming and the
schedule need no code for them.
"""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch
from torch import Tensor

_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)


def eager(kind: type[_Optimizer]) -> type[_Optimizer]:
    """Remove torch's preparations for `torch.compile` from the methods of a class of optimisers.

    Their first call imports the compiler, which takes seconds at the start of a run and is never used.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step"):
        method = inspect.unwrap(getattr(kind, name))
        setattr(kind, name, torch.no_grad()(method) if name == "step" else method)
    return kind


@torch.no_grad()
def centralise(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Subtract the mean over the inputs from the gradient of every weight, before a step (Yong et al. 2020, eq. 1)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.ndim > 1:
                parameter.grad -= parameter.grad.mean(dim=tuple(range(1, parameter.ndim)), keepdim=True)


class Lookahead:
    """Slow weights that follow the weights of an optimiser every few steps and replace them (Zhang et al. 2019)."""

    def __init__(self, optimizer: torch.optim.Optimizer, num_steps: int, share: float) -> None:
        """Attach the hooks to an optimiser.

        Args:
            optimizer: the optimiser of the fast weights.
            num_steps: its steps between two updates of the slow weights.
            share: share of the way to the fast weights that the slow weights move.
        """
        self._num_steps, self._share = num_steps, share
        self._start: dict[Tensor, Tensor] = {}  # the first slow weights, until the optimiser has a state
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and "slow" not in optimizer.state.get(parameter, {}):
                    self._start[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
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
