"""Batch norm followed by Mish as one operation, which saves its input and two numbers per channel.

Formulas (batch norm: Ioffe and Szegedy 2015, algorithm 1 and section 3): with r = 1 / sqrt(variance + epsilon) and
z = w r (x - mean) + b, the result is mish(z). With g = grad * mish'(z), S1 = sum g and S2 = sum g (x - mean) over the M
values of a channel: grad b = S1, grad w = r S2, grad x = w r (g - S1 / M - (x - mean) r^2 S2 / M).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detector.ops import native
from detector.ops.mish import mish


def norm_mish(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """`mish(norm(x))`, fused where the kernels take it.

    Fused: channels_last float32 or bfloat16 on the CPU, with float32 parameters; in training with batch statistics, in
    evaluation without gradient. Everything else runs the two operators.

    Args:
        x: (B, C, H, W).
        norm: a batch norm with weights and running statistics; they are updated in training as it would do itself.
    """
    if not (
        x.ndim == 4
        and native.supports(x)
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()  # a trace records the native operators
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and (norm.training or not torch.is_grad_enabled())
        and native.available()
    ):
        return mish(norm(x))
    if norm.training:
        if x.numel() == x.shape[1]:
            raise ValueError(f"batch norm in training wants more than one value per channel, found {tuple(x.shape)}")
        return _NormMish.apply(x, norm.weight, norm.bias, norm)  # type: ignore[no-any-return]  # untyped in torch
    assert norm.running_mean is not None  # for the type checker: track_running_stats is checked above
    assert norm.running_var is not None
    return _forward(x, norm.running_mean, norm.weight * torch.rsqrt(norm.running_var + norm.eps), norm.bias)


def _forward(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = torch.empty_like(x)
    channels = x.shape[1]
    native.call("norm_mish_forward", x.dtype, x, y, x.numel() // channels, channels, mean, scale.contiguous(), bias)
    return y


class _NormMish(torch.autograd.Function):
    """The training-time operation; running statistics are updated as `nn.BatchNorm2d` updates them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Batch statistics, then one pass over the input."""
        channels = x.shape[1]
        rows = x.numel() // channels
        mean, variance = torch.empty_like(weight), torch.empty_like(weight)
        native.call("norm_statistics", x.dtype, x, rows, channels, mean, variance)
        rstd = torch.rsqrt(variance + norm.eps)
        assert norm.running_mean is not None  # as norm_mish has checked
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)
        norm.num_batches_tracked.add_(1)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return _forward(x, mean, weight * rstd, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Two passes that compute mish' again from the input."""
        if torch.is_grad_enabled():  # create_graph: an answer without a graph would be silently wrong
            raise RuntimeError("the fused norm_mish has no second derivative; set DETECTOR_MISH=native to have one")
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        channels = x.shape[1]
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        native.call(
            "norm_mish_backward",
            x.dtype,
            x,
            grad,
            grad_x,
            x.numel() // channels,
            channels,
            mean,
            rstd,
            weight,
            bias,
            grad_weight,
            grad_bias,
        )
        return grad_x, grad_weight, grad_bias, None
