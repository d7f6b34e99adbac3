"""Darknet's .weights as a model file, and a model written as .weights, .cfg and .names."""

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
    """Whether a file is named or starts as .weights; neither safetensors nor an archive of torch starts so."""
    if not path.is_file() or path.suffix == ".weights":
        return path.suffix == ".weights"
    try:
        with path.open("rb") as file:
            WeightsHeader.unpack(file.read(20), path)
    except (OSError, DarknetError):
        return False
    return True


def find_cfg_of(weights: Path, cfg: str | None = None) -> CfgText:
    """The .cfg asked for, else the one beside a .weights file, else the shipped one of its name.

    Raises:
        DarknetError: there is none.
    """
    beside = weights.with_suffix(".cfg")
    if cfg is not None:
        return CfgText.of_file(cfg)
    try:
        return CfgText.of_file(str(beside) if beside.is_file() else weights.stem)
    except DarknetError as error:
        raise DarknetError(f"{weights}: no {beside.name} stands beside it; name its network with --cfg") from error


def load_darknet_file(weights: Path, cfg: CfgText, names: Path | None = None, *, partial: bool = False) -> ModelFile:
    """A .weights file and its network, as a model file.

    Args:
        weights: the file.
        cfg: its network.
        names: a list of class names; without it `NAME.names` beside the file, or the numbers of the classes.
        partial: a file of the first layers only, as `yolov4.conv.137`, is accepted too.

    Returns:
        The model, or of a partial file the tensors it has; category ids are the class indices, the file knows none.

    Raises:
        DarknetError: a file is missing, cannot be read, or does not belong to the others.
    """
    parsed = cfg.parsed()
    num_classes = num_classes_of(parsed)
    read_weights(weights, parsed, partial=partial)  # a file that does not fit is refused before memory is taken
    model = DarknetNet(DarknetNet.Config(cfg), num_classes, parsed.net.channels)
    missing = set(model.load_weights(weights, partial=partial))
    return ModelFile(
        config={"model": {"name": "darknet", "cfg": dataclasses.asdict(cfg)}},
        class_names=class_names_of(weights, names, num_classes),
        category_ids=tuple(range(num_classes)),
        state={name: tensor for name, tensor in model.state_dict().items() if name not in missing},
    )


def num_classes_of(cfg: DarknetCfg) -> int:
    """The classes of a network, of which all heads have as many.

    Raises:
        DarknetError: heads differ, or there is none.
    """
    found = {section.classes: section for section in cfg.layers if isinstance(section, HEADS)}
    if not found:
        raise DarknetError(f"{cfg.path}: no section is [yolo], [Gaussian_yolo] or [region]; this is no detector")
    if len(found) > 1:
        listed = ", ".join(f"{number} on line {section.line}" for number, section in found.items())
        raise DarknetError(f"{cfg.path}: its heads want the same number of classes, found {listed}")
    return next(iter(found))


def class_names_of(weights: Path, names: Path | None, num_classes: int) -> tuple[str, ...]:
    """One name a class: from a list, from the one beside the weights, or the numbers of the classes.

    Raises:
        DatasetError: the list cannot be read.
        DarknetError: it has another length.
    """
    beside = weights.with_suffix(".names")
    path = names if names is not None else beside if beside.is_file() else None
    if path is None:
        return tuple(map(str, range(num_classes)))
    found = read_class_names(path, Findings(str(path)))  # an odd name is the list's own affair
    if len(found) != num_classes:
        raise DarknetError(
            f"{path}: the network has {num_classes} classes, found {len(found)} names; give its own list"
        )
    return found


def save_darknet_files(
    model: DarknetNet, target: Path, class_names: Sequence[str], canvas_hw: tuple[int, int], fit: str
) -> tuple[Path, ...]:
    """Writes a model as TARGET.weights with the TARGET.cfg and TARGET.names that belong to it.

    Args:
        model: the model.
        target: the .weights file; the two others get its name.
        class_names: one name a class.
        canvas_hw: height and width that the network is used at, for its `[net]`.
        fit: `letterbox` or `stretch`, for its `[net]`.

    Raises:
        DarknetError: a file cannot be written, or the model cannot be described.
    """
    height, width = canvas_hw
    net = dataclasses.replace(model.cfg.net, height=height, width=width, letter_box=fit == "letterbox")
    cfg, names = target.with_suffix(".cfg"), target.with_suffix(".names")
    model.save_weights(target)
    try:
        cfg.write_text(dump_cfg(dataclasses.replace(model.cfg, net=net)), encoding="ascii")
        names.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    except OSError as error:
        raise DarknetError(f"{cfg} or {names.name} is not written ({error.strerror}); check the disk") from error
    return target, cfg, names
