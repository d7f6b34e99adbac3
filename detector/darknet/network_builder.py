"""Modules and detection heads of a network, built from the sections of its .cfg."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from detector.darknet import layers
from detector.darknet.cfg_file import DarknetCfg
from detector.darknet.cfg_keys import written
from detector.darknet.darknet_activations import activation_named
from detector.darknet.layer_shapes import HEADS, LayerShape
from detector.darknet.sections import (
    UNTRAINABLE_ACTIVATIONS,
    AnchorSection,
    AvgpoolSection,
    ConnectedSection,
    ContrastiveSection,
    ConvolutionalSection,
    DropoutSection,
    GaussianYoloSection,
    LayerSection,
    LocalAvgpoolSection,
    MaxpoolSection,
    RegionSection,
    Reorg3dSection,
    ReorgSection,
    RouteSection,
    SamSection,
    ScaleChannelsSection,
    Section,
    ShortcutSection,
    UpsampleSection,
    YoloSection,
)
from detector.errors import DarknetError
from detector.models.anchor_levels import AnchorLevel, AnchorTraining
from detector.models.class_rows import ClassRows

StrideYX = tuple[Fraction, Fraction]

# Keys whose effect on training is not implemented here: key -> the value without an effect.
_UNTRAINABLE_NET: Mapping[str, object] = {
    "contrastive": False,
    "weights_reject_freq": 0,
    "equidistant_point": 0,
    "badlabels_rejection_percentage": 0.0,
    "num_sigmas_reject_badlabels": 0.0,
}
_UNTRAINABLE_LAYER: Mapping[str, object] = {
    "learning_rate": 1.0,
    "clip": 0.0,
    "dont_update": 0,
    "burnin_update": 0,
    "train_only_bn": False,
    "cbn": False,
    "dropblock": False,
    "delta_normalizer": 1.0,
}


def inputs_of(cfg: DarknetCfg, index: int) -> tuple[int, ...]:
    """Return the layers whose outputs a layer reads, in the order of its module's arguments; -1 is the input."""
    own = cfg.sources(index)
    sources = own if isinstance(cfg.layers[index], RouteSection) else (index - 1, *own)
    return tuple(_overwritten(cfg, source, index) for source in sources)


def _overwritten(cfg: DarknetCfg, source: int, reader: int) -> int:
    """Follow the dropouts after a layer, which overwrite its output in place, to the last one before the reader."""
    while 0 <= source < reader - 1 and isinstance(cfg.layers[source + 1], DropoutSection):
        source += 1
    return source


def strides_yx(cfg: DarknetCfg) -> list[StrideYX | None]:
    """Return canvas pixels per cell of each layer's output; None after a layer without cells, such as a global mean."""
    strides: list[StrideYX | None] = []
    for index, section in enumerate(cfg.layers):
        source = inputs_of(cfg, index)[-1 if isinstance(section, ScaleChannelsSection) else 0]
        before = strides[source] if source >= 0 else (Fraction(1), Fraction(1))
        if before is None or isinstance(section, AvgpoolSection | ConnectedSection):
            strides.append(None)
            continue
        factor_y = factor_x = Fraction(1)
        if isinstance(section, ConvolutionalSection | MaxpoolSection | LocalAvgpoolSection):
            factor_y, factor_x = Fraction(section.stride_y), Fraction(section.stride_x)
        elif isinstance(section, ReorgSection | Reorg3dSection):
            factor_y = factor_x = Fraction(section.stride)
        elif isinstance(section, UpsampleSection):
            factor_y = factor_x = Fraction(1, section.stride) if section.stride > 0 else Fraction(-section.stride)
        strides.append((before[0] * factor_y, before[1] * factor_x))
    return strides


