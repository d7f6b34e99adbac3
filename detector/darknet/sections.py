"""Layer sections of a Darknet .cfg as frozen, typed objects.

A field has the name of its key in the file (`from` is `from_`), the typed value and Darknet's default. Values that
Darknet derives from others (`stride_x` from `stride`, `mask` from `num`) are filled in. Only keys that change the
network or its training recipe are fields. Each class also lists the keys that Darknet knows but this package cannot
honour (`refused`: key -> harmless value, reason) and those without influence on results (`ignored`).

References: github.com/AlexeyAB/darknet and github.com/hank-ai/darknet, behaviour as observed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from detector.darknet.section import (
    ACTIVATIONS,
    IOU_KINDS,
    NMS_KINDS,
    POLICIES,
    UNTRAINABLE_ACTIVATIONS,
    LayerSection,
    NetSection,
    Section,
    key,
)

__all__ = [
    "ACTIVATIONS", "IOU_KINDS", "NMS_KINDS", "POLICIES", "REFUSED_SECTIONS", "SECTION_TYPES", "SHORT_NAMES",
    "UNTRAINABLE_ACTIVATIONS", "AnchorSection", "AvgpoolSection", "ConnectedSection", "ContrastiveSection",
    "ConvolutionalSection", "DropoutSection", "GaussianYoloSection", "LayerSection", "LocalAvgpoolSection",
    "MaxpoolSection", "NetSection", "PoolSection", "RegionSection", "Reorg3dSection", "ReorgSection", "RouteSection",
    "SamSection", "ScaleChannelsSection", "Section", "ShortcutSection", "UpsampleSection", "YoloSection",
]  # fmt: skip

_LEAST_ANCHOR = 1e-6  # above 0, because the loss takes the logarithm of a side
_MOST_ANCHORS = 1_000  # of one head; released networks have up to 20


@dataclass(frozen=True, kw_only=True)
class ConvolutionalSection(LayerSection):
    """`[convolutional]`: convolution, batch normalisation or bias, activation.

    With `pad` the padding is `size // 2`, otherwise it is `padding`; use `kernel_padding`.
    """

    name: ClassVar[str] = "convolutional"
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {
        **dict.fromkeys(("xnor", "binary", "bin_output", "use_bin_output"), ("0", "binary networks are not supported")),
        **dict.fromkeys(
            ("sway", "rotate", "stretch", "stretch_sway", "reverse", "coordconv"),
            ("0", "deformed kernels are not supported"),
        ),
        "flipped": ("0", "transposed kernels in the weights file are not supported"),
        "assisted_excitation": ("0", "assisted excitation is not supported"),
        "dot": ("0", "the dot regulariser is not supported"),
    }
    ignored: ClassVar[frozenset[str]] = frozenset(("stream", "wait_stream", "wait_stream_id", "grad_centr", "angle"))

    batch_normalize: bool = key(False)
    cbn: bool = key(False)  # cross-iteration batch normalisation; implies batch_normalize
    filters: int = key(1, low=1, explicit=True)
    groups: int = key(1, low=1)
    size: int = key(1, low=1, explicit=True)
    stride: int = key(1, low=1, explicit=True)
    stride_x: int = key(0, low=0)
    stride_y: int = key(0, low=0)
    dilation: int = key(1, low=1)
    pad: bool = key(False, explicit=True)
    padding: int = key(0, low=0)
    antialiasing: int = key(0, low=0, high=2)  # blur after the activation: 1 is 3 x 3 [1 2 1], 2 is a 2 x 2 mean
    share_index: int | None = key(None)  # layer whose weights are used; absolute if >= 0, else relative
    activation: str = key("logistic", choices=ACTIVATIONS, explicit=True)

    def __post_init__(self) -> None:
        self._derive(
            batch_normalize=self.batch_normalize or self.cbn,
            stride_x=self.stride_x or self.stride,
            stride_y=self.stride_y or self.stride,
            dilation=1 if self.size == 1 else self.dilation,
            padding=0 if self.pad else self.padding,
        )

    @property
    def kernel_padding(self) -> int:
        """Zeros added on each side, in pixels: `size // 2` or `padding`, times the dilation."""
        return (self.size // 2 if self.pad else self.padding) * self.dilation


@dataclass(frozen=True, kw_only=True)
class PoolSection(LayerSection):
    """Base class of pooling: window i starts at `i * stride - padding // 2`; `padding` is the total of both sides."""

    ignored: ClassVar[frozenset[str]] = frozenset(("out_channels",))  # has an effect with maxpool_depth only
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {
        "maxpool_depth": ("0", "pooling over channels is not supported"),
        "maxpool_zero_nonmax": ("0", "pooling that clears all but the maximum is not supported"),
    }

    size: int = key(0, low=0, explicit=True)  # 0: stride
    stride: int = key(1, low=1, explicit=True)
    stride_x: int = key(0, low=0)
    stride_y: int = key(0, low=0)
    padding: int | None = key(None, low=0)  # None: size - 1
    antialiasing: int = key(0, low=0, high=2)

    def __post_init__(self) -> None:
        size = self.size or self.stride
        self._derive(
            size=size,
            stride_x=self.stride_x or self.stride,
            stride_y=self.stride_y or self.stride,
            padding=size - 1 if self.padding is None else self.padding,
        )


@dataclass(frozen=True, kw_only=True)
class MaxpoolSection(PoolSection):
    """`[maxpool]`: the maximum of each window; values outside the map count as minus infinity."""

    name: ClassVar[str] = "maxpool"


@dataclass(frozen=True, kw_only=True)
class LocalAvgpoolSection(PoolSection):
    """`[local_avgpool]`: the mean of the part of each window that lies inside the map."""

    name: ClassVar[str] = "local_avgpool"


@dataclass(frozen=True, kw_only=True)
class AvgpoolSection(LayerSection):
    """`[avgpool]`: the mean of each channel, (C, 1, 1)."""

    name: ClassVar[str] = "avgpool"


@dataclass(frozen=True, kw_only=True)
class UpsampleSection(LayerSection):
    """`[upsample]`: every pixel repeated `stride` times on both axes, multiplied by `scale`.

    A negative stride gives the sum of each |stride| x |stride| block instead, multiplied by `scale`.
    """

    name: ClassVar[str] = "upsample"

    stride: int = key(2, explicit=True)
    scale: float = key(1.0)


@dataclass(frozen=True, kw_only=True)
class RouteSection(LayerSection):
    """`[route]`: the channels of `layers`, concatenated in that order.

    With `groups`, only the channels [group_id * C / groups, (group_id + 1) * C / groups) of each source are taken. A
    layer index is absolute if >= 0, else relative to this section.
    """

    name: ClassVar[str] = "route"
    ignored: ClassVar[frozenset[str]] = frozenset(("stream", "wait_stream", "wait_stream_id"))

    layers: tuple[int, ...] = key((-1,), required=True)
    groups: int = key(1, low=1)
    group_id: int = key(0, low=0)


@dataclass(frozen=True, kw_only=True)
class ShortcutSection(LayerSection):
    """`[shortcut]`: the previous layer plus the layers `from_`; only channels that both have are added.

    Weights are one per input (`per_feature`) or one per input and channel (`per_channel`), normalised by `relu` or
    `softmax`, or not at all (`none`).
    """

    name: ClassVar[str] = "shortcut"
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {
        "assisted_excitation": ("0", "assisted excitation is not supported"),
    }

    from_: tuple[int, ...] = key((-1,), required=True)
    weights_type: str = key(
        "none", choices=("none", "per_feature", "per_channel"), aliases={"per_layer": "per_feature"}
    )
    weights_normalization: str = key("none", choices=("none", "relu", "softmax"), aliases={"avg_relu": "relu"})
    activation: str = key("linear", choices=ACTIVATIONS, explicit=True)


@dataclass(frozen=True, kw_only=True)
class ScaleChannelsSection(LayerSection):
    """`[scale_channels]`: layer `from_` times the previous layer, (C, 1, 1), or (1, H, W) with `scale_wh`."""

    name: ClassVar[str] = "scale_channels"

    from_: int = key(-1, required=True)
    scale_wh: bool = key(False)
    activation: str = key("linear", choices=ACTIVATIONS, explicit=True)


@dataclass(frozen=True, kw_only=True)
class SamSection(LayerSection):
    """`[sam]`: the previous layer times layer `from_`, element by element."""

    name: ClassVar[str] = "sam"

    from_: int = key(-1, required=True)
    activation: str = key("linear", choices=ACTIVATIONS, explicit=True)


@dataclass(frozen=True, kw_only=True)
class DropoutSection(LayerSection):
    """`[dropout]`: the identity at inference; in training, each value is dropped with `probability`."""

    name: ClassVar[str] = "dropout"

    probability: float = key(0.5, low=0, high=1, explicit=True)
    dropblock: bool = key(False)
    dropblock_size_rel: float = key(0.0)
    dropblock_size_abs: float = key(0.0)


@dataclass(frozen=True, kw_only=True)
class ReorgSection(LayerSection):
    """`[reorg]`: YOLOv2's permutation (C, H, W) -> (C * stride^2, H / stride, W / stride)."""

    name: ClassVar[str] = "reorg"
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {"reverse": ("0", "the inverse permutation is not supported")}

    stride: int = key(1, low=1, explicit=True)


