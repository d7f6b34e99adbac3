"""Convolutions with weights in the memory layout of oneDNN, for inference on the CPU.

Without packing, torch reorders the weights in every call, which is a fifth of the time of a small network on a small
image. The two operators used here are those that torch's own compiler emits; without them nothing is packed.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class PackedConv2d(nn.Module):
    """Convolution with packed weights; their layout suits the first images, but images of any size work.

    Attributes:
        weight: the packed weights.
        bias: the bias of the convolution, or None.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        assert not isinstance(conv.padding, str)  # `pack` leaves those alone
        self._padding, self._stride, self._dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
        self._groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H', W') of (B, in, H, W)."""
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the convolution with given weights and bias, like the method of `nn.Conv2d`."""
        x = x.to(weight.dtype)
        how = self._padding, self._stride, self._dilation, self._groups
        if not weight.is_mkldnn:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape))
            self.weight = nn.Parameter(weight, requires_grad=False)
        bias = None if bias is None else bias.to(x.dtype)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how, "none", [], "")
        return y


def can_pack() -> bool:
    """Return whether this torch has oneDNN and the two operators."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
    return bool(has_onednn) and all(hasattr(torch.ops.mkldnn, name) for name in names)


def can_pack_dtype(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes convolutions of this dtype on this processor; 16 bits need AVX-512 or AMX."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    check = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return hasattr(torch.ops.mkldnn, check) and bool(getattr(torch.ops.mkldnn, check)())


def _is_packable(conv: nn.Conv2d) -> bool:
    is_plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return is_plain and can_pack_dtype(conv.weight.dtype)


def pack(model: Model) -> Model:
    """Replace the convolutions of a model by packed ones and return the model; it runs without gradients, on the CPU.

    Its outputs stay the same up to rounding. It can no longer be trained, saved or moved, so pack a copy. Convolutions
    whose dtype oneDNN does not support on this processor stay as they are.
    """
    if can_pack():
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Conv2d and _is_packable(child):
                    setattr(parent, name, PackedConv2d(child))
    return model
