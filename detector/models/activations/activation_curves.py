"""Activations as functions of one number, by autograd in float64: their curves, and facts measured on them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.config.registry import build
from detector.models.activations.activation import ActivationConfig

_FAR = 1e6  # where a bounded function is at its limit to 6 digits
_UNBOUNDED = 1e3  # what a function exceeds at `_FAR` when it has no bound
_REACH = 8.0  # kinks and minima are looked for within -8..8


@dataclass(frozen=True)
class Curve:
    """A function of one number.

    Attributes:
        x: where it was sampled, float64 (N,).
        value: its values, float64 (N,).
        slope: its first derivative, float64 (N,).
        curvature: its second derivative, float64 (N,); what a kink adds to it at one point is not in it.
    """

    x: Tensor
    value: Tensor
    slope: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class Traits:
    """What a person who chooses an activation wants to know.

    Attributes:
        formula: the first line of its documentation.
        settings: its settings with their values.
        lower: its greatest lower bound, -inf without one.
        upper: its least upper bound, inf without one.
        lowest_at: where its minimum is, or None where it tends to its bound, reaches it on an interval or has none.
        smoothness: `C0` where the slope jumps, `C1` where the second derivative does, `smooth` where neither does,
            within -8..8.
    """

    formula: str
    settings: dict[str, object]
    lower: float
    upper: float
    lowest_at: float | None
    smoothness: str


def sample(config: ActivationConfig, x: Tensor) -> Curve:
    """The curve of an activation as it is before training.

    One that takes the maximum of k channels is given k lines through 0 of slopes -1 to 1: with two it draws abs(x).

    Args:
        config: the activation.
        x: where, (N,).
    """
    activation = build(config).double().requires_grad_(False)
    x = x.detach().double().requires_grad_()
    slopes = torch.linspace(-1, 1, config.expansion, dtype=torch.float64) if config.expansion > 1 else torch.ones(1)
    value = activation(x[:, None] * slopes.double())[:, 0]
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    curvature = torch.zeros_like(slope)
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(slope.sum(), x, materialize_grads=True)
    return Curve(x.detach(), value.detach(), slope.detach(), curvature)


def measure(config: ActivationConfig) -> Traits:
    """What is known of an activation with these settings; its bounds, minimum and smoothness are measured."""
    documentation = inspect.getdoc(type(build(config))) or ""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    coarse, fine = (sample(config, _grid(-_REACH, _REACH, num)) for num in (1 << 13, 1 << 16))
    tails = sample(config, torch.tensor([-_FAR, _FAR])).value
    if config.expansion > 1:  # the channels it chooses from are free, so it has any value
        lower, upper, lowest_at = -math.inf, math.inf, None
    else:
        values = torch.cat([fine.value, tails])
        lower, upper, lowest_at = float(values.min()), float(values.max()), None
        if lower < float(tails.min()) - 1e-9:
            lowest_at, lower = _minimum_near(config, float(fine.x[fine.value.argmin()]))
        lower, upper = (math.copysign(math.inf, v) if abs(v) > _UNBOUNDED else v for v in (lower, upper))
    smoothness = "smooth"
    if _jumps(coarse.slope, fine.slope):
        smoothness = "C0"
    elif _jumps(coarse.curvature, fine.curvature):
        smoothness = "C1"
    return Traits(documentation.partition("\n")[0].rstrip("."), settings, lower, upper, lowest_at, smoothness)


def _grid(start: float, stop: float, num_steps: int) -> Tensor:
    return torch.linspace(start, stop, num_steps + 1, dtype=torch.float64)


def _minimum_near(config: ActivationConfig, x: float) -> tuple[float, float]:
    """Place and value of the minimum, closer with each grid until values no longer tell neighbours apart."""
    for width in (1e-3, 1e-6):
        curve = sample(config, _grid(x - width, x + width, 2000))
        lowest = int(curve.value.argmin())
        x = float(curve.x[lowest])
    return x, float(curve.value[lowest])


def _jumps(coarse: Tensor, fine: Tensor) -> bool:
    """Whether a function jumps: steps between neighbours shrink with the grid where it does not."""
    largest, smaller = (float(values.diff().abs().max()) for values in (coarse, fine))
    return smaller > 1e-6 and smaller > largest / 2
