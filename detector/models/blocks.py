"""Building blocks of backbones, necks and heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import build
from detector.errors import ConfigError
from detector.models.activations import ActivationConfig, Mish
from detector.ops.norm_mish import bias_mish_, norm_mish

# Batch-norm constants of the PyTorch ports of Darknet: statistics over few batches, an epsilon that 16 bit can hold.
BN_MOMENTUM = 0.03
BN_EPSILON = 1e-3
_MOST = 8192  # bottlenecks, or eights of channels; far more than any network has


@dataclass(frozen=True)
class Scale:
    """Scaling factors that turn one network description into a family of sizes.

    Attributes:
        depth: factor on the number of bottlenecks of a stage.
        width: factor on the number of channels of a layer.
        max_channels: upper bound on a layer's channels before `width` is applied.
        activation: the non-linearity after every normalised convolution.
        levels: strides of the maps that a backbone is asked for, ascending; None asks for those of its own.
    """

    depth: float = 1.0
    width: float = 1.0
    max_channels: int = 1024
    activation: ActivationConfig = Mish.Config()  # noqa: RUF009 (frozen: shared safely)
    levels: tuple[int, ...] | None = None

    def channels(self, base: int) -> int:
        """Return the channels of a layer of `base` channels at width 1: a multiple of 8, at least 8.

        Raises:
            ConfigError: they are more than any network has.
        """
        return max(
            8, _rounded(min(base, self.max_channels) * self.width / 8, "eights of channels of a layer", "width") * 8
        )

    def repeats(self, base: int) -> int:
        """Return the bottlenecks of a stage of `base` bottlenecks at depth 1: at least 1.

        Raises:
            ConfigError: they are more than any network has.
        """
        return max(1, _rounded(base * self.depth, "bottlenecks of a stage", "depth"))


def _rounded(number: float, what: str, key: str) -> int:
    if number > _MOST:
        raise ConfigError(f"model: expected at most {_MOST:,} {what}, got {number:.4g}; lower model.{key}")
    return round(number)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, activation; or, without the norm, convolution with bias and activation.

    Attributes:
        conv: the convolution; it has a bias if there is no norm or the norm has been folded into it.
        norm: the batch norm; None if there is none or it has been folded.
        activation: the non-linearity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: ActivationConfig,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        wide = out_channels * activation.expansion
        self.conv = nn.Conv2d(in_channels, wide, kernel_size, stride, padding, groups=groups, bias=not norm)
        self.norm: nn.Module | None = nn.BatchNorm2d(wide, eps=BN_EPSILON, momentum=BN_MOMENTUM) if norm else None
        self.activation: nn.Module = build(activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return (B, out, H / stride, W / stride) of (B, in, H, W), plus `residual` of that shape if given."""
        is_mish = isinstance(self.activation, Mish)
        if is_mish and self.norm is None and not torch.is_grad_enabled():  # for inference
            assert self.conv.bias is not None  # a convolution without a norm has one
            return bias_mish_(self.conv._conv_forward(x, self.conv.weight, None), self.conv.bias, residual)
        y: Tensor = self.conv(x)
        # A converted norm (SyncBatchNorm) has another type and takes the plain path.
        if is_mish and type(self.norm) is nn.BatchNorm2d:
            return norm_mish(y, self.norm, residual)
        y = self.activation(y if self.norm is None else self.norm(y))
        return y if residual is None else residual + y


class Bottleneck(nn.Module):
    """Two 3x3 convolutions around half the channels, added to their input (He et al. 2015, section 3.2)."""

    def __init__(self, channels: int, activation: ActivationConfig, *, shortcut: bool) -> None:
        super().__init__()
        hidden = max(8, channels // 2)
        self.reduce = ConvNormAct(channels, hidden, 3, activation)
        self.expand = ConvNormAct(hidden, channels, 3, activation)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) of the same shape."""
        y: Tensor = self.expand(self.reduce(x), x if self.shortcut else None)
        return y


class CSPStage(nn.Module):
    """Cross-stage partial block: half the channels bypass a chain of bottlenecks (Wang et al. 2019, section 3).

    The closing 1x1 convolution takes the output of every bottleneck, so that gradients reach each of them directly (the
    aggregation of Lee et al. 2019, "VoVNet").
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_bottlenecks: int,
        activation: ActivationConfig,
        *,
        shortcut: bool = True,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = max(8, round(out_channels * expansion / 8) * 8)
        self.split = ConvNormAct(in_channels, 2 * hidden, 1, activation)
        self.bottlenecks = nn.ModuleList(
            Bottleneck(hidden, activation, shortcut=shortcut) for _ in range(num_bottlenecks)
        )
        self.merge = ConvNormAct((2 + num_bottlenecks) * hidden, out_channels, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H, W) of (B, in, H, W)."""
        parts = list(self.split(x).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        merged: Tensor = self.merge(torch.cat(parts, dim=1))
        return merged


class SPP(nn.Module):
    """Spatial pyramid pooling with windows 5, 9 and 13 (He et al. 2014; the windows are YOLOv4's).

    A 5x5 maximum of a 5x5 maximum is a 9x9 maximum, so each wider window reuses the narrower one.
    """

    def __init__(self, in_channels: int, out_channels: int, activation: ActivationConfig) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.reduce = ConvNormAct(in_channels, hidden, 1, activation)
        self.merge = ConvNormAct(4 * hidden, out_channels, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H, W) of (B, in, H, W)."""
        parts: list[Tensor] = [self.reduce(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        merged: Tensor = self.merge(torch.cat(parts, dim=1))
        return merged
