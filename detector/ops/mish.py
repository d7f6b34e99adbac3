"""Mish, x * tanh(softplus(x)): Misra 2019, "Mish: A Self Regularized Non-Monotonic Activation Function", equation 1.

On the CPU torch's operator evaluates exp, log1p and tanh for every element and would take most of a training step. Here
it is a compiled kernel with one exponential, or, where nothing can be compiled, the same idea in torch operators: with
s = sigmoid(x) and n = s * (2 - s), tanh(softplus(x)) = n / (2 - n), without cancellation or overflow, over slices that
stay in cache and in float32 whatever the storage type. Elsewhere torch's operator is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops import native

# Four float32 buffers of a slice fit the L2 cache of two cores; measured flat from 2^17 to 2^18, worse on both sides.
_SLICE = 1 << 18
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mish(x: Tensor) -> Tensor:
    """Mish of a floating tensor of any shape, element by element, in the tensor's own dtype and memory format.

    Its minimum is -0.30884 at x = -1.19243; NaN and +inf pass through, -inf gives NaN. Differentiable twice.
    """
    if (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and x.numel() >= _SLICE // 8
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()  # a trace records the native operator
        and torch.ops.aten.is_non_overlapping_and_dense(x)
    ):
        return _DenseMish.apply(x)  # type: ignore[no-any-return]  # autograd.Function.apply is untyped
    return F.mish(x)


def _in_memory_order(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Slices of dense tensors in memory order, each with three float32 buffers of the slice's length."""
    flat = [_in_memory_order(t) for t in tensors]
    num = flat[0].numel()
    buffers = [torch.empty(min(_SLICE, num), dtype=torch.float32) for _ in range(3)]
    for start in range(0, num, _SLICE):
        stop = min(start + _SLICE, num)
        yield (*(f[start:stop] for f in flat), *(b[: stop - start] for b in buffers))


class _DenseMish(torch.autograd.Function):
    """Mish on dense CPU tensors; saves its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Computes x * n / (2 - n)."""
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        if native.supports(x) and native.available():
            native.call("mish_forward", x.dtype, x, y, x.numel())
            return y
        for x_part, y_part, value, s, n in _slices(x.detach(), y):
            torch.sigmoid(value.copy_(x_part), out=s)
            torch.mul(s, s, out=n).sub_(s, alpha=2)  # -n
            value.mul_(n).div_(n.add_(2))
            y_part.copy_(value.neg_())
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Computes grad * (T + x * T') with T = n / d, T' = 4 * s * ((1 - s) / d)^2 and d = 2 - n."""
        (grad,) = grad_outputs
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for: the native operator has one
            (differentiable,) = torch.autograd.grad(F.mish(x), x, grad, create_graph=True)
            return differentiable  # type: ignore[no-any-return]  # autograd.grad is untyped
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        grad_x = torch.empty_like(x)
        if native.supports(x) and native.available():
            native.call("mish_backward", x.dtype, x, grad.to(x.dtype), grad_x, x.numel())
            return grad_x
        for x_part, grad_part, out_part, s, n, slope in _slices(x, grad, grad_x):
            torch.sigmoid(slope.copy_(x_part), out=s)
            torch.mul(s, s, out=n).sub_(s, alpha=2).neg_()
            torch.neg(s, out=slope).add_(1)
            slope.mul_(slope)
            s.mul_(4).mul_(slope).mul_(x_part)  # 4 * x overflows for the largest x, where the slope is 0
            torch.neg(n, out=slope).add_(2)
            s.div_(slope).add_(n).div_(slope).mul_(grad_part)
            out_part.copy_(s)
        return grad_x
