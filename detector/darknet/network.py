"""Networks described by a Darknet .cfg, as models of the registry."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.config.registry import register
from detector.darknet.cfg_file import MAX_FILE_BYTES, DarknetCfg, find_cfg, parse_cfg
from detector.darknet.layer_shapes import HEADS, infer_shapes
from detector.darknet.network_builder import (
    anchor_levels,
    build_layers,
    class_rows,
    inputs_of,
    reasons_against_training,
    stored_names,
    strides_yx,
    with_num_classes,
)
from detector.darknet.sections import AnchorSection, ConvolutionalSection
from detector.darknet.training_recipe import recipe_of
from detector.darknet.weights_file import WeightsHeader, read_weights, write_weights
from detector.errors import DarknetError
from detector.models.anchor_levels import decode_levels
from detector.models.class_rows import ClassRows
from detector.models.contracts import DetectionModel, ModelConfig
from detector.models.folding import fold


@dataclass(frozen=True)
class CfgText:
    """A .cfg, carried whole, so that a model file describes its network without another file.

    Attributes:
        file: what messages call it.
        text: its content.
    """

    file: str
    text: str

    @classmethod
    def of_file(cls, name: str, folder: Path = Path()) -> CfgText:
        """Reads a .cfg by its path, relative to `folder`, or a shipped one by name, such as `yolov4-tiny`.

        Raises:
            DarknetError: there is none, or it cannot be read.
        """
        path = folder / os.path.expanduser(name)  # unlike Path's, it takes a name of an unknown user as it is
        path = path if os.path.isfile(path) else find_cfg(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)  # the parser refuses what is longer
        except OSError as error:
            raise DarknetError(f"{path} cannot be read: {error.strerror}") from error
        return cls(path.name, data.decode("utf-8", "replace"))

    def parsed(self) -> DarknetCfg:
        """The sections.

        Raises:
            DarknetError: the file cannot be honoured; every reason with file and line.
        """
        return parse_cfg(self.text, self.file)


_NMS_KINDS = {"default": "plain", "cornersnms": "plain", "greedynms": "greedy", "diounms": "diou"}


def experiment_defaults(cfg: DarknetCfg) -> dict[str, Any]:
    """Settings of an experiment that hold for a network unless others are given, as plain data.

    Input size, letterbox and resizing are those of `[net]`, non-maximum suppression that of the last head; its overlap
    is what Darknet's commands use: 0.45 to show detections, 0.6 to measure them on COCO.
    """
    net = cfg.net
    heads = [section for section in cfg.layers if isinstance(section, HEADS)]
    last = heads[-1] if heads else None
    suppression: dict[str, Any] = {}
    if isinstance(last, AnchorSection):
        suppression = {"nms": _NMS_KINDS[last.nms_kind], "nms_beta": last.beta_nms}
    return {
        "loss": {"name": "anchor"},
        "input": {
            "size": net.width if net.width == net.height else [net.height, net.width],
            "channels": net.channels,
            "fit": "letterbox" if net.letter_box else "stretch",
            "arithmetic": "darknet",
        },
        "evaluate": {"iou": 0.6, **suppression},
        "predict": {"iou": 0.45, **suppression},
    }


@register("darknet")
class DarknetNet(DetectionModel):
    """The network of a .cfg, layer by layer; `layers.12` is what the .cfg counts as layer 12.

    Raw maps are the inputs of the detection layers, in the order of the file.

    Attributes:
        cfg: the network, with as many classes and image channels as the model was built for.
        layers: one module a layer.
        anchor_levels: what each raw map means.
        seen: images seen in training, as a .weights file counts them.
    """

    seen: Tensor

    @dataclass(frozen=True)
    class Config(ModelConfig):
        """The network.

        Attributes:
            cfg: a path, or the name of a shipped network such as yolov4-tiny; a model file carries the text itself.
            recipe: whether an experiment that says nothing else trains as the .cfg has it, with its optimiser,
                schedule, batch and number of updates; without it as every model of this package.
        """

        cfg: CfgText = field(default_factory=lambda: CfgText.of_file("yolov4-tiny"))
        recipe: bool = False

        def experiment_defaults(self) -> dict[str, Any]:
            """Input, loss and non-maximum suppression as the .cfg has them; its training recipe where that is asked."""
            cfg = self.cfg.parsed()
            return {**experiment_defaults(cfg), **(recipe_of(cfg) if self.recipe else {})}

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        """A network with random weights.

        Raises:
            DarknetError: the .cfg cannot be honoured; every reason with file, line and section.
        """
        super().__init__()
        if num_classes < 1 or image_channels < 1:
            raise ValueError(
                f"DarknetNet wants at least 1 class and 1 channel, found {num_classes} and {image_channels}"
            )
        self.num_classes, self.image_channels = num_classes, image_channels
        written = config.cfg.parsed()
        net = dataclasses.replace(written.net, channels=image_channels)
        self.cfg = cfg = dataclasses.replace(with_num_classes(written, num_classes), net=net)
        self.notes = written.warnings
        self.may_skip_parameters = any(s.stopbackward or s.onlyforward for s in cfg.layers)
        shapes = infer_shapes(cfg)
        self.layers = build_layers(cfg, shapes)
        self.anchor_levels = anchor_levels(cfg, shapes)
        strides = [stride for pair in strides_yx(cfg) if pair for stride in pair]
        self.max_stride = math.lcm(*(int(stride) for stride in strides if stride.denominator == 1))
        self._inputs = tuple(inputs_of(cfg, index) for index in range(len(cfg.layers)))
        self._last_reader = {source: index for index, sources in enumerate(self._inputs) for source in sources}
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One raw map (B, anchors * (5 + classes), H / stride, W / stride) a head, of images (B, C, H, W)."""
        self.check_image_hw((images.shape[-2], images.shape[-1]))
        if self.training:
            self.seen += len(images)
        outputs, raw_maps = {-1: self.in_unit_range(images)}, []
        num_frozen = self.num_frozen() if self.training else 0
        for index, (layer, section) in enumerate(zip(self.layers, self.cfg.layers, strict=True)):
            inputs = [outputs[source] for source in self._inputs[index]]
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= num_frozen):
                output: Tensor = layer(*inputs)
            outputs[index] = output.detach() if section.onlyforward else output
            if isinstance(section, HEADS):
                raw_maps.append(output)
            for source in {*self._inputs[index], index}:
                if self._last_reader.get(source, index) == index:  # nothing later reads it
                    del outputs[source]
        return tuple(raw_maps)

    def num_frozen(self) -> int:
        """The first layers, up to one with `stopbackward`, that do not learn at present.

        1 freezes for good; N > 1 until iteration N, which comes after N batches of `[net]` have been seen.
        """
        stops = [(index, section.stopbackward) for index, section in enumerate(self.cfg.layers) if section.stopbackward]
        if not stops:
            return 0
        iteration = int(self.seen) // self.cfg.net.batch
        return max((index + 1 for index, until in stops if until == 1 or until > iteration), default=0)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        return decode_levels(raw_maps, self.anchor_levels)

    def class_rows(self) -> dict[str, ClassRows]:
        """The tensors of the last convolutions."""
        own = self.state_dict().keys()
        rows = {f"layers.{index}.": layout for index, layout in class_rows(self.cfg).items()}
        return {name: layout for prefix, layout in rows.items() for name in own if name.startswith(prefix)}

    def reasons_against_training(self) -> list[str]:
        """Sections and keys that can be run but not trained, each with file and line."""
        return reasons_against_training(self.cfg)

    # --- .weights ------------------------------------------------------------------------------------------------

    def _stored(self) -> dict[tuple[int, str], str]:
        """What a .weights file holds: layer and name of an array -> the tensor's name in the state dict."""
        return {
            (index, name): f"layers.{index}.{own}"
            for index, (layer, section) in enumerate(zip(self.layers, self.cfg.layers, strict=True))
            if getattr(section, "share_index", None) is None
            for name, own in stored_names(layer).items()
        }

    def load_weights(self, path: Path, *, partial: bool = False) -> tuple[str, ...]:
        """Takes the weights of a .weights file and its number of images seen.

        Args:
            path: the file, of this very network.
            partial: a file of the first layers only, as `yolov4.conv.137`, is accepted too.

        Returns:
            The tensors of the state dict that the file did not have and that were left as they were.

        Raises:
            DarknetError: the file cannot be read or is that of another network.
        """
        weights = read_weights(path, self.cfg, partial=partial)
        state, stored = self.state_dict(), self._stored()
        for key, array in weights.arrays.items():
            state[stored[key]].copy_(torch.from_numpy(array.astype(np.float32)))  # a copy: the file is mapped, not read
        self.seen.fill_(min(weights.header.seen, torch.iinfo(torch.int64).max))
        return tuple(stored[record.layer, record.name] for record in weights.missing)

    def save_weights(self, path: Path, header: WeightsHeader | None = None) -> None:
        """Writes a .weights file of version 0.2.5, or with the header given, that `cfg` describes.

        Raises:
            DarknetError: a value is not finite, or the file cannot be written.
        """
        state = self.state_dict()
        arrays = {key: state[name].float().cpu().contiguous().numpy() for key, name in self._stored().items()}
        write_weights(path, self.cfg, arrays, header=header or WeightsHeader(seen=int(self.seen)))

    def folded(self) -> DarknetNet:
        """A copy for inference without batch norm, folded into the convolutions in float64.

        Its `.cfg` and .weights mean the same to readers that take another epsilon for batch norm, as OpenCV does.
        """
        net = fold(copy.deepcopy(self).double()).float()
        layers = (
            dataclasses.replace(section, batch_normalize=False, cbn=False)
            if isinstance(section, ConvolutionalSection)
            else section
            for section in net.cfg.layers
        )
        net.cfg = dataclasses.replace(net.cfg, layers=tuple(layers))
        return net