def build_layers(cfg: DarknetCfg, shapes: tuple[LayerShape, ...]) -> nn.ModuleList:
    """Build one module per layer, with random weights.

    Args:
        cfg: the network.
        shapes: the shapes from `infer_shapes`.

    Raises:
        DarknetError: a section has no module; the message names every such section with file and line.
    """
    mistakes: list[str] = []
    built: list[nn.Module] = []
    for index, section in enumerate(cfg.layers):
        try:
            sources = inputs_of(cfg, index)
            layer = _layer(section, [shapes[s].output_chw[0] if s >= 0 else cfg.net.channels for s in sources])
            if isinstance(section, ConvolutionalSection) and section.share_index is not None:
                shared = section.share_index if section.share_index >= 0 else index + section.share_index
                _share(layer, built[shared])
            built.append(layer)
        except DarknetError as error:
            mistakes.append(f"{cfg.place(section)} {error}")
            built.append(layers.Unchanged())
    if mistakes:
        raise DarknetError("\n".join(mistakes))
    return nn.ModuleList(built)


def _share(layer: nn.Module, other: nn.Module) -> None:
    """Let a convolution use the weights of another one."""
    assert isinstance(layer, layers.DarknetConv)
    assert isinstance(other, layers.DarknetConv)  # the reader of the .cfg has checked it
    layer.share(other)


def _layer(section: LayerSection, channels: list[int]) -> nn.Module:
    """Build the module of a section; `channels` are those of its inputs."""
    if isinstance(section, ConvolutionalSection):
        return _convolution(section, channels[0])
    if isinstance(section, MaxpoolSection | LocalAvgpoolSection):
        return _pool(section, channels[0])
    if isinstance(section, ShortcutSection):
        activation = activation_named(section.activation)
        if section.weights_type == "none":
            return layers.Shortcut(activation)
        per_channel = channels[0] if section.weights_type == "per_channel" else None
        return layers.WeightedShortcut(activation, len(channels), per_channel, section.weights_normalization)
    if isinstance(section, ScaleChannelsSection | SamSection):
        return layers.Product(activation_named(section.activation))
    if isinstance(section, RouteSection):
        return layers.Route(section.groups, section.group_id)
    if isinstance(section, UpsampleSection):
        return layers.Upsample(section.stride, section.scale)
    if isinstance(section, DropoutSection):
        return nn.Dropout(section.probability)
    if isinstance(section, Reorg3dSection):
        return layers.Reorg3d(section.stride)
    if isinstance(section, ReorgSection):
        return layers.Reorg(section.stride)
    if isinstance(section, AvgpoolSection):
        return layers.GlobalAvgPool()
    if isinstance(section, (*HEADS, ContrastiveSection)):
        return layers.Unchanged()
    raise DarknetError("cannot be honoured: it belongs to classifiers and YOLOv1")


def _pool(section: MaxpoolSection | LocalAvgpoolSection, channels: int) -> nn.Module:
    stride_yx = (section.stride_y, section.stride_x)
    assert section.padding is not None  # the section derives it if the file has none
    if isinstance(section, LocalAvgpoolSection):
        if section.antialiasing:
            raise DarknetError("antialiasing cannot be honoured: only [convolutional] and [maxpool] have it")
        return layers.LocalAvgPool(section.size, stride_yx, section.padding)
    if section.antialiasing:
        return layers.BlurredMaxPool(
            section.size, stride_yx, section.padding, blur=section.antialiasing, channels=channels
        )
    return layers.MaxPool(section.size, stride_yx, section.padding)


def _convolution(section: ConvolutionalSection, in_channels: int) -> layers.DarknetConv:
    geometry = layers.ConvGeometry(
        section.size,
        stride_yx=(section.stride_y, section.stride_x),
        padding=section.kernel_padding,
        dilation=section.dilation,
        groups=section.groups,
    )
    activation, has_norm = activation_named(section.activation), section.batch_normalize
    if section.antialiasing:
        return layers.BlurredConv(
            in_channels, section.filters, geometry, activation, blur=section.antialiasing, batch_normalize=has_norm
        )
    return layers.DarknetConv(in_channels, section.filters, geometry, activation, batch_normalize=has_norm)


