"""Darknet's layers as modules, with the same results as Darknet's own build.

Tensors are float (B, C, H, W). A layer takes the outputs that it reads, the previous layer's first, and returns its
own output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.models.blocks import ConvNormAct

# cuDNN's batch norm as Darknet calls it in training; every inference path of Darknet uses the same epsilon.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.01

# Added to the denominator of a weighted shortcut's normalised weights.
_WEIGHT_EPSILON = 1e-4
# The smallest value of a rectified shortcut weight.
_SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel of a convolution and its placement.

    Attributes:
        size: side of the square kernel.
        stride_yx: stride on each axis.
        padding: zeros added on each side, in pixels.
        dilation: distance between neighbouring weights, in pixels.
        groups: number of groups of channels.
    """

    size: int
    stride_yx: tuple[int, int] = (1, 1)
    padding: int = 0
    dilation: int = 1
    groups: int = 1


class DarknetConv(ConvNormAct):
    """[convolutional]: cross-correlation, then batch norm or a bias, then the activation.

    The three parts have the same names as in `ConvNormAct`, so that fused kernels and folding find them; `norm` is None
    without batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        geometry: ConvGeometry,
        activation: nn.Module,
        *,
        batch_normalize: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # ConvNormAct's own constructor would build other parts
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            geometry.size,
            geometry.stride_yx,
            geometry.padding,
            geometry.dilation,
            geometry.groups,
            bias=not batch_normalize,
        )
        self.norm: nn.Module | None = None
        if batch_normalize:
            self.norm = nn.BatchNorm2d(out_channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)
        self.activation = activation
        # Darknet's initial values: uniform between plus and minus the square root of 2 / fan-in.
        bound = math.sqrt(2 / self.conv.weight[0].numel())
        nn.init.uniform_(self.conv.weight, -bound, bound)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def share(self, other: DarknetConv) -> None:
        """Use the weights, bias and batch norm of another layer (`share_index`), but keep the own strides."""
        self.conv.weight, self.conv.bias, self.norm = other.conv.weight, other.conv.bias, other.norm


class Blur(nn.Module):
    """Fixed depthwise low-pass filter of `antialiasing` (Zhang 2019, section 3): 1 is binomial 3x3, 2 the 2x2 mean."""

    kernel: Tensor

    def __init__(self, kind: int, channels: int, stride_yx: tuple[int, int]) -> None:
        super().__init__()
        if kind not in (1, 2):
            raise ValueError(f"Blur: expected kind 1 or 2, got {kind}")
        row = torch.tensor([1.0, 2.0, 1.0] if kind == 1 else [1.0, 1.0])
        kernel = torch.outer(row, row) / row.sum() ** 2
        # The kernel follows from the cfg, so no weights file and no checkpoint holds it.
        self.register_buffer("kernel", kernel.expand(channels, 1, *kernel.shape).clone(), persistent=False)
        self.stride_yx, self.padding = stride_yx, 1 if kind == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        """Blur a map (B, C, H, W) to (B, C, about H / stride, about W / stride)."""
        return F.conv2d(x, self.kernel, None, self.stride_yx, self.padding, groups=len(self.kernel))


class BlurredConv(DarknetConv):
    """[convolutional] with `antialiasing`: the convolution at stride 1, then a blur with the strides."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        geometry: ConvGeometry,
        activation: nn.Module,
        *,
        blur: int,
        batch_normalize: bool = True,
    ) -> None:
        unstrided = replace(geometry, stride_yx=(1, 1))
        super().__init__(in_channels, out_channels, unstrided, activation, batch_normalize=batch_normalize)
        self.blur = Blur(blur, out_channels, geometry.stride_yx)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (B, in, H, W) to (B, out, about H / stride, about W / stride); add `residual` of that shape if given."""
        y: Tensor = self.blur(super().forward(x))
        return y if residual is None else residual + y


class Pool(nn.Module):
    """Pooling whose window i starts at `i * stride - padding // 2`; `padding` is the total of both sides.

    With Darknet's default padding of `size - 1` the output has ceil(side / stride) cells, and windows of size 2 extend
    over the right and bottom border only.
    """

    def __init__(self, size: int, stride_yx: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.size, self.stride_yx, self.padding = size, stride_yx, padding

    def borders(self, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return by how many cells the windows extend over the left, right, top and bottom border."""
        cells: list[int] = []
        for side, stride in zip(reversed(image_hw), reversed(self.stride_yx), strict=True):
            num_windows = (side + self.padding - self.size) // stride + 1
            before = self.padding // 2
            cells += [before, max(0, (num_windows - 1) * stride + self.size - before - side)]
        return cells[0], cells[1], cells[2], cells[3]


