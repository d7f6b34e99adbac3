"""Networks described by a Darknet .cfg, as registered models."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

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
    """Complete text of a .cfg, so that a model file describes its network without another file.

    Attributes:
        file: name of the file in messages.
        text: content of the file.
    """

    file: str
    text: str

    @classmethod
    def of_file(cls, name: str, folder: Path = Path()) -> CfgText:
        """Read a .cfg by its path, relative to `folder`, or a shipped one by name, such as `yolov4-tiny`.

        Raises:
            DarknetError: there is no such file, or it cannot be read.
        """
        path = folder / os.path.expanduser(name)  # unlike Path.expanduser, keeps the name of an unknown user
        path = path if os.path.isfile(path) else find_cfg(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)  # the parser refuses longer texts
        except OSError as error:
            raise DarknetError(f"{path} cannot be read: {error.strerror}") from error
        return cls(path.name, data.decode("utf-8", "replace"))

    def parsed(self) -> DarknetCfg:
        """Parse the text.

        Raises:
            DarknetError: the file cannot be honoured; the message lists every reason with file and line.
        """
        return parse_cfg(self.text, self.file)


_NMS_KINDS = {"default": "plain", "cornersnms": "plain", "greedynms": "greedy", "diounms": "diou"}


def experiment_defaults(cfg: DarknetCfg) -> dict[str, object]:
    """Return the default settings of an experiment with a network, as plain data.

    Input size, letterbox and resizing come from `[net]`, non-maximum suppression from the last head. Its IoU threshold
    is that of Darknet's commands: 0.45 to show detections, 0.6 to evaluate them on COCO.
    """
    net = cfg.net
    heads = [section for section in cfg.layers if isinstance(section, HEADS)]
    last = heads[-1] if heads else None
    suppression: dict[str, object] = {}
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
    """Network of a .cfg, layer by layer; `layers.12` is layer 12 of the .cfg.

    The raw maps are the inputs of the detection layers, in the order of the file.

    Attributes:
        cfg: the network, with the number of classes and image channels of the model.
        layers: one module per layer.
        anchor_levels: anchors and decoding of each raw map.
        seen: images seen in training, as counted in a .weights file.
    """

    seen: Tensor

    @dataclass(frozen=True)
    class Config(ModelConfig):
        """Settings of the model.

        Attributes:
            cfg: a path, or the name of a shipped network such as yolov4-tiny; a model file holds the text itself.
            recipe: whether the optimiser, schedule, batch size and number of updates of the .cfg are the defaults of an
                experiment; otherwise the defaults are those of every model of this package.
        """

        cfg: CfgText = field(default_factory=lambda: CfgText.of_file("yolov4-tiny"))
        recipe: bool = False

        def experiment_defaults(self) -> dict[str, object]:
            """Return input, loss and non-maximum suppression of the .cfg, and with `recipe` its training recipe."""
            cfg = self.cfg.parsed()
            return {**experiment_defaults(cfg), **(recipe_of(cfg) if self.recipe else {})}

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        """Build the network with random weights.

        Raises:
            DarknetError: the .cfg cannot be honoured; the message lists every reason with file, line and section.
            ValueError: `num_classes` or `image_channels` is below 1.
        """
        super().__init__()
        if num_classes < 1 or image_channels < 1:
            raise ValueError(
                f"DarknetNet: expected at least 1 class and 1 channel, got {num_classes} and {image_channels}"
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
        """Return a raw map (B, anchors * (5 + classes), H / stride, W / stride) per head for images (B, C, H, W)."""
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
                if self._last_reader.get(source, index) == index:  # no later layer reads it
                    del outputs[source]
        return tuple(raw_maps)

    def num_frozen(self) -> int:
        """Return the number of first layers that do not learn at present, up to a layer with `stopbackward`.

        A value of 1 freezes them for good, N > 1 until iteration N, when N batches of `[net]` have been seen.
        """
        stops = [(index, section.stopbackward) for index, section in enumerate(self.cfg.layers) if section.stopbackward]
        if not stops:
            return 0
        iteration = int(self.seen) // self.cfg.net.batch
        return max((index + 1 for index, until in stops if until == 1 or until > iteration), default=0)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Decode raw maps to boxes, float32 (B, A, 4) in canvas pixels, and scores, float32 (B, A, classes) in 0..1."""
        return decode_levels(raw_maps, self.anchor_levels)

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the last convolutions with the layout of their class rows."""
        own = self.state_dict().keys()
        rows = {f"layers.{index}.": layout for index, layout in class_rows(self.cfg).items()}
        return {name: layout for prefix, layout in rows.items() for name in own if name.startswith(prefix)}

    def reasons_against_training(self) -> list[str]:
        """List the sections and keys that cannot be trained, each with file and line."""
        return reasons_against_training(self.cfg)

    # --- .weights ------------------------------------------------------------------------------------------------

    def _stored(self) -> dict[tuple[int, str], str]:
        """Map the arrays of a .weights file, as layer and name, to the names of tensors in the state dict."""
        return {
            (index, name): f"layers.{index}.{own}"
            for index, (layer, section) in enumerate(zip(self.layers, self.cfg.layers, strict=True))
            if getattr(section, "share_index", None) is None
            for name, own in stored_names(layer).items()
        }

    def load_weights(self, path: Path, *, partial: bool = False) -> tuple[str, ...]:
        """Load the weights of a .weights file and its number of images seen.

        Args:
            path: a file of this network.
            partial: also accept a file of the first layers only, such as `yolov4.conv.137`.

        Returns:
            The names of the tensors that are not in the file; they keep their values.

        Raises:
            DarknetError: the file cannot be read or belongs to another network.
        """
        weights = read_weights(path, self.cfg, partial=partial)
        state, stored = self.state_dict(), self._stored()
        for key, array in weights.arrays.items():
            # astype copies, because the array is mapped from the file.
            state[stored[key]].copy_(torch.from_numpy(array.astype(np.float32)))
        self.seen.fill_(min(weights.header.seen, torch.iinfo(torch.int64).max))
        return tuple(stored[record.layer, record.name] for record in weights.missing)

    def save_weights(self, path: Path, header: WeightsHeader | None = None) -> None:
        """Write a .weights file for `cfg`, of version 0.2.5 unless `header` is given.

        Raises:
            DarknetError: a value is not finite, or the file cannot be written.
        """
        state = self.state_dict()
        arrays = {key: state[name].float().cpu().contiguous().numpy() for key, name in self._stored().items()}
        write_weights(path, self.cfg, arrays, header=header or WeightsHeader(seen=int(self.seen)))

    def folded(self) -> DarknetNet:
        """Return a copy for inference with batch norm folded into the convolutions, in float64.

        Its .cfg and .weights also give the same results in readers with another batch norm epsilon, such as OpenCV.
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
