"""Conversion of .weights to a model file, and of a model to .weights, .cfg and .names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from detector.darknet.cfg_file import DarknetCfg, dump_cfg
from detector.darknet.layer_shapes import HEADS
from detector.darknet.network import CfgText, DarknetNet
from detector.darknet.weights_file import WeightsHeader, read_weights
from detector.data.problems import Findings
from detector.data.txt_labels import read_class_names
from detector.errors import DarknetError
from detector.models.checkpoint import ModelFile


def is_darknet_weights(path: Path) -> bool:
    """Tell by suffix or first bytes whether a file is .weights; safetensors and torch archives start differently."""
    if not path.is_file() or path.suffix == ".weights":
        return path.suffix == ".weights"
    try:
        with path.open("rb") as file:
            WeightsHeader.unpack(file.read(20), path)
    except (OSError, DarknetError):
        return False
    return True


def find_cfg_of(weights: Path, cfg: str | None = None) -> CfgText:
    """Return the .cfg named, else the one beside the .weights file, else the shipped one of its name.

    Raises:
        DarknetError: there is no such file.
    """
    beside = weights.with_suffix(".cfg")
    if cfg is not None:
        return CfgText.of_file(cfg)
    try:
        return CfgText.of_file(str(beside) if beside.is_file() else weights.stem)
    except DarknetError as error:
        raise DarknetError(f"{weights}: there is no {beside.name} beside it; name the network with --cfg") from error


def load_darknet_file(weights: Path, cfg: CfgText, names: Path | None = None, *, partial: bool = False) -> ModelFile:
    """Load a .weights file and its network as a model file.

    Args:
        weights: the file.
        cfg: its network.
        names: a list of class names; by default `NAME.names` beside the file, or else the class indices.
        partial: also accept a file of the first layers only, such as `yolov4.conv.137`.

    Returns:
        The model, or the tensors of a partial file. Category ids are the class indices, because .weights has no ids.

    Raises:
        DarknetError: a file is missing, cannot be read, or does not fit the others.
    """
    parsed = cfg.parsed()
    num_classes = num_classes_of(parsed)
    read_weights(weights, parsed, partial=partial)  # refuses a file that does not fit before the model takes memory
    model = DarknetNet(DarknetNet.Config(cfg), num_classes, parsed.net.channels)
    missing = set(model.load_weights(weights, partial=partial))
    return ModelFile(
        config={"model": {"name": "darknet", "cfg": dataclasses.asdict(cfg)}},
        class_names=class_names_of(weights, names, num_classes),
        category_ids=tuple(range(num_classes)),
        state={name: tensor for name, tensor in model.state_dict().items() if name not in missing},
    )


def num_classes_of(cfg: DarknetCfg) -> int:
    """Return the number of classes of a network, the same for all heads.

    Raises:
        DarknetError: the heads differ, or there is no head.
    """
    heads = {section.classes: section for section in cfg.layers if isinstance(section, HEADS)}
    if not heads:
        raise DarknetError(
            f"{cfg.path}: expected a [yolo], [Gaussian_yolo] or [region] section, got none; this is not a detector"
        )
    if len(heads) > 1:
        listed = ", ".join(f"{number} on line {section.line}" for number, section in heads.items())
        raise DarknetError(f"{cfg.path}: expected the same number of classes in all heads, got {listed}")
    return next(iter(heads))


def class_names_of(weights: Path, names: Path | None, num_classes: int) -> tuple[str, ...]:
    """Return one name per class: from a list, from the list beside the weights, or the class indices.

    Raises:
        DatasetError: the list cannot be read.
        DarknetError: its length is not `num_classes`.
    """
    beside = weights.with_suffix(".names")
    path = names if names is not None else beside if beside.is_file() else None
    if path is None:
        return tuple(map(str, range(num_classes)))
    listed = read_class_names(path, Findings(str(path)))  # remarks on odd names are dropped
    if len(listed) != num_classes:
        raise DarknetError(
            f"{path}: expected {num_classes} names, one per class of the network, got {len(listed)}; give its own list"
        )
    return listed


def save_darknet_files(
    model: DarknetNet, target: Path, class_names: Sequence[str], canvas_hw: tuple[int, int], fit: str
) -> tuple[Path, ...]:
    """Write a model as TARGET.weights, with its TARGET.cfg and TARGET.names.

    Args:
        model: the model.
        target: the .weights file; the other two get the same name.
        class_names: one name per class.
        canvas_hw: height and width of the network input, for `[net]`.
        fit: `letterbox` or `stretch`, for `[net]`.

    Returns:
        The paths of the three files.

    Raises:
        DarknetError: a file cannot be written, or no .cfg can describe the model.
    """
    height, width = canvas_hw
    net = dataclasses.replace(model.cfg.net, height=height, width=width, letter_box=fit == "letterbox")
    cfg, names = target.with_suffix(".cfg"), target.with_suffix(".names")
    model.save_weights(target)
    try:
        cfg.write_text(dump_cfg(dataclasses.replace(model.cfg, net=net)), encoding="ascii")
        names.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    except OSError as error:
        raise DarknetError(f"{cfg} or {names.name} cannot be written ({error.strerror}); check the disk") from error
    return target, cfg, names
