from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from detector.config.registry import find, find_config_class, name_of, names, register
from detector.models.activations import (
    ELU,
    Activation,
    ActivationConfig,
    HardMish,
    LeakyReLU,
    Linear,
    Maxout,
    Mish,
    ReLU6,
    SiLU,
    Swish,
    Tanh,
)
from detector.models.activations.activation_curves import measure, sample

# Lower and upper bound, position of the minimum, smoothness; inf without a bound.
TRAITS = {
    "elu": (-1.0, math.inf, None, "C1"),
    "gelu": (-0.16997, math.inf, -0.75179, "smooth"),
    "hard_mish": (-0.5, math.inf, -1.0, "C0"),
    "hard_swish": (-0.375, math.inf, -1.5, "C0"),
    "leaky": (-math.inf, math.inf, None, "C0"),
    "linear": (-math.inf, math.inf, None, "smooth"),
    "maxout": (-math.inf, math.inf, None, "C0"),
    "mish": (-0.30884, math.inf, -1.19243, "smooth"),
    "prelu": (-math.inf, math.inf, None, "C0"),
    "relu": (0.0, math.inf, None, "C0"),
    "relu6": (0.0, 6.0, None, "C0"),
    "selu": (-1.7580993408473766, math.inf, None, "C0"),
    "sigmoid": (0.0, 1.0, None, "smooth"),
    "silu": (-0.27846, math.inf, -1.27846, "smooth"),
    "softplus": (0.0, math.inf, None, "smooth"),
    "softsign": (-1.0, 1.0, None, "C1"),
    "swish": (-0.27846, math.inf, -1.27846, "smooth"),
    "tanh": (-1.0, 1.0, None, "smooth"),
}


@pytest.mark.parametrize("name", TRAITS)
def test_bounds_minimum_and_smoothness_are_measured(name: str) -> None:
    lower, upper, lowest_at, smoothness = TRAITS[name]
    found = measure(find_config_class(ActivationConfig, name)())
    assert found.smoothness == smoothness
    assert found.lower == pytest.approx(lower, abs=5e-6)
    assert found.upper == pytest.approx(upper, abs=5e-6)
    assert found.lowest_at == (None if lowest_at is None else pytest.approx(lowest_at, abs=5e-6))
    assert found.formula


@pytest.mark.parametrize("name", TRAITS)
def test_the_documentation_states_an_existing_minimum(name: str) -> None:
    part = find(ActivationConfig, name)
    stated = re.search(r"minimum is (-\d+\.\d{5})(?: / beta)? at x = (-\d+\.\d{5})", inspect.getdoc(part) or "")
    found = measure(find_config_class(ActivationConfig, name)())
    assert (stated is None) == (found.lowest_at is None)
    if stated is not None:
        assert [f"{found.lower:.5f}", f"{found.lowest_at:.5f}"] == [stated[1], stated[2]]


def test_the_minimum_of_swish_moves_with_beta_as_documented() -> None:
    found = measure(Swish.Config(beta=2.5))
    assert found.lower == pytest.approx(-0.27846 / 2.5, abs=5e-6)
    assert found.lowest_at == pytest.approx(-1.27846 / 2.5, abs=5e-6)
    assert found.settings == {"beta": 2.5, "learned": False}


def test_the_slope_of_elu_is_continuous_at_alpha_1_only() -> None:
    assert [measure(ELU.Config(alpha=a)).smoothness for a in (0.5, 1.0, 2.0)] == ["C0", "C1", "C0"]
    assert measure(LeakyReLU.Config(slope=1.0)).smoothness == "smooth"


def test_slope_and_curvature_are_derivatives_of_the_curve() -> None:
    x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    for config in (Mish.Config(), SiLU.Config(), Tanh.Config()):
        curve = sample(config, x)
        assert torch.equal(curve.x, x)
        for function, derivative in ((curve.value, curve.slope), (curve.slope, curve.curvature)):
            middle = (function[2:] - function[:-2]) / 0.002  # error below step^2 / 6 * third derivative
            assert (middle - derivative[1:-1]).abs().max() < 1e-6


def test_curves_of_straight_pieces_have_no_curvature() -> None:
    x = torch.linspace(-7, 7, 100, dtype=torch.float64)
    for config in (Linear.Config(), ReLU6.Config(), LeakyReLU.Config(), Maxout.Config(), Maxout.Config(pieces=3)):
        assert sample(config, x).curvature.abs().max() == 0, name_of(config)
    assert torch.equal(sample(Maxout.Config(), x).value, x.abs())
    assert torch.equal(sample(HardMish.Config(), x).curvature, ((x > -2) & (x < 0)).double())


def test_a_user_defined_activation_is_measured_without_documentation() -> None:
    @register("test_curves_cube")
    class Cube(Activation):
        @dataclass(frozen=True)
        class Config(ActivationConfig):
            pass

        def forward(self, x: Tensor) -> Tensor:
            return x**3

    Cube.__doc__ = None
    found = measure(Cube.Config())
    assert (found.lower, found.upper, found.smoothness) == (-math.inf, math.inf, "smooth")


def test_every_activation_has_expected_traits() -> None:
    ours = {n for n in names(ActivationConfig) if find(ActivationConfig, n).__module__.startswith("detector.")}
    assert ours == set(TRAITS)
