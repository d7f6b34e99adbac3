"""Curves of activations as functions of one number, by autograd in float64, and properties measured on them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.config.registry import build
from detector.models.activations.activation import ActivationConfig

_FAR = 1e6  # a bounded function is at its limit to 6 digits there
_UNBOUNDED = 1e3  # a function without a bound exceeds this value at `_FAR`
_REACH = 8.0  # kinks and minima are searched within -8..8


@dataclass(frozen=True)
class Curve:
    """A function of one number.

    Attributes:
        x: sample points, float64 (N,).
        value: its values, float64 (N,).
        slope: its first derivative, float64 (N,).
        curvature: its second derivative, float64 (N,), without the impulse that a kink adds at one point.
    """

    x: Tensor
    value: Tensor
    slope: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class Traits:
    """Properties that help to choose an activation.

    Attributes:
        formula: the first line of its documentation.
        settings: its settings with their values.
        lower: its greatest lower bound, -inf without one.
        upper: its least upper bound, inf without one.
        lowest_at: position of its minimum; None if it only tends to its bound, reaches it on an interval or has none.
        smoothness: `C0` if the slope jumps, `C1` if the second derivative does, `smooth` if neither does, within -8..8.
    """

    formula: str
    settings: dict[str, object]
    lower: float
    upper: float
    lowest_at: float | None
    smoothness: str


def sample(config: ActivationConfig, x: Tensor) -> Curve:
    """Return the curve of an activation as it is before training.

    An activation that takes the maximum of k channels gets k lines through 0 with slopes from -1 to 1; with two of them
    its curve is abs(x).

    Args:
        config: the activation.
        x: sample points, (N,).
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
    """Return the properties of an activation with these settings; bounds, minimum and smoothness are measured."""
    documentation = inspect.getdoc(type(build(config))) or ""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    coarse, fine = (sample(config, _grid(-_REACH, _REACH, num)) for num in (1 << 13, 1 << 16))
    tails = sample(config, torch.tensor([-_FAR, _FAR])).value
    if config.expansion > 1:  # the channels it chooses from are free, so it takes any value
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
    """Return position and value of the minimum, on finer grids until neighbouring values are equal."""
    for width in (1e-3, 1e-6):
        curve = sample(config, _grid(x - width, x + width, 2000))
        lowest = int(curve.value.argmin())
        x = float(curve.x[lowest])
    return x, float(curve.value[lowest])


def _jumps(coarse: Tensor, fine: Tensor) -> bool:
    """Return whether a function jumps; without a jump, the steps between neighbours shrink with the grid."""
    largest, smaller = (float(values.diff().abs().max()) for values in (coarse, fine))
    return smaller > 1e-6 and smaller > largest / 2
