"""Batch norm followed by Mish as one operation, which saves its input and two numbers per channel.

Formulas (batch norm: Ioffe and Szegedy 2015, algorithm 1 and section 3): with r = 1 / sqrt(variance + epsilon) and
z = w r (x - mean) + b, the result is mish(z), plus a residual if there is one. With g = grad * mish'(z), S1 = sum g
and S2 = sum g (x - mean) over the M values of a channel: grad b = S1, grad w = r S2, grad residual = grad,
grad x = w r (g - S1 / M - (x - mean) r^2 S2 / M).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops import cpu
from detector.ops.mish import LIBRARY, kernels, mish, recording

LIBRARY.define(
    "norm_mish(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "norm_mish_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor variance, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)


def norm_mish(x: Tensor, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> Tensor:
    """Return `mish(norm(x))`, plus `residual` if given, in one operation if the kernels support it.

    They support channels_last and contiguous tensors on the CPU (float32, bfloat16) and on CUDA (float16 too) with
    float32 parameters, in training with batch statistics and in evaluation without gradient. Everything else runs the
    operators one by one. So do an export, a trace and a compiler, which fuses them itself.

    Args:
        x: (B, C, H, W).
        norm: a batch norm with weights and running statistics; training updates them as the module itself does.
        residual: tensor that is added to the result, of the shape of `x`.
    """
    module = None
    if not (
        x.ndim != 4
        or torch.compiler.is_compiling()
        or recording()
        or not norm.affine
        or not norm.track_running_stats
        or norm.momentum is None
        or norm.weight.dtype != torch.float32
        or (torch.is_grad_enabled() and not norm.training)
    ):
        module = kernels(x)
    if module is None:
        y = mish(norm(x))
        return y if residual is None else residual + y
    assert norm.running_mean is not None  # for the type checker: track_running_stats is checked above
    assert norm.running_var is not None
    if not norm.training:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return module.norm_mish_forward(x, norm.running_mean, scale, norm.bias, residual)
    results: tuple[Tensor, Tensor, Tensor] = _NormMish.apply(x, residual, norm.weight, norm.bias, norm.eps)
    y, mean, variance = results
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    num_values = x.numel() // x.shape[1]
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (num_values / (num_values - 1)), norm.momentum)
    norm.num_batches_tracked.add_(1)
    return y


def bias_mish_(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return `mish(x + bias)`, plus `residual` if given, in place of x if the kernels support it; for inference only.

    Args:
        x: (B, C, H, W), which nothing else may read.
        bias: (C,).
        residual: tensor that is added to the result, of the shape of `x`.
    """
    module = None if recording() or torch.compiler.is_compiling() else kernels(x)
    if module is not None and x.ndim == 4 and cpu.image_format(x) is x:
        return module.bias_mish_(x, bias.float(), residual)
    y = mish(x + bias[:, None, None])
    return y if residual is None else residual + y


def _composed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the result of training in operators that are differentiable any number of times."""
    return F.mish(F.batch_norm(x, None, None, weight, bias, True, 0.0, eps))


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"batch norm in training: expected more than one value per channel, got shape {tuple(x.shape)}"
        )
    module = kernels(x)
    if module is not None:
        return module.norm_mish_train(x, residual, weight, bias, eps)
    variance, mean = torch.var_mean(x.to(weight.dtype), dim=(0, 2, 3), correction=0)
    y = _composed(x, weight, bias, eps)
    return y if residual is None else residual + y, mean, variance


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    module = kernels(x)
    if module is not None:
        return module.norm_mish_train_backward(grad, x, weight, bias, mean, variance, eps)
    with torch.enable_grad():
        x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
        y = _composed(x, weight, bias, eps)
        grad_x, grad_weight, grad_bias = torch.autograd.grad(y, (x, weight, bias), grad)
        return grad_x, grad_weight, grad_bias


def _fake(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    return torch.empty_like(cpu.image_format(x)), torch.empty_like(weight), torch.empty_like(weight)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, ...]:
    return torch.empty_like(cpu.image_format(x)), torch.empty_like(weight), torch.empty_like(weight)


class _NormMish(torch.autograd.Function):
    """Operation of training that saves its input and 2 C numbers besides the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Call the operator below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            y, mean, variance = torch.ops.detector.norm_mish.default(x, residual, weight, bias, eps)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.eps = eps
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients, through differentiable operators if a graph of them is requested."""
        grad = grads[0]
        if grad is None:
            return None, None, None, None, None
        x, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():
            y = _composed(x, weight, bias, ctx.eps)
            gradients = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
        else:
            gradients = torch.ops.detector.norm_mish_backward.default(grad, x, weight, bias, mean, variance, ctx.eps)
        grad_x, grad_weight, grad_bias = gradients
        return grad_x, grad if ctx.needs_input_grad[1] else None, grad_weight, grad_bias, None


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("norm_mish", _forward, _key)
    LIBRARY.impl("norm_mish_backward", _backward, _key)
LIBRARY.impl("norm_mish", _NormMish.apply, "Autograd")
torch.library.register_fake("detector::norm_mish", _fake, lib=LIBRARY)
torch.library.register_fake("detector::norm_mish_backward", _fake_backward, lib=LIBRARY)