@dataclass(frozen=True, kw_only=True)
class Reorg3dSection(LayerSection):
    """`[reorg3d]`: block dy * stride + dx of C output channels is the input at [dy::stride, dx::stride]."""

    name: ClassVar[str] = "reorg3d"
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {"reverse": ("0", "the inverse permutation is not supported")}

    stride: int = key(1, low=1, explicit=True)


@dataclass(frozen=True, kw_only=True)
class ConnectedSection(LayerSection):
    """`[connected]`: a matrix over the flattened input, batch normalisation or bias, activation; (output, 1, 1)."""

    name: ClassVar[str] = "connected"

    batch_normalize: bool = key(False)
    output: int = key(1, low=1, explicit=True)
    activation: str = key("logistic", choices=ACTIVATIONS, explicit=True)


@dataclass(frozen=True, kw_only=True)
class AnchorSection(LayerSection):
    """Base class of `[yolo]` and `[Gaussian_yolo]`; `anchors` are (width, height) in pixels of the network input."""

    refused: ClassVar[Mapping[str, tuple[str, str]]] = {"map": ("", "class maps are not supported")}
    ignored: ClassVar[frozenset[str]] = frozenset(("show_details",))

    mask: tuple[int, ...] = key((), low=0, explicit=True)  # (): all anchors
    anchors: tuple[tuple[float, float], ...] = key((), low=_LEAST_ANCHOR, required=True)
    classes: int = key(20, low=1, explicit=True)
    num: int = key(1, low=1, high=_MOST_ANCHORS, explicit=True)
    jitter: float = key(0.2)
    resize: float = key(1.0)
    ignore_thresh: float = key(0.5)
    truth_thresh: float = key(1.0)
    iou_thresh: float = key(1.0)
    iou_thresh_kind: str = key("iou", choices=IOU_KINDS)
    iou_loss: str = key("mse", choices=("mse", *IOU_KINDS))
    iou_normalizer: float = key(0.75)
    obj_normalizer: float = key(1.0)
    cls_normalizer: float = key(1.0)
    delta_normalizer: float = key(1.0)
    label_smooth_eps: float = key(0.0)
    max_delta: float = key(math.inf)  # inf: no limit
    counters_per_class: tuple[int, ...] = key(())
    scale_x_y: float = key(1.0)
    nms_kind: str = key("default", choices=NMS_KINDS)
    beta_nms: float = key(0.6)
    random: float = key(0.0)
    max: int = key(200, low=1)

    def __post_init__(self) -> None:
        self._derive(mask=self.mask or tuple(range(self.num)))


