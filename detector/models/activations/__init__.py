"""Activations by name; one config key changes the non-linearity of a whole network.

The first line of each class's docstring is its formula, and the line `Derivative:` is its slope, both as expressions in
x and the settings. The slope at a kink is the value of that expression.
"""

from detector.models.activations.activation import Activation, ActivationConfig
from detector.models.activations.gates import GELU, HardMish, HardSwish, Mish, SiLU, Swish
from detector.models.activations.rectifiers import ELU, SELU, LeakyReLU, Linear, Maxout, PReLU, ReLU, ReLU6
from detector.models.activations.sigmoids import Sigmoid, Softplus, Softsign, Tanh

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "ActivationConfig",
    "HardMish",
    "HardSwish",
    "LeakyReLU",
    "Linear",
    "Maxout",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Swish",
    "Tanh",
]
