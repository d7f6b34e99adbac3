"""Heads: feature maps in, raw maps out, and the decoding of raw maps into boxes and scores."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import PartConfig, register
from detector.errors import ConfigError
from detector.models.anchor_levels import AnchorLevel, AnchorTraining, BoxLoss, decode_levels
from detector.models.blocks import ConvNormAct, Scale
from detector.models.class_rows import ClassRows


class Head(nn.Module, abc.ABC):
    """The contract of heads: feature maps in, raw maps out; `decode` turns raw maps into boxes and scores.

    Attributes:
        anchor_levels: the meaning of each raw map where the head is anchor-based, else empty.
        longest_side_px: longest side of an object that the head can express, canvas pixels.
    """

    anchor_levels: tuple[AnchorLevel, ...] = ()
    longest_side_px: float = math.inf

    @abc.abstractmethod
    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the raw maps of feature maps, of the same type in training and evaluation."""

    @abc.abstractmethod
    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the head's state dict that have rows of classes."""
        return {}

    def copied_from(self) -> dict[str, str]:
        """Return tensors of the state dict with those that they copy where weights to start from lack them."""
        return {}

    def drop_training_parts(self) -> None:
        """Drop what only training needs, for inference; by default that is nothing."""


@dataclass(frozen=True)
class HeadConfig(PartConfig[Head]):
    """The kind `head`.

    A head is built from its config, a `Scale`, the channels and the strides of the maps it takes, and the number of
    classes. Its config names the loss and the selection that suit it; what an experiment gives itself comes first.
    """

    folders = ("models",)

    def default_loss(self) -> dict[str, object]:
        """Return plain settings of the loss that trains the head, such as `{"name": "anchor"}`."""
        return {}

    def default_selection(self) -> dict[str, object]:
        """Return plain settings of `evaluate` and `predict` that suit the head, such as `{"nms": "none"}`."""
        return {}

    def for_canvas(self, longest_px: float, stride: int) -> HeadConfig:
        """Return the config with the settings that are left to the canvas chosen for it; by default there are none.

        Args:
            longest_px: longest side of the canvases of training, pixels.
            stride: largest stride of the maps, pixels.
        """
        return self

    def with_choices_of(self, chosen: HeadConfig) -> HeadConfig:
        """Return the config with the settings that are left to the canvas as another config has them."""
        return self

    def experiment_defaults(self) -> dict[str, object]:
        """Return `default_loss` and `default_selection` by the sections of an experiment that they belong to."""
        sections = {
            "loss": self.default_loss(),
            "evaluate": self.default_selection(),
            "predict": self.default_selection(),
        }
        return {name: settings for name, settings in sections.items() if settings}


@dataclass(frozen=True)
class DensePredictions:
    """The raw maps of an anchor-free head, flat over all cells of all levels, in float32.

    Attributes:
        distribution_logits: (B, A, 4, bins), over distances left, top, right, bottom in units of the stride.
        class_logits: (B, A, classes).
        points_xy: (A, 2), cell centres in canvas pixels.
        strides: (A,), canvas pixels per cell.
    """

    distribution_logits: Tensor
    class_logits: Tensor
    points_xy: Tensor
    strides: Tensor

    def canvas_xyxy(self) -> Tensor:
        """Return boxes (B, A, 4) in canvas pixels."""
        return boxes_of_distributions(self.distribution_logits, self.points_xy, self.strides)


def boxes_of_distributions(distribution_logits: Tensor, points_xy: Tensor, strides: Tensor) -> Tensor:
    """Return boxes (..., A, 4) in canvas pixels: the mean of each distance distribution (Li et al. 2020, equation 4).

    Args:
        distribution_logits: float32 (..., A, 4, bins), over distances left, top, right, bottom in units of the stride.
        points_xy: float32 (A, 2), cell centres in canvas pixels.
        strides: float32 (A,), canvas pixels per cell.
    """
    bins = torch.arange(distribution_logits.shape[-1], dtype=torch.float32, device=points_xy.device)
    distances = distribution_logits.softmax(-1) @ bins * strides[:, None]
    return torch.cat([points_xy - distances[..., :2], points_xy + distances[..., 2:]], dim=-1)


_LEAST_BINS = 16
_END = 0.01  # share of a bin before the last one up to which a distance is trained


def bins_for(longest_px: float, stride: int) -> int:
    """Return the bins with which a cell next to the middle of an object can express its sides.

    Args:
        longest_px: longest side of the object, pixels; its middle is at most half a stride from a cell centre.
        stride: stride of the cell, pixels.
    """
    return max(_LEAST_BINS, math.ceil(longest_px / 2 / stride + 0.5 + _END) + 1)