@dataclass(frozen=True, kw_only=True)
class YoloSection(AnchorSection):
    """`[yolo]`: the head of YOLOv3 and later; per anchor x, y, w, h, objectness, classes."""

    name: ClassVar[str] = "yolo"

    objectness_smooth: bool = key(False)
    new_coords: bool = key(False)
    focal_loss: bool = key(False)
    embedding_layer: int | None = key(None)  # this key and the next five concern tracking only
    track_history_size: int = key(5)
    sim_thresh: float = key(0.8)
    dets_for_track: int = key(1)
    dets_for_show: int = key(1)
    track_ciou_norm: float = key(0.01)


@dataclass(frozen=True, kw_only=True)
class GaussianYoloSection(AnchorSection):
    """`[Gaussian_yolo]`: per anchor x, y, w, h, each followed by its uncertainty, then objectness and classes."""

    name: ClassVar[str] = "Gaussian_yolo"

    uc_normalizer: float = key(1.0)
    yolo_point: str = key("center", choices=("center", "left_top", "right_bottom"))


@dataclass(frozen=True, kw_only=True)
class RegionSection(LayerSection):
    """`[region]`: the head of YOLOv2; `anchors` are (width, height) in grid cells."""

    name: ClassVar[str] = "region"
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {
        "tree": ("", "hierarchical class trees are not supported"),
        "map": ("", "class maps are not supported"),
    }
    ignored: ClassVar[frozenset[str]] = frozenset(("log",))

    anchors: tuple[tuple[float, float], ...] = key((), low=_LEAST_ANCHOR, required=True)
    classes: int = key(20, low=1, explicit=True)
    coords: int = key(4, low=4, high=4, explicit=True)
    num: int = key(1, low=1, high=_MOST_ANCHORS, explicit=True)
    softmax: bool = key(False)
    background: bool = key(False)
    bias_match: bool = key(False)
    rescore: bool = key(False)
    classfix: int = key(0)
    absolute: bool = key(False)
    jitter: float = key(0.2)
    resize: float = key(1.0)
    thresh: float = key(0.5)
    random: float = key(0.0)
    object_scale: float = key(1.0)
    noobject_scale: float = key(1.0)
    class_scale: float = key(1.0)
    coord_scale: float = key(1.0)
    mask_scale: float = key(1.0)
    focal_loss: bool = key(False)
    max: int = key(200, low=1)


