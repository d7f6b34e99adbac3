"""The YOLOX family (Ge et al. 2021): its backbone, neck, head and whole network.

The parts compute what the released networks compute, so that their weights can be used. Batch norm has the same epsilon
and momentum as everywhere in this package.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import register
from detector.errors import ConfigError
from detector.models.activations import ActivationConfig
from detector.models.activations.gates import SiLU
from detector.models.backbones import DEFAULT_LEVELS, Backbone, BackboneConfig, chosen_levels
from detector.models.blocks import SPP, ConvNormAct, Scale
from detector.models.class_rows import ClassRows
from detector.models.heads import Head, HeadConfig
from detector.models.necks import Neck, NeckConfig
from detector.models.yolo import Yolo
from detector.structures.transfer import constant

# Starting probability of every class and of objectness in a cell (Lin et al. 2017, section 4.1).
_PRIOR = 0.01
# Of RGB in 0..1 over ImageNet's training images, as torchvision's models use them.
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SeparableConv(nn.Module):
    """A 3x3 convolution for each channel, then a 1x1 convolution, both with norm and activation."""

    def __init__(self, in_channels: int, out_channels: int, activation: ActivationConfig, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(in_channels, in_channels, 3, activation, stride=stride, groups=in_channels)
        self.pointwise = ConvNormAct(in_channels, out_channels, 1, activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return (B, out, H / stride, W / stride) of (B, in, H, W), plus `residual` of that shape if given."""
        y: Tensor = self.pointwise(self.depthwise(x), residual)
        return y


def _conv3x3(
    in_channels: int, out_channels: int, activation: ActivationConfig, depthwise: bool, stride: int = 1
) -> nn.Module:
    if not depthwise:
        return ConvNormAct(in_channels, out_channels, 3, activation, stride=stride)
    return SeparableConv(in_channels, out_channels, activation, stride)


