"""The kernels on CPU tensors: float32 and bfloat16, channels_last and NCHW.

The same functions exist for CUDA tensors in `cuda.py`; the operators of `mish.py` and `norm_mish.py` stand on both.
Tensors given together have one shape; x decides dtype and memory format, the others are brought to it. Per-channel
values are float32 (C,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops import native
from detector.ops.native import call

supports = native.supports


def available(device: torch.device) -> bool:
    """Whether the kernels run here; compiles them on the first call."""
    return native.available()


def dense(x: Tensor) -> Tensor:
    """The tensor itself where its elements fill one block of memory, else such a copy with its order of axes."""
    return x if torch.ops.aten.is_non_overlapping_and_dense(x) else torch.empty_like(x).copy_(x)


def like(other: Tensor, x: Tensor) -> Tensor:
    """`other` in the dtype and memory format of the dense tensor `x`."""
    if other.dtype == x.dtype and other.stride() == x.stride():
        return other
    return torch.empty_like(x).copy_(other)


def image_format(x: Tensor) -> Tensor:
    """(B, C, ...) in channels_last or contiguous, whichever it is already; contiguous otherwise."""
    return x if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _grid(x: Tensor) -> tuple[int, int, int]:
    """Batch, channels and plane as the kernels count them."""
    channels = x.shape[1]
    if x.is_contiguous():
        return x.shape[0], channels, x.numel() // (x.shape[0] * channels)
    return x.numel() // channels, channels, 1


def mish_forward(x: Tensor) -> Tensor:
    """Mish of any shape."""
    x = dense(x)
    y = torch.empty_like(x)
    mish_forward_out(x, y)
    return y


def mish_forward_out(x: Tensor, y: Tensor) -> None:
    """Mish of a dense tensor into another of the same format."""
    call("mish_forward", x.dtype, x, y, x.numel())


def mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient grad * mish'(x)."""
    x = dense(x)
    out = torch.empty_like(x)
    mish_backward_out(like(grad, x), x, out)
    return out


def mish_backward_out(grad: Tensor, x: Tensor, out: Tensor) -> None:
    """The gradient grad * mish'(x) of dense tensors of one format."""
    call("mish_backward", x.dtype, grad, x, out, x.numel())


def norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    x = image_format(x)
    mean, variance = (torch.empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    call("norm_statistics", x.dtype, x, *_grid(x), mean, variance)
    return mean, variance


def norm_mish_forward(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """mish(z) + residual with z = scale (x - mean) + bias."""
    x = image_format(x)
    y = torch.empty_like(x)
    residual = None if residual is None else like(residual, x)
    call("norm_mish_forward", x.dtype, x, residual, y, *_grid(x), mean, scale, bias)
    return y


def norm_mish_sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over each channel of g = grad * mish'(z) and of g (x - mean)."""
    x = image_format(x)
    sum_g, sum_gx = (torch.empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    call("norm_mish_sums", x.dtype, like(grad, x), x, *_grid(x), mean, scale, bias, sum_g, sum_gx)
    return sum_g, sum_gx


def norm_mish_backward(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, constant: Tensor, slope: Tensor
) -> Tensor:
    """The gradient scale (g - constant - (x - mean) slope) with g = grad * mish'(z)."""
    x = image_format(x)
    out = torch.empty_like(x)
    call("norm_mish_backward", x.dtype, like(grad, x), x, out, *_grid(x), mean, scale, bias, constant, slope)
    return out


def bias_mish_(x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """mish(x + bias) + residual, in place of x, which is channels_last or contiguous."""
    residual = None if residual is None else like(residual, x)
    call("bias_mish", x.dtype, x, bias, residual, *_grid(x))
    return x
