"""Mish, x * tanh(softplus(x)): Misra 2019, "A Self Regularized Non-Monotonic Activation Function", equation 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mish(x: Tensor) -> Tensor:
    """Mish of a floating tensor of any shape, element by element, in the tensor's own dtype.

    Its minimum is -0.30884 at x = -1.19243; NaN and +inf pass through, -inf gives NaN.
    """
    return F.mish(x)
