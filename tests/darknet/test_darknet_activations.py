from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.darknet.darknet_activations import activation_named
from detector.darknet.sections import ACTIVATIONS


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def stair(x: float) -> float:
    whole = math.floor(x)
    return math.floor(x / 2) + (0 if whole % 2 == 0 else x - whole)


FORMULAS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "logistic": sigmoid,
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "relu": lambda x: max(0.0, x),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "swish": lambda x: x * sigmoid(x),
    "hard_mish": lambda x: x if x > 0 else x * x / 2 + x if x > -2 else 0.0,
    "tanh": math.tanh,
    "loggy": lambda x: 2 * sigmoid(x) - 1,
    "elu": lambda x: x if x >= 0 else math.exp(x) - 1,
    "selu": lambda x: 1.0507 * x if x >= 0 else 1.0507 * 1.6732 * (math.exp(x) - 1),
    "gelu": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relie": lambda x: x if x > 0 else 0.01 * x,
    "ramp": lambda x: max(0.0, x) + 0.1 * x,
    "plse": lambda x: 0.01 * (x + 4) if x < -4 else 0.01 * (x - 4) + 1 if x > 4 else 0.125 * x + 0.5,
    "hardtan": lambda x: min(max(x, -1.0), 1.0),
    "lhtan": lambda x: 0.001 * x if x < 0 else 0.001 * (x - 1) + 1 if x > 1 else x,
    "stair": stair,
}
OVER_CHANNELS = ("normalize_channels", "normalize_channels_softmax", "normalize_channels_softmax_maxval")


def test_every_activation_name_of_a_cfg_is_tested() -> None:
    assert set(ACTIVATIONS) == {*FORMULAS, *OVER_CHANNELS}


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_equals_its_formula(name: str) -> None:
    x = torch.arange(-12.03, 12.0, 0.0371, dtype=torch.float64)
    found = activation_named(name)(x.reshape(1, -1, 1, 1)).flatten()
    wanted = torch.tensor([FORMULAS[name](v) for v in x.tolist()], dtype=torch.float64)
    assert (found - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_normalising_activation_works_over_the_channels_of_each_cell(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 4))
    if name == "normalize_channels":
        parts = np.maximum(x, 0)
    else:
        parts = np.exp(x - (x.max(axis=0) if name.endswith("maxval") else 0))
    wanted = parts / (1e-4 + parts.sum(axis=0))
    found = activation_named(name)(torch.from_numpy(x)[None])[0].numpy()
    assert np.abs(found - wanted).max() <= 1e-12


def test_activations_equal_those_of_darknets_own_build(darknet_numbers: Path) -> None:
    with np.load(darknet_numbers / "activations.npz", allow_pickle=False) as file:
        numbers = dict(file)
    x = numbers.pop("x")
    assert len(numbers) > 15
    for name, wanted in numbers.items():
        found = activation_named(name)(torch.from_numpy(x).reshape(1, -1, 1, 1)).flatten().numpy()
        # Darknet's mish cuts softplus off at 20, an error of up to 4.8e-6; large values are rounded to float32.
        assert np.all(np.abs(found - wanted) <= 6e-6 + 3e-7 * np.abs(wanted)), name
