"""Darknet's layers as modules, each with the semantics that Darknet's own build computes.

Tensors are float (B, C, H, W). A layer takes the outputs it reads, the previous layer's first, and returns its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.models.blocks import ConvNormAct

# cuDNN's batch norm as Darknet calls it in training; the same epsilon stands in every inference path of Darknet.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.01

# Added to the denominator of a weighted shortcut's normalised weights.
_WEIGHT_EPSILON = 1e-4
# The smallest value that a rectified shortcut weight takes.
_SMALLEST_WEIGHT = 1e-3


class DarknetConv(ConvNormAct):
    """[convolutional]: cross-correlation, then batch norm or a bias, then the activation.

    The three parts are those of `ConvNormAct`, so that fused kernels and folding find them; `norm` is None without
    batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: nn.Module,
        *,
        stride_yx: tuple[int, int] = (1, 1),
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        batch_normalize: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # the parts differ from those that ConvNormAct's own constructor makes
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride_yx,
            padding,
            dilation,
            groups,
            bias=not batch_normalize,
        )
        self.norm: nn.Module | None = None
        if batch_normalize:
            self.norm = nn.BatchNorm2d(out_channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)
        self.activation = activation
        # Darknet's own start: uniform within the square root of 2 / fan-in.
        bound = math.sqrt(2 / self.conv.weight[0].numel())
        nn.init.uniform_(self.conv.weight, -bound, bound)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def share(self, other: DarknetConv) -> None:
        """Takes on the weights, bias and batch norm of another layer (`share_index`); strides stay its own."""
        self.conv.weight, self.conv.bias, self.norm = other.conv.weight, other.conv.bias, other.norm


class Blur(nn.Module):
    """The fixed depthwise low-pass of `antialiasing` (Zhang 2019, section 3): 1 is binomial 3x3, 2 is the 2x2 mean."""

    kernel: Tensor

    def __init__(self, kind: int, channels: int, stride_yx: tuple[int, int]) -> None:
        super().__init__()
        if kind not in (1, 2):
            raise ValueError(f"Blur wants kind 1 or 2, found {kind}")
        row = torch.tensor([1.0, 2.0, 1.0] if kind == 1 else [1.0, 1.0])
        kernel = torch.outer(row, row) / row.sum() ** 2
        # Follows from the cfg: no weights file and no checkpoint carries it.
        self.register_buffer("kernel", kernel.expand(channels, 1, *kernel.shape).clone(), persistent=False)
        self.stride_yx, self.padding = stride_yx, 1 if kind == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, about H / stride, about W / stride)."""
        return F.conv2d(x, self.kernel, None, self.stride_yx, self.padding, groups=len(self.kernel))


class BlurredConv(DarknetConv):
    """[convolutional] with `antialiasing`: everything at stride 1, then a blur that takes the strides."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: nn.Module,
        *,
        blur: int,
        stride_yx: tuple[int, int],
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        batch_normalize: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            activation,
            padding=padding,
            dilation=dilation,
            groups=groups,
            batch_normalize=batch_normalize,
        )
        self.blur = Blur(blur, out_channels, stride_yx)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, in, H, W) to (B, out, about H / stride, about W / stride), plus `residual` of that shape where given."""
        y: Tensor = self.blur(super().forward(x))
        return y if residual is None else residual + y


class Pool(nn.Module):
    """Windows that start at `i * stride - padding // 2`, as many as fit into the side plus `padding` (a total).

    With Darknet's default padding of `size - 1` the output has ceil(side / stride) cells; an even window reaches over
    the right and bottom border only.
    """

    def __init__(self, size: int, stride_yx: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.size, self.stride_yx, self.padding = size, stride_yx, padding

    def borders(self, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """Cells that the windows reach over the left, right, top and bottom border."""
        found: list[int] = []
        for side, stride in zip(reversed(image_hw), reversed(self.stride_yx), strict=True):
            num_windows = (side + self.padding - self.size) // stride + 1
            before = self.padding // 2
            found += [before, max(0, (num_windows - 1) * stride + self.size - before - side)]
        return found[0], found[1], found[2], found[3]


class MaxPool(Pool):
    """[maxpool]: the maximum of each window; what lies outside of the map counts as minus infinity."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W'), H' = (H + padding - size) // stride + 1."""
        left, right, top, bottom = self.borders((x.shape[-2], x.shape[-1]))
        if left == right == top == bottom and 0 <= left <= self.size // 2:
            return F.max_pool2d(x, self.size, self.stride_yx, left)
        if (left, right, top, bottom) != (0, 0, 0, 0):
            x = F.pad(x, (left, right, top, bottom), value=-math.inf)
        return F.max_pool2d(x, self.size, self.stride_yx)


class LocalAvgPool(Pool):
    """[local_avgpool]: the mean over the part of each window that lies on the map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W'), H' = (H + padding - size) // stride + 1."""
        borders = self.borders((x.shape[-2], x.shape[-1]))
        inside = F.pad(torch.ones_like(x[:1, :1]), borders)
        mean = F.avg_pool2d(F.pad(x, borders), self.size, self.stride_yx)
        return mean / F.avg_pool2d(inside, self.size, self.stride_yx)


class BlurredMaxPool(nn.Module):
    """[maxpool] with `antialiasing`: the maximum at stride 1, then a blur that takes the strides."""

    def __init__(self, size: int, stride_yx: tuple[int, int], padding: int, *, blur: int, channels: int) -> None:
        super().__init__()
        self.pool = MaxPool(size, (1, 1), padding)
        self.blur = Blur(blur, channels, stride_yx)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, about H / stride, about W / stride)."""
        return self.blur(self.pool(x))  # type: ignore[no-any-return]  # nn.Module call


class GlobalAvgPool(nn.Module):
    """[avgpool]: the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        return x.mean(dim=(2, 3), keepdim=True)