class DenseHead(Head):
    """An anchor-free head that predicts distance distributions and classes in every cell."""

    @abc.abstractmethod
    def dense(self, raw_maps: tuple[Tensor, ...]) -> DensePredictions:
        """Return the raw maps flat over all cells, in float32 even under autocast."""

    def dense_one_to_one(self, raw_maps: tuple[Tensor, ...]) -> DensePredictions | None:
        """Return the same of a second branch whose objects are trained on one cell each, or None without one."""
        return None


@register("decoupled")
class DecoupledHead(DenseHead):
    """Anchor-free head with one branch for boxes, as distance distributions, and one for classes.

    The branches are decoupled as in Ge et al. 2021 (YOLOX, section 2.1); the box is four distributions over distances
    as in Li et al. 2020 (Generalized Focal Loss, section 3.3).
    """

    @dataclass(frozen=True)
    class Config(HeadConfig):
        """Settings of the head.

        Attributes:
            bins: bins of a distance distribution; the longest distance is (bins - 1) strides. None is 16, or as many
                as the largest canvas of training needs.
            box_channels: least channels of the branch for boxes; None is 4 * bins.
            objects_per_image: expected objects in an image of 640 x 640, which sets the prior of the class bias.
        """

        bins: int | None = None
        box_channels: int | None = None
        objects_per_image: float = 5.0

        def __post_init__(self) -> None:
            if (self.bins is not None and self.bins < 2) or self.objects_per_image <= 0:
                raise ValueError(
                    "the decoupled head: expected bins >= 2 and objects_per_image > 0, got "
                    f"{self.bins} and {self.objects_per_image}"
                )
            if self.box_channels is not None and self.box_channels < 1:
                raise ValueError(f"the decoupled head: expected box_channels >= 1, got {self.box_channels}")

        def default_loss(self) -> dict[str, object]:
            """Return the loss `task_aligned`."""
            return {"name": "task_aligned"}

        def for_canvas(self, longest_px: float, stride: int) -> DecoupledHead.Config:
            """Return the config with a number of bins; the branches keep their width, so that weights fit them."""
            if self.bins is not None:
                return self
            bins = bins_for(longest_px, stride)
            channels = self.box_channels if bins == _LEAST_BINS else self.box_channels or 4 * _LEAST_BINS
            return replace(self, bins=bins, box_channels=channels)

        def with_choices_of(self, chosen: HeadConfig) -> DecoupledHead.Config:
            """Return the config with the bins and the width of another one, unless it has bins of its own."""
            if self.bins is not None or not isinstance(chosen, DecoupledHead.Config):
                return self
            return replace(self, bins=chosen.bins, box_channels=chosen.box_channels)

    def __init__(
        self, config: Config, scale: Scale, in_channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        self.bins, self.num_classes, self.strides = config.bins or _LEAST_BINS, num_classes, strides
        self.longest_side_px = 2 * max(strides) * (self.bins - 1 - _END - 0.5)
        activation = scale.activation
        box_width = max(in_channels[0] // 2, config.box_channels or 4 * self.bins)
        class_width = max(in_channels[0], min(num_classes, 96))
        self.box_branches = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(channels, box_width, 3, activation),
                ConvNormAct(box_width, box_width, 3, activation),
                nn.Conv2d(box_width, 4 * self.bins, 1),
            )
            for channels in in_channels
        )
        self.class_branches = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(channels, channels, 3, activation, groups=channels),
                ConvNormAct(channels, class_width, 1, activation),
                ConvNormAct(class_width, class_width, 3, activation, groups=class_width),
                ConvNormAct(class_width, class_width, 1, activation),
                nn.Conv2d(class_width, num_classes, 1),
            )
            for channels in in_channels
        )
        self._set_prior(config.objects_per_image)

    def _set_prior(self, objects_per_image: float) -> None:
        """Start every class at the probability that a cell holds an object of it (Lin et al. 2017, section 4.1)."""
        for box_branch, class_branch, stride in zip(self.box_branches, self.class_branches, self.strides, strict=True):
            probability = min(objects_per_image / self.num_classes / (640 / stride) ** 2, 0.5)
            nn.init.constant_(_last_bias(class_branch), math.log(probability / (1 - probability)))
            nn.init.constant_(_last_bias(box_branch), 1.0)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one raw map (B, 4 * bins + classes, H, W) for each map given."""
        return tuple(
            torch.cat([box(x), cls(x)], dim=1)
            for x, box, cls in zip(maps, self.box_branches, self.class_branches, strict=True)
        )

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the last convolution of each class branch."""
        last = {
            f"class_branches.{i}.{len(list(branch.children())) - 1}" for i, branch in enumerate(self.class_branches)
        }
        return {name: ClassRows() for name in self.state_dict() if name.rpartition(".")[0] in last}

    def dense(self, raw_maps: tuple[Tensor, ...]) -> DensePredictions:
        """Return the raw maps flat, in float32 even under autocast."""
        flat = torch.cat([m.flatten(2).transpose(1, 2) for m in raw_maps], dim=1).float()
        distribution, class_logits = torch.split(flat, [4 * self.bins, self.num_classes], dim=-1)
        points, strides = [], []
        for raw, stride in zip(raw_maps, self.strides, strict=True):
            height, width = raw.shape[-2:]
            y = (torch.arange(height, dtype=torch.float32, device=raw.device) + 0.5) * stride
            x = (torch.arange(width, dtype=torch.float32, device=raw.device) + 0.5) * stride
            points.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2).flatten(0, 1))
            strides.append(torch.full((height * width,), float(stride), device=raw.device))
        return DensePredictions(
            distribution.reshape(*distribution.shape[:2], 4, self.bins),
            class_logits,
            torch.cat(points),
            torch.cat(strides),
        )

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        dense = self.dense(raw_maps)
        return dense.canvas_xyxy(), F.sigmoid(dense.class_logits)