class MaxPool(Pool):
    """[maxpool]: the maximum of each window; values outside the map count as minus infinity."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map (B, C, H, W) to (B, C, H', W'), H' = (H + padding - size) // stride + 1."""
        left, right, top, bottom = self.borders((x.shape[-2], x.shape[-1]))
        if left == right == top == bottom and 0 <= left <= self.size // 2:
            return F.max_pool2d(x, self.size, self.stride_yx, left)
        if (left, right, top, bottom) != (0, 0, 0, 0):
            x = F.pad(x, (left, right, top, bottom), value=-math.inf)
        return F.max_pool2d(x, self.size, self.stride_yx)


class LocalAvgPool(Pool):
    """[local_avgpool]: the mean of the part of each window that lies inside the map."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map (B, C, H, W) to (B, C, H', W'), H' = (H + padding - size) // stride + 1."""
        borders = self.borders((x.shape[-2], x.shape[-1]))
        inside = F.pad(torch.ones_like(x[:1, :1]), borders)
        mean = F.avg_pool2d(F.pad(x, borders), self.size, self.stride_yx)
        return mean / F.avg_pool2d(inside, self.size, self.stride_yx)


class BlurredMaxPool(nn.Module):
    """[maxpool] with `antialiasing`: the maximum at stride 1, then a blur with the strides."""

    def __init__(self, size: int, stride_yx: tuple[int, int], padding: int, *, blur: int, channels: int) -> None:
        super().__init__()
        self.pool = MaxPool(size, (1, 1), padding)
        self.blur = Blur(blur, channels, stride_yx)

    def forward(self, x: Tensor) -> Tensor:
        """Blur a map (B, C, H, W) to (B, C, about H / stride, about W / stride)."""
        blurred: Tensor = self.blur(self.pool(x))
        return blurred


class GlobalAvgPool(nn.Module):
    """[avgpool]: the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Average a map (B, C, H, W) to (B, C, 1, 1)."""
        return x.mean(dim=(2, 3), keepdim=True)


class Upsample(nn.Module):
    """[upsample]: each cell repeated `stride` times on both axes; a negative stride sums blocks of cells instead."""

    def __init__(self, stride: int, scale: float = 1.0) -> None:
        super().__init__()
        self.stride, self.scale = stride, scale

    def forward(self, x: Tensor) -> Tensor:
        """Resize a map (B, C, H, W) to (B, C, H * stride, W * stride) or (B, C, H / -stride, W / -stride)."""
        if self.stride > 0:
            x = F.interpolate(x, scale_factor=float(self.stride), mode="nearest")
        else:
            x = F.avg_pool2d(x, -self.stride, divisor_override=1)
        return x if self.scale == 1.0 else x * self.scale


class Route(nn.Module):
    """[route]: the channels of several layers in the order listed; only slice `group_id` of `groups` of each source."""

    def __init__(self, groups: int = 1, group_id: int = 0) -> None:
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *sources: Tensor) -> Tensor:
        """Concatenate maps (B, C_i, H, W) to (B, sum of C_i / groups, H, W)."""
        if self.groups > 1:
            sources = tuple(source.chunk(self.groups, dim=1)[self.group_id] for source in sources)
        return sources[0] if len(sources) == 1 else torch.cat(sources, dim=1)