class Upsample(nn.Module):
    """[upsample]: each cell repeated `stride` times on both axes; a negative stride sums blocks of cells instead."""

    def __init__(self, stride: int, scale: float = 1.0) -> None:
        super().__init__()
        self.stride, self.scale = stride, scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H * stride, W * stride), or to (B, C, H / -stride, W / -stride)."""
        if self.stride > 0:
            x = F.interpolate(x, scale_factor=float(self.stride), mode="nearest")
        else:
            x = F.avg_pool2d(x, -self.stride, divisor_override=1)
        return x if self.scale == 1.0 else x * self.scale


class Route(nn.Module):
    """[route]: channels of several layers in the order listed; of each source only slice `group_id` of `groups`."""

    def __init__(self, groups: int = 1, group_id: int = 0) -> None:
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *sources: Tensor) -> Tensor:
        """Each (B, C_i, H, W) to (B, sum of C_i / groups, H, W)."""
        if self.groups > 1:
            sources = tuple(source.chunk(self.groups, dim=1)[self.group_id] for source in sources)
        return sources[0] if len(sources) == 1 else torch.cat(sources, dim=1)


class Shortcut(nn.Module):
    """[shortcut]: the previous layer's output plus those of other layers, then the activation.

    A source of fewer channels adds to the first ones only; surplus channels of a source are dropped.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, *sources: Tensor) -> Tensor:
        """(B, C, H, W) and sources (B, C_i, H, W) to (B, C, H, W)."""
        for source in sources:
            x = x + fitted(source, x.shape[1])
        return self.activation(x)  # type: ignore[no-any-return]  # nn.Module call


class WeightedShortcut(Shortcut):
    """[shortcut] with learned weights for its inputs, taken as they are or normalised over the inputs.

    Normalised by rectifying, a weight counts as at least 0.001: the rule of Darknet's GPU code and of its inference on
    the CPU.
    """

    def __init__(self, activation: nn.Module, num_inputs: int, channels: int | None, normalization: str) -> None:
        """Weights of 1.

        Args:
            activation: what follows the sum.
            num_inputs: the previous layer and the sources.
            channels: channels of the output where each has its own weights, None for one weight an input.
            normalization: `none`, `relu` or `softmax`.
        """
        super().__init__(activation)
        self.normalization = normalization
        self.weights = nn.Parameter(torch.ones(num_inputs, *([] if channels is None else [channels])))

    def shares(self) -> Tensor:
        """What each input counts for, shaped as `weights`."""
        if self.normalization == "none":
            return self.weights
        if self.normalization == "relu":
            parts = torch.where(self.weights > _SMALLEST_WEIGHT, self.weights, _SMALLEST_WEIGHT)
        else:
            parts = (self.weights - self.weights.amax(dim=0, keepdim=True)).exp()
        return parts / (_WEIGHT_EPSILON + parts.sum(dim=0, keepdim=True))

    def forward(self, x: Tensor, *sources: Tensor) -> Tensor:
        """(B, C, H, W) and sources (B, C_i, H, W) to (B, C, H, W)."""
        shares = self.shares().to(x.dtype).reshape(len(self.weights), -1, 1, 1)
        total = x * shares[0]
        for source, share in zip(sources, shares[1:], strict=True):
            total = total + fitted(source, x.shape[1]) * share
        return self.activation(total)  # type: ignore[no-any-return]  # nn.Module call


def fitted(source: Tensor, channels: int) -> Tensor:
    """A map cut to a number of channels, or filled up with channels of zeros."""
    missing = channels - source.shape[1]
    if missing > 0:
        return F.pad(source, (0, 0, 0, 0, 0, missing))
    return source[:, :channels] if missing < 0 else source


class Product(nn.Module):
    """[scale_channels] and [sam]: the product of the previous layer and another one, then the activation.

    [sam] wants equal shapes; in [scale_channels] the previous layer is (B, C, 1, 1), or (B, 1, H, W) with `scale_wh`.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, C or 1, H or 1, W or 1) and (B, C, H, W) to (B, C, H, W)."""
        return self.activation(x * source)  # type: ignore[no-any-return]  # nn.Module call


class Reorg3d(nn.Module):
    """[reorg3d]: the `stride * stride` shifted grids of a map behind one another, all channels of each together.

    Not the order of `torch.nn.PixelUnshuffle`, which keeps the grids of one channel together.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * stride * stride, H / stride, W / stride)."""
        s = self.stride
        return torch.cat([x[:, :, dy::s, dx::s] for dy in range(s) for dx in range(s)], dim=1)


class Reorg(nn.Module):
    """[reorg]: YOLOv2's permutation, which reads the map as one of another shape before it takes it apart."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * stride * stride, H / stride, W / stride)."""
        batch, channels, height, width = x.shape
        s = self.stride
        # With F the memory of the map read as (C / s^2, H s, W s): value (k, j, i) of the new memory, read as
        # (C, H, W), is F[k mod (C / s^2), j s + dy, i s + dx] with dy, dx from k div (C / s^2).
        grids = x.reshape(batch, channels // s**2, height, s, width, s)
        moved = grids.permute(0, 3, 5, 1, 2, 4)
        return moved.reshape(batch, channels * s**2, height // s, width // s)


class Unchanged(nn.Module):
    """A layer whose output is its input: a detection head's raw map, or what matters in training only."""

    def forward(self, x: Tensor) -> Tensor:
        """The tensor itself."""
        return x
