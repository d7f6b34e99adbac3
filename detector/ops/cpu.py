"""The kernels on CPU tensors: float32 and bfloat16, channels_last and NCHW.

The operators of `mish.py` and `norm_mish.py` call these functions and those of `cuda.py`. Tensors given together have
one shape; the others are converted to the dtype and memory format of x. Per-channel values are float32 (C,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops import native
from detector.ops.native import call

supports = native.supports


def available(device: torch.device) -> bool:
    """Return true if the kernels run here; compile them on the first call."""
    return native.available()


def dense(x: Tensor) -> Tensor:
    """Return the tensor itself if its elements fill one block of memory, else a copy that does, in the same order."""
    if x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x):
        return x
    return torch.empty_like(x).copy_(x)


def like(other: Tensor, x: Tensor) -> Tensor:
    """Return `other` in the dtype and memory format of the dense tensor `x`."""
    if other.dtype == x.dtype and other.stride() == x.stride():
        return other
    return torch.empty_like(x).copy_(other)


def image_format(x: Tensor) -> Tensor:
    """Return (B, C, ...) unchanged if it is channels_last or contiguous, else a contiguous copy."""
    return x if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _grid(x: Tensor) -> tuple[int, int, int]:
    """Return batch, channels and plane as the kernels count them."""
    channels = x.shape[1]
    if x.is_contiguous():
        return x.shape[0], channels, x.numel() // (x.shape[0] * channels)
    return x.numel() // channels, channels, 1


def mish_forward(x: Tensor) -> Tensor:
    """Return Mish of a tensor of any shape."""
    x = dense(x)
    y = torch.empty_like(x)
    mish_forward_out(x, y)
    return y


def mish_forward_out(x: Tensor, y: Tensor) -> None:
    """Write Mish of a dense tensor into another of the same format."""
    call("mish_forward", x.dtype, x, y, x.numel())


def mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient grad * mish'(x)."""
    x = dense(x)
    out = torch.empty_like(x)
    mish_backward_out(like(grad, x), x, out)
    return out


def mish_backward_out(grad: Tensor, x: Tensor, out: Tensor) -> None:
    """Write the gradient grad * mish'(x) of dense tensors of one format into `out`."""
    call("mish_backward", x.dtype, grad, x, out, x.numel())


def norm_mish_forward(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Return mish(z) + residual with z = scale (x - mean) + bias."""
    x = image_format(x)
    y = torch.empty_like(x)
    residual = None if residual is None else like(residual, x)
    call("norm_mish_forward", x.dtype, x, residual, y, *_grid(x), mean, scale, bias)
    return y


def norm_mish_train(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mish(batch norm(x)) + residual with the statistics of x, then their mean and biased variance."""
    x = image_format(x)
    y = torch.empty_like(x)
    mean, variance = torch.empty_like(weight), torch.empty_like(weight)
    residual = None if residual is None else like(residual, x)
    call("norm_mish_train", x.dtype, x, residual, y, *_grid(x), weight, bias, eps, mean, variance)
    return y, mean, variance


def norm_mish_train_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `norm_mish_train` with respect to x, weight and bias."""
    x = image_format(x)
    out = torch.empty_like(x)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    grad = like(grad, x)
    call(
        "norm_mish_backward",
        x.dtype,
        grad,
        x,
        out,
        *_grid(x),
        weight,
        bias,
        mean,
        variance,
        eps,
        grad_weight,
        grad_bias,
    )
    return out, grad_weight, grad_bias


def bias_mish_(x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Compute mish(x + bias) + residual in place of x, which is channels_last or contiguous; return x."""
    residual = None if residual is None else like(residual, x)
    call("bias_mish", x.dtype, x, bias, residual, *_grid(x))
    return x