def stored_names(layer: nn.Module) -> dict[str, str]:
    """Map the names of a layer's arrays in a .weights file to the names of its tensors."""
    if isinstance(layer, layers.WeightedShortcut):
        return {"weights": "weights"}
    if not isinstance(layer, layers.DarknetConv):
        return {}
    if layer.norm is None:
        return {"biases": "conv.bias", "weights": "conv.weight"}
    return {
        "biases": "norm.bias",
        "scales": "norm.weight",
        "rolling_mean": "norm.running_mean",
        "rolling_variance": "norm.running_var",
        "weights": "conv.weight",
    }


# --- heads -------------------------------------------------------------------------------------------------------


def anchor_levels(cfg: DarknetCfg, shapes: tuple[LayerShape, ...]) -> tuple[AnchorLevel, ...]:
    """Return the anchor level of each raw map, in the order of the heads.

    Raises:
        DarknetError: there is no head, or the cells of a head do not divide the canvas evenly.
    """
    levels = []
    for section, shape, stride in zip(cfg.layers, shapes, strides_yx(cfg), strict=True):
        if not isinstance(section, HEADS):
            continue
        height, width = shape.output_chw[1:]
        if stride is None or height * stride[0] != cfg.net.height or width * stride[1] != cfg.net.width:
            raise DarknetError(
                f"{cfg.place(section)} has {height} x {width} cells, which do not divide the input of "
                f"{cfg.net.height} x {cfg.net.width} evenly; set height and width of [net] to multiples of its strides"
            )
        try:
            levels.append(_anchor_level(section, stride))
        except ValueError as error:
            raise DarknetError(f"{cfg.place(section)} {error}") from error
    if not levels:
        raise DarknetError(
            f"{cfg.path}: expected a [yolo], [Gaussian_yolo] or [region] section, got none; this is not a detector"
        )
    return tuple(levels)


def _anchor_level(section: AnchorSection | RegionSection, stride_yx: StrideYX) -> AnchorLevel:
    """Return the anchor level of a detection section: its anchors and how it is decoded and trained."""
    stride_hw = (float(stride_yx[0]), float(stride_yx[1]))
    if isinstance(section, RegionSection):
        mask = tuple(range(section.num))
        return AnchorLevel(section.classes, section.anchors, mask, stride_hw, kind="region", softmax=section.softmax)
    training = AnchorTraining(
        iou_loss=_word(section.iou_loss),
        iou_normalizer=section.iou_normalizer,
        obj_normalizer=section.obj_normalizer,
        cls_normalizer=section.cls_normalizer,
        ignore_thresh=section.ignore_thresh,
        truth_thresh=section.truth_thresh,
        iou_thresh=section.iou_thresh,
        iou_thresh_kind=_word(section.iou_thresh_kind),
        objectness_smooth=isinstance(section, YoloSection) and section.objectness_smooth,
        label_smooth_eps=section.label_smooth_eps,
        focal_loss=isinstance(section, YoloSection) and section.focal_loss,
        counters_per_class=tuple(map(float, section.counters_per_class)) or None,
        max_delta=None if math.isinf(section.max_delta) else section.max_delta,
        max_truths=section.max,
    )
    is_gaussian = isinstance(section, GaussianYoloSection)
    return AnchorLevel(
        section.classes,
        section.anchors,
        section.mask,
        stride_hw,
        kind="gaussian" if is_gaussian else "yolo",
        scale_x_y=section.scale_x_y,
        new_coords=isinstance(section, YoloSection) and section.new_coords,
        yolo_point=_word(section.yolo_point) if isinstance(section, GaussianYoloSection) else "center",
        training=training,
    )


def _word(text: str) -> Any:
    """Return a word unchanged, for a field of a literal type; the reader of the .cfg has checked it."""
    return text


def entries_before_classes(section: AnchorSection | RegionSection) -> int:
    """Return the number of channels per anchor before those of the classes."""
    return 9 if isinstance(section, GaussianYoloSection) else 5


