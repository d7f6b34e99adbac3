"""Mish, x * tanh(softplus(x)): Misra 2019, "Mish: A Self Regularized Non-Monotonic Activation Function", equation 1.

torch's operator evaluates exp, log1p and tanh for every element. The kernels here need one exponential; they are
compiled for the CPU (`native.py`) or the GPU (`cuda.py`). Without kernels, a CPU computes the same formula in torch
operators: with s = sigmoid(x) and n = s * (2 - s), tanh(softplus(x)) = n / (2 - n), without cancellation or overflow.
It works in float32 for every storage type, on slices that stay in cache. A GPU without kernels uses torch's operator.
`torch.compile` fuses the sigmoid form itself, and an export or trace records torch's operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops import cpu

# Four float32 buffers of a slice fit the L2 cache of two cores; equally fast from 2^17 to 2^18, slower outside.
_SLICE = 1 << 18
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALL = 1 << 9  # below this many elements on a CPU the call costs more than torch's operator

_Library: Any = torch.library.Library  # untyped in torch
LIBRARY = _Library("detector", "DEF")
LIBRARY.define("mish(Tensor x) -> Tensor")
LIBRARY.define("mish_backward(Tensor grad, Tensor x) -> Tensor")


class Kernels(Protocol):
    """The functions that the modules `cpu` and `cuda` share."""

    def supports(self, x: Tensor, /) -> bool:
        """Return true for tensors that the kernels accept."""

    def available(self, device: torch.device, /) -> bool:
        """Return true if the kernels run on a device; compile them on the first call."""

    def mish_forward(self, x: Tensor, /) -> Tensor:
        """Return Mish of x."""

    def mish_backward(self, grad: Tensor, x: Tensor, /) -> Tensor:
        """Return grad * mish'(x)."""

    def norm_mish_forward(
        self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, /
    ) -> Tensor:
        """Return mish(scale (x - mean) + bias) + residual."""

    def norm_mish_train(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mish(batch norm(x)) + residual, then mean and biased variance of x."""

    def norm_mish_train_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of `norm_mish_train` with respect to x, weight and bias."""

    def bias_mish_(self, x: Tensor, bias: Tensor, residual: Tensor | None, /) -> Tensor:
        """Return mish(x + bias) + residual, in place of x."""


def kernels(x: Tensor) -> Kernels | None:
    """Return the module whose kernels support this tensor on its device, or None."""
    module: Kernels = cpu
    if x.device.type == "cuda":
        from detector.ops import cuda  # imported only for CUDA tensors

        module = cuda
    elif x.device.type != "cpu":
        return None
    return module if module.supports(x) and module.available(x.device) else None


def recording() -> bool:
    """Return true while an export or a trace records a graph, which should hold torch's own operators."""
    return torch.compiler.is_exporting() or bool(torch._C._get_tracing_state())


def mish(x: Tensor) -> Tensor:
    """Return Mish of each element of a floating tensor of any shape, in the dtype and memory format of the tensor.

    Its minimum is -0.30884 at x = -1.19243; NaN and +inf pass through, -inf gives NaN. Differentiable any number of
    times.
    """
    if x.dtype not in _DTYPES or x.device.type not in ("cpu", "cuda") or recording():
        return F.mish(x)
    if torch.compiler.is_compiling():
        return sigmoid_form(x)
    if x.device.type == "cpu" and x.numel() < _SMALL:
        return F.mish(x)
    y: Tensor = _Mish.apply(x) if torch.is_grad_enabled() else torch.ops.detector.mish.default(x)
    return y


def sigmoid_form(x: Tensor) -> Tensor:
    """Return Mish in torch operators that a compiler can fuse, computed in float32."""
    s = torch.sigmoid(x.float())
    n = s * (2 - s)
    return (x.float() * (n / (2 - n))).to(x.dtype)


def _in_memory_order(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield slices of dense tensors in memory order, each with three float32 buffers of its length."""
    flat = [_in_memory_order(t) for t in tensors]
    num = flat[0].numel()
    buffers = [torch.empty(min(_SLICE, num), dtype=torch.float32) for _ in range(3)]
    for start in range(0, num, _SLICE):
        stop = min(start + _SLICE, num)
        yield (*(f[start:stop] for f in flat), *(b[: stop - start] for b in buffers))


def _forward(x: Tensor) -> Tensor:
    module = kernels(x)
    if module is not None:
        return module.mish_forward(x)
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        return F.mish(x)
    x = cpu.dense(x)
    y = torch.empty_like(x)
    for x_part, y_part, value, s, n in _slices(x, y):
        torch.sigmoid(value.copy_(x_part), out=s)
        torch.mul(s, s, out=n).sub_(s, alpha=2)  # -n
        value.mul_(n).div_(n.add_(2))
        y_part.copy_(value.neg_())
    return y


def _backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient grad * (T + x * T') with T = n / d, T' = 4 * s * ((1 - s) / d)^2 and d = 2 - n."""
    module = kernels(x)
    if module is not None:
        return module.mish_backward(grad, x)
    x = cpu.dense(x)
    grad = cpu.like(grad, x)
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        native: Tensor = torch.ops.aten.mish_backward(grad, x)
        return native
    out = torch.empty_like(x)
    for grad_part, x_part, out_part, s, n, slope in _slices(grad, x, out):
        torch.sigmoid(slope.copy_(x_part), out=s)
        torch.mul(s, s, out=n).sub_(s, alpha=2).neg_()
        torch.neg(s, out=slope).add_(1)
        slope.mul_(slope)
        s.mul_(4).mul_(slope).mul_(x_part)  # 4 * x overflows for the largest x, where the slope is 0
        torch.neg(n, out=slope).add_(2)
        s.div_(slope).add_(n).div_(slope).mul_(grad_part)
        out_part.copy_(s)
    return out


class _Mish(torch.autograd.Function):
    """Mish as an operation that saves its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Call the operator below autograd."""
        ctx.save_for_backward(x)
        with torch._C._AutoDispatchBelowAutograd():
            y: Tensor = torch.ops.detector.mish.default(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient by the operator of the gradient, which is differentiable itself."""
        grad: Tensor = torch.ops.detector.mish_backward.default(grads[0], *ctx.saved_tensors)
        return grad


class _MishBackward(torch.autograd.Function):
    """The function grad * mish'(x) of grad and x, whose own backward consists of torch's operators."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        """Call the operator below autograd."""
        ctx.save_for_backward(grad, x)
        with torch._C._AutoDispatchBelowAutograd():
            product: Tensor = torch.ops.detector.mish_backward.default(grad, x)
        return product

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives with respect to grad and to x.

        mish' = T + x T' with T' = 4 s (1 - s)^2 / d^2, hence mish'' = 2 T' + x T'', with s' = s (1 - s) and d = 2 - n:
        T'' / T' = (1 - s) - 2 s + 4 s (1 - s)^2 / d.
        """
        grad, x = ctx.saved_tensors
        wide = x.double() if x.dtype == torch.float64 else x.float()
        s = torch.sigmoid(wide)
        d = 2 - s * (2 - s)
        first = 4 * s * ((1 - s) / d) ** 2
        second = 2 * first + wide * first * (1 - 3 * s + 4 * s * (1 - s) ** 2 / d)
        return torch.ops.detector.mish_backward.default(grads[0], x), (grads[0] * grad * second).to(x.dtype)


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("mish", _forward, _key)
    LIBRARY.impl("mish_backward", _backward, _key)
LIBRARY.impl("mish", _Mish.apply, "Autograd")
LIBRARY.impl("mish_backward", _MishBackward.apply, "Autograd")
torch.library.register_fake("detector::mish", lambda x: torch.empty_like(x), lib=LIBRARY)
torch.library.register_fake("detector::mish_backward", lambda grad, x: torch.empty_like(x), lib=LIBRARY)