def _last_bias(branch: nn.Module) -> Tensor:
    """Return the bias of the convolution that a branch ends in."""
    last = list(branch.children())[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    return last.bias


# Anchors of YOLOv4 on COCO, canvas pixels at 512 to 640 (Bochkovskiy et al. 2020), finest level first.
_YOLOV4_ANCHORS_WH = (
    (12.0, 16.0), (19.0, 36.0), (40.0, 28.0),
    (36.0, 75.0), (76.0, 55.0), (72.0, 146.0),
    (142.0, 110.0), (192.0, 243.0), (459.0, 401.0),
)  # fmt: skip


@dataclass(frozen=True)
class ScaledYoloTraining(AnchorTraining):
    """Training settings of the levels of an anchor head; the defaults are those of yolov4-csp.cfg."""

    iou_loss: BoxLoss = "ciou"
    iou_normalizer: float = 0.05
    ignore_thresh: float = 0.7
    iou_thresh: float = 0.2
    max_delta: float | None = 5.0


@register("anchor")
class AnchorHead(Head):
    """Anchor-based head of YOLOv4: one branch per level, for each anchor a box, an objectness and the classes.

    Sources: Bochkovskiy et al. 2020 (YOLOv4); Wang et al. 2020 ("Scaled-YOLOv4") for `new_coords`.

    Attributes:
        anchor_levels: the meaning and the training settings of each raw map.
    """

    @dataclass(frozen=True)
    class Config(HeadConfig):
        """Settings of the head.

        Attributes:
            anchors: widths and heights in canvas pixels, divided evenly among the levels, the finest first.
            new_coords: whether the head applies the sigmoid to its raw maps and sizes are squares; otherwise raw maps
                are logits and sizes exponentials.
            scale_x_y: factor on the offset within a cell about its middle.
            training: training settings of the levels.
        """

        anchors: tuple[tuple[float, float], ...] = _YOLOV4_ANCHORS_WH
        new_coords: bool = True
        scale_x_y: float = 2.0
        training: ScaledYoloTraining = ScaledYoloTraining()

        def __post_init__(self) -> None:
            if self.scale_x_y < 1:
                raise ValueError(f"the anchor head: expected scale_x_y >= 1, got {self.scale_x_y}")

        def default_loss(self) -> dict[str, object]:
            """Return the loss `anchor`."""
            return {"name": "anchor"}

    def __init__(
        self, config: Config, scale: Scale, in_channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        if not config.anchors or len(config.anchors) % len(strides):
            raise ConfigError(
                f"model.head: anchor: expected as many anchors for each of the {len(strides)} levels, got "
                f"{len(config.anchors)} anchors; give model.head.anchors"
            )
        per_level = len(config.anchors) // len(strides)
        self.new_coords = config.new_coords
        self.anchor_levels = tuple(
            AnchorLevel(
                num_classes,
                config.anchors,
                tuple(range(level * per_level, (level + 1) * per_level)),
                (float(stride), float(stride)),
                scale_x_y=config.scale_x_y,
                new_coords=config.new_coords,
                training=config.training,
            )
            for level, stride in enumerate(strides)
        )
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(channels, 2 * channels, 3, scale.activation),
                nn.Conv2d(2 * channels, level.num_channels, 1),
            )
            for channels, level in zip(in_channels, self.anchor_levels, strict=True)
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one raw map (B, anchors * (5 + classes), H, W) for each map given; float32 if it is activated."""
        raw_maps = tuple(branch(x) for x, branch in zip(maps, self.branches, strict=True))
        return tuple(raw_map.float().sigmoid() for raw_map in raw_maps) if self.new_coords else raw_maps

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the last convolution of each branch."""
        last = {f"branches.{index}.1": len(level.mask) for index, level in enumerate(self.anchor_levels)}
        names = [name for name in self.state_dict() if name.rpartition(".")[0] in last]
        return {name: ClassRows(last[name.rpartition(".")[0]], 5) for name in names}

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        return decode_levels(raw_maps, self.anchor_levels)