def num_anchors(section: AnchorSection | RegionSection) -> int:
    """Return the number of anchors of one head."""
    return section.num if isinstance(section, RegionSection) else len(section.mask)


def head_convolutions(cfg: DarknetCfg, head: int) -> tuple[int, ...]:
    """Return the convolutions whose filters are the channels of a head's raw map.

    Raises:
        DarknetError: a layer between them rearranges channels, so no filter belongs to a single class.
    """
    waiting, convolutions = list(inputs_of(cfg, head)), set[int]()
    while waiting:
        index = waiting.pop()
        section = cfg.layers[index] if index >= 0 else None
        sources = inputs_of(cfg, index) if index >= 0 else ()
        if isinstance(section, ConvolutionalSection):
            convolutions.add(index)
        elif isinstance(section, DropoutSection | SamSection | ShortcutSection | MaxpoolSection | UpsampleSection) or (
            isinstance(section, RouteSection) and len(sources) == 1 and section.groups == 1
        ):
            waiting += sources
        else:
            raise DarknetError(
                f"{cfg.place(cfg.layers[head])} does not take its channels directly from convolutions, so the filters "
                f"of a class are not known; use the number of classes of the .cfg"
            )
    return tuple(sorted(convolutions))


def with_num_classes(cfg: DarknetCfg, num_classes: int) -> DarknetCfg:
    """Return the same network with heads for another number of classes.

    Raises:
        DarknetError: a head does not take its channels directly from convolutions.
    """
    changed = list(cfg.layers)
    for index, section in enumerate(cfg.layers):
        if not isinstance(section, HEADS) or section.classes == num_classes:
            continue
        if isinstance(section, AnchorSection):
            # The counters are of the objects of the old classes.
            changed[index] = dataclasses.replace(section, classes=num_classes, counters_per_class=())
        else:
            changed[index] = dataclasses.replace(section, classes=num_classes)
        filters = num_anchors(section) * (entries_before_classes(section) + num_classes)
        for number in head_convolutions(cfg, index):
            convolution = cfg.layers[number]
            assert isinstance(convolution, ConvolutionalSection)
            changed[number] = dataclasses.replace(convolution, filters=filters)
    return dataclasses.replace(cfg, layers=tuple(changed))


def class_rows(cfg: DarknetCfg) -> dict[int, ClassRows]:
    """Map the convolutions whose filters belong to classes to the layout of these filters."""
    return {
        convolution: ClassRows(num_anchors(section), entries_before_classes(section))
        for head, section in enumerate(cfg.layers)
        if isinstance(section, HEADS)
        for convolution in head_convolutions(cfg, head)
    }


# --- training ----------------------------------------------------------------------------------------------------


def reasons_against_training(cfg: DarknetCfg) -> list[str]:
    """List why the network cannot be trained, each reason with file and line; empty if it can be trained."""
    reasons = _differing(cfg, cfg.net, _UNTRAINABLE_NET)
    for section in cfg.layers:
        place = cfg.place(section)
        if isinstance(section, ContrastiveSection):
            reasons.append(f"{place} is a loss on embeddings, which is not supported in training")
        if isinstance(section, GaussianYoloSection | RegionSection):
            reasons.append(f"{place} has no loss here; only [yolo] heads can be trained")
        activation = getattr(section, "activation", "linear")
        if activation in UNTRAINABLE_ACTIVATIONS:
            reasons.append(f"{place} activation={activation} has no reliable gradient in Darknet")
        reasons += _differing(cfg, section, _UNTRAINABLE_LAYER)
    return reasons


def _differing(cfg: DarknetCfg, section: Section, harmless: Mapping[str, object]) -> list[str]:
    return [
        f"{cfg.place(section)} {key}={written(getattr(section, key))} is not supported in training"
        for key, value in harmless.items()
        if getattr(section, key, value) != value
    ]