class FocusStem(nn.Module):
    """The four pixel phases of an image stacked on its channels, then a 3x3 convolution; stride 2."""

    def __init__(self, image_channels: int, out_channels: int, activation: ActivationConfig) -> None:
        super().__init__()
        self.conv = ConvNormAct(4 * image_channels, out_channels, 3, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H / 2, W / 2) of images (B, C, H, W)."""
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        phases = [even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2]]
        y: Tensor = self.conv(torch.cat(phases, dim=1))
        return y


class PointBottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution of the same number of channels, added to their input if it has a shortcut."""

    def __init__(self, channels: int, activation: ActivationConfig, *, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.reduce = ConvNormAct(channels, channels, 1, activation)
        self.expand = _conv3x3(channels, channels, activation, depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) of the same shape."""
        y: Tensor = self.expand(self.reduce(x), x if self.shortcut else None)
        return y


class CSPLayer(nn.Module):
    """Bottlenecks on one of two 1x1 branches of half the channels, whose outputs a 1x1 convolution merges.

    Source: Wang et al. 2020, "CSPNet", section 3, figure 3b.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_bottlenecks: int,
        activation: ActivationConfig,
        *,
        shortcut: bool = False,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.main = ConvNormAct(in_channels, hidden, 1, activation)
        self.side = ConvNormAct(in_channels, hidden, 1, activation)
        self.bottlenecks = nn.Sequential(
            *(
                PointBottleneck(hidden, activation, shortcut=shortcut, depthwise=depthwise)
                for _ in range(num_bottlenecks)
            )
        )
        self.merge = ConvNormAct(2 * hidden, out_channels, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H, W) of (B, in, H, W)."""
        merged: Tensor = self.merge(torch.cat([self.bottlenecks(self.main(x)), self.side(x)], dim=1))
        return merged


@register("yolox_darknet")
class YoloxDarknet(Backbone):
    """Backbone of a focus stem and four CSP stages, with spatial pyramid pooling in the last one.

    Attributes:
        out_channels: channels of the returned maps.
        strides: their strides, (8, 16, 32), or (4, 8, 16, 32) if `Scale.levels` asks for them.
    """

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        """Shape of the backbone.

        Attributes:
            depthwise: whether 3x3 convolutions after the stem are separable.
        """

        depthwise: bool = False

    def __init__(self, config: Config, scale: Scale, image_channels: int) -> None:
        super().__init__()
        activation, depthwise, num = scale.activation, config.depthwise, scale.repeats(3)
        widths = [scale.channels(c) for c in (64, 128, 256, 512, 1024)]
        self.stem = FocusStem(image_channels, widths[0], activation)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _conv3x3(narrow, wide, activation, depthwise, 2),
                CSPLayer(wide, wide, repeats, activation, shortcut=True, depthwise=depthwise),
            )
            for narrow, wide, repeats in zip(widths, widths[1:-1], (num, 3 * num, 3 * num), strict=False)
        )
        self.stages.append(
            nn.Sequential(
                _conv3x3(widths[3], widths[4], activation, depthwise, 2),
                SPP(widths[4], widths[4], activation),
                CSPLayer(widths[4], widths[4], num, activation, depthwise=depthwise),
            )
        )
        # The pooling belongs to the stage of stride 32, so the maps always end there.
        self.strides = chosen_levels("yolox_darknet", scale.levels, (4, 8, 16, 32))
        if self.strides[-1] != 32 or len(self.strides) < len(DEFAULT_LEVELS):
            raise ConfigError(
                f"model.levels: yolox_darknet: expected [8, 16, 32] or [4, 8, 16, 32], got {list(self.strides)}; other "
                f"levels are those of the mish presets"
            )
        self.out_channels = tuple(widths[-len(self.strides) :])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of `strides` of images (B, C, H, W), the finest first."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[-len(self.strides) :])


@register("yolox_pan")
class YoloxPAN(Neck):
    """Path-aggregation neck with a 1x1 convolution before each step up (Liu et al. 2018, section 3.1).

    Attributes:
        out_channels: channels of the returned maps, the same as those of the given maps.
    """

    @dataclass(frozen=True)
    class Config(NeckConfig):
        """Shape of the neck.

        Attributes:
            depthwise: whether 3x3 convolutions are separable.
        """

        depthwise: bool = False

    def __init__(self, config: Config, scale: Scale, in_channels: tuple[int, ...]) -> None:
        super().__init__()
        activation, depthwise, num = scale.activation, config.depthwise, scale.repeats(3)
        pairs = list(itertools.pairwise(in_channels))
        self.laterals = nn.ModuleList(ConvNormAct(coarse, fine, 1, activation) for fine, coarse in pairs)
        self.down_merges = nn.ModuleList(
            CSPLayer(2 * fine, fine, num, activation, depthwise=depthwise) for fine, _ in pairs
        )
        self.down_samples = nn.ModuleList(_conv3x3(fine, fine, activation, depthwise, 2) for fine, _ in pairs)
        self.up_merges = nn.ModuleList(
            CSPLayer(2 * fine, coarse, num, activation, depthwise=depthwise) for fine, coarse in pairs
        )
        self.out_channels = in_channels

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return maps of the same shapes for maps of ascending stride, each half the size of the one before."""
        x = maps[-1]
        reduced: list[Tensor] = []
        for fine, lateral, merge in zip(
            reversed(maps[:-1]), reversed(self.laterals), reversed(self.down_merges), strict=True
        ):
            reduced.insert(0, lateral(x))
            x = merge(torch.cat([F.interpolate(reduced[0], scale_factor=2.0, mode="nearest"), fine], dim=1))
        outputs = [x]
        for coarse, down, merge in zip(reduced, self.down_samples, self.up_merges, strict=True):
            outputs.append(merge(torch.cat([down(outputs[-1]), coarse], dim=1)))
        return tuple(outputs)


@dataclass(frozen=True)
class CellPredictions:
    """The raw maps of a `YoloxHead`, flat over all cells of all levels, in float32.

    Attributes:
        box_numbers: (B, A, 4): offset of the centre from the cell's corner in cells, logarithm of the size in cells.
        objectness_logits: (B, A).
        class_logits: (B, A, classes).
        corners_xy: (A, 2), column and row of each cell.
        strides: (A,), canvas pixels per cell.
    """

    box_numbers: Tensor
    objectness_logits: Tensor
    class_logits: Tensor
    corners_xy: Tensor
    strides: Tensor

    def boxes_cxcywh(self) -> Tensor:
        """Return centre and size of the boxes (B, A, 4) in canvas pixels."""
        strides = self.strides[:, None]
        centres = (self.box_numbers[..., :2] + self.corners_xy) * strides
        return torch.cat([centres, self.box_numbers[..., 2:].exp() * strides], dim=-1)

    def canvas_xyxy(self) -> Tensor:
        """Return boxes (B, A, 4) in canvas pixels."""
        boxes = self.boxes_cxcywh()
        centre, size = boxes[..., :2], boxes[..., 2:]
        return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


@register("yolox")
class YoloxHead(Head):
    """Anchor-free head with one branch for classes and one for box and objectness (Ge et al. 2021, section 2.1)."""

    @dataclass(frozen=True)
    class Config(HeadConfig):
        """Settings of the head.

        Attributes:
            depthwise: whether 3x3 convolutions are separable.
        """

        depthwise: bool = False

        def default_loss(self) -> dict[str, object]:
            """Return the loss `simota`."""
            return {"name": "simota"}

        def default_selection(self) -> dict[str, object]:
            """Return a selection of the best class of each cell, suppressed as in the evaluation of YOLOX."""
            return {"best_class": True, "iou": 0.65}

        def experiment_defaults(self) -> dict[str, object]:
            """Return the defaults of every head, with the stricter suppression of YOLOX's demonstration to predict."""
            return {**super().experiment_defaults(), "predict": {**self.default_selection(), "iou": 0.45}}

    def __init__(
        self, config: Config, scale: Scale, in_channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        self.num_classes, self.strides = num_classes, strides
        activation, width = scale.activation, scale.channels(256)

        def branches() -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(*(_conv3x3(width, width, activation, config.depthwise) for _ in range(2)))
                for _ in in_channels
            )

        def predictions(channels: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in in_channels)

        self.stems = nn.ModuleList(ConvNormAct(channels, width, 1, activation) for channels in in_channels)
        self.class_branches, self.box_branches = branches(), branches()
        self.class_predictions, self.box_predictions = predictions(num_classes), predictions(4)
        self.objectness_predictions = predictions(1)
        for conv in (*self.class_predictions, *self.objectness_predictions):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None  # by default a convolution has one
            nn.init.constant_(conv.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one raw map (B, 5 + classes, H, W) for each map: four box numbers, objectness, classes."""
        raw_maps = []
        for level, (x, stem) in enumerate(zip(maps, self.stems, strict=True)):
            x = stem(x)
            boxes, classes = self.box_branches[level](x), self.class_branches[level](x)
            parts = [self.box_predictions[level](boxes), self.objectness_predictions[level](boxes)]
            raw_maps.append(torch.cat([*parts, self.class_predictions[level](classes)], dim=1))
        return tuple(raw_maps)

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the last convolution of each class branch."""
        return {name: ClassRows() for name in self.state_dict() if name.startswith("class_predictions.")}

    def cells(self, raw_maps: tuple[Tensor, ...]) -> CellPredictions:
        """Return the raw maps flat, in float32 even under autocast."""
        flat = torch.cat([m.flatten(2).transpose(1, 2) for m in raw_maps], dim=1).float()
        corners, strides = [], []
        for raw, stride in zip(raw_maps, self.strides, strict=True):
            height, width = raw.shape[-2:]
            y = torch.arange(height, dtype=torch.float32, device=raw.device)[:, None]
            x = torch.arange(width, dtype=torch.float32, device=raw.device)
            corners.append(torch.stack([x.expand(height, width), y.expand(height, width)], dim=2).flatten(0, 1))
            strides.append(torch.full((height * width,), float(stride), device=raw.device))
        return CellPredictions(flat[..., :4], flat[..., 4], flat[..., 5:], torch.cat(corners), torch.cat(strides))

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        cells = self.cells(raw_maps)
        return cells.canvas_xyxy(), cells.objectness_logits.sigmoid()[..., None] * cells.class_logits.sigmoid()


@register("yolox")
class Yolox(Yolo):
    """YOLOX: its backbone, neck and head, on images in BGR order and 0..255, the presets `yolox-nano` .. `yolox-x`."""

    @dataclass(frozen=True)
    class Config(Yolo.Config):
        """Size and parts of the model; the defaults are those of `yolox-s`.

        Attributes:
            pixels: `bgr` for BGR in 0..255; `imagenet` for RGB less ImageNet's mean by its deviation, which the weights
                of YOLOX's release 0.0.1 take. The files do not say which of the two they are for.
        """

        pixels: Literal["bgr", "imagenet"] = "bgr"
        depth: float = 0.33
        width: float = 0.5
        activation: ActivationConfig = SiLU.Config()  # noqa: RUF009 (frozen: shared safely)
        backbone: BackboneConfig = YoloxDarknet.Config()
        neck: NeckConfig = YoloxPAN.Config()
        head: HeadConfig = YoloxHead.Config()

        def experiment_defaults(self) -> dict[str, object]:
            """Return the loss and the selection that suit the head, and the fit of YOLOX."""
            return {**super().experiment_defaults(), "input": {"arithmetic": "yolox"}}

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        super().__init__(config, num_classes, image_channels)
        self.pixels = config.pixels
        if config.pixels == "imagenet" and image_channels != 3:
            raise ValueError(f"yolox: pixels imagenet: expected images of 3 channels, got {image_channels}")

    def as_input(self, images: Tensor) -> Tensor:
        """Return images as `Config.pixels` says, in the dtype of the weights."""
        if self.pixels == "imagenet":
            unit = self.in_unit_range(images)
            mean, deviation = (constant(v, unit.device, unit.dtype) for v in (_IMAGENET_MEAN, _IMAGENET_DEVIATION))
            return (unit - mean[:, None, None]) / deviation[:, None, None]
        levels = images.to(next(self.parameters()).dtype)
        levels = levels * 255 if images.is_floating_point() else levels
        return levels.flip(1) if self.image_channels == 3 else levels