class Shortcut(nn.Module):
    """[shortcut]: the sum of the outputs of the previous layer and other layers, then the activation.

    A source with fewer channels is added to the first ones only; surplus channels of a source are dropped.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, *sources: Tensor) -> Tensor:
        """Add sources (B, C_i, H, W) to a map (B, C, H, W)."""
        for source in sources:
            x = x + fitted(source, x.shape[1])
        activated: Tensor = self.activation(x)
        return activated


class WeightedShortcut(Shortcut):
    """[shortcut] with learned weights for its inputs, used as they are or normalised over the inputs.

    With `relu` normalisation a weight counts as at least 0.001, as in Darknet's GPU code and its CPU inference.
    """

    def __init__(self, activation: nn.Module, num_inputs: int, channels: int | None, normalization: str) -> None:
        """Set all weights to 1.

        Args:
            activation: the module applied to the sum.
            num_inputs: number of inputs, the previous layer included.
            channels: channels of the output if each has its own weights, None for one weight per input.
            normalization: `none`, `relu` or `softmax`.
        """
        super().__init__(activation)
        self.normalization = normalization
        self.weights = nn.Parameter(torch.ones(num_inputs, *([] if channels is None else [channels])))

    def shares(self) -> Tensor:
        """Return the normalised weights, in the shape of `weights`."""
        if self.normalization == "none":
            return self.weights
        if self.normalization == "relu":
            parts = torch.where(self.weights > _SMALLEST_WEIGHT, self.weights, _SMALLEST_WEIGHT)
        else:
            parts = (self.weights - self.weights.amax(dim=0, keepdim=True)).exp()
        return parts / (_WEIGHT_EPSILON + parts.sum(dim=0, keepdim=True))

    def forward(self, x: Tensor, *sources: Tensor) -> Tensor:
        """Add sources (B, C_i, H, W) to a map (B, C, H, W)."""
        shares = self.shares().to(x.dtype).reshape(len(self.weights), -1, 1, 1)
        total = x * shares[0]
        for source, share in zip(sources, shares[1:], strict=True):
            total = total + fitted(source, x.shape[1]) * share
        activated: Tensor = self.activation(total)
        return activated


def fitted(source: Tensor, channels: int) -> Tensor:
    """Cut a map to a number of channels, or fill it up with channels of zeros."""
    missing = channels - source.shape[1]
    if missing > 0:
        return F.pad(source, (0, 0, 0, 0, 0, missing))
    return source[:, :channels] if missing < 0 else source


class Product(nn.Module):
    """[scale_channels] and [sam]: the product of the previous layer and another one, then the activation.

    [sam] needs equal shapes; in [scale_channels] the previous layer is (B, C, 1, 1), or (B, 1, H, W) with `scale_wh`.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Multiply a map (B, C or 1, H or 1, W or 1) and a source (B, C, H, W) to (B, C, H, W)."""
        activated: Tensor = self.activation(x * source)
        return activated


class Reorg3d(nn.Module):
    """[reorg3d]: the `stride * stride` shifted grids of a map, one after another, each with all its channels.

    `torch.nn.PixelUnshuffle` has another order: it keeps the grids of one channel together.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange a map (B, C, H, W) to (B, C * stride * stride, H / stride, W / stride)."""
        s = self.stride
        return torch.cat([x[:, :, dy::s, dx::s] for dy in range(s) for dx in range(s)], dim=1)


class Reorg(nn.Module):
    """[reorg]: YOLOv2's permutation, which views the memory of the map in another shape before it rearranges it."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange a map (B, C, H, W) to (B, C * stride * stride, H / stride, W / stride)."""
        batch, channels, height, width = x.shape
        s = self.stride
        # Let F be the memory of the map, viewed as (C / s^2, H s, W s). Value (k, j, i) of the new memory, viewed as
        # (C, H, W), is F[k mod (C / s^2), j s + dy, i s + dx], where k div (C / s^2) = dy s + dx.
        grids = x.reshape(batch, channels // s**2, height, s, width, s)
        moved = grids.permute(0, 3, 5, 1, 2, 4)
        return moved.reshape(batch, channels * s**2, height // s, width // s)


class Unchanged(nn.Module):
    """Layer whose output is its input: a detection head, which gives its raw map, or a layer for training only."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor itself."""
        return x