@dataclass(frozen=True, kw_only=True)
class ContrastiveSection(LayerSection):
    """`[contrastive]`: a loss on embeddings; not used at inference, and not supported in training."""

    name: ClassVar[str] = "contrastive"

    classes: int = key(1000, low=1)
    num: int = key(1, low=1)
    temperature: float = key(1.0)
    yolo_layer: int | None = key(None)
    steps: int = key(1)
    cls_normalizer: float = key(1.0)
    max_delta: float = key(math.inf)
    contrastive_neg_max: int = key(3)


SECTION_TYPES: Mapping[str, type[LayerSection]] = {
    section.name: section
    for section in (
        ConvolutionalSection, MaxpoolSection, LocalAvgpoolSection, AvgpoolSection, UpsampleSection, RouteSection,
        ShortcutSection, ScaleChannelsSection, SamSection, DropoutSection, ReorgSection, Reorg3dSection,
        ConnectedSection, YoloSection, GaussianYoloSection, RegionSection, ContrastiveSection,
    )
}  # fmt: skip
SHORT_NAMES = {
    "network": "net", "conv": "convolutional", "max": "maxpool", "avg": "avgpool", "local_avg": "local_avgpool",
    "conn": "connected", "soft": "softmax", "normalization": "lrn",
}  # fmt: skip
REFUSED_SECTIONS = {
    **dict.fromkeys(("crnn", "rnn", "gru", "lstm", "conv_lstm", "history"), "recurrent layers are not supported"),
    **dict.fromkeys(("softmax", "cost", "crop", "lrn"), "it belongs to classifiers"),
    **dict.fromkeys(("detection", "local"), "it belongs to YOLOv1"),
    **dict.fromkeys(
        ("batchnorm", "activation", "implicit", "empty", "silence", "blank"),
        "it belongs to no released detection network",
    ),
}
