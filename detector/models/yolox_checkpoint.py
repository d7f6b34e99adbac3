"""Published `.pth` files of YOLOX: read without running code, recognised by their shapes, and written.

The files are archives of `torch.save` with the weights under the key `model`; training checkpoints hold more, which is
ignored. The entries have the names of the original code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from detector.config.registry import PartConfig, name_of
from detector.errors import CheckpointError
from detector.io.atomic import write_atomically
from detector.models.backbones import DEFAULT_LEVELS
from detector.models.checkpoint import ModelFile, checked_model_file
from detector.models.tensor_archive import read_archive
from detector.models.yolox import Yolox, YoloxDarknet, YoloxHead, YoloxPAN
from detector.structures.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

# depth, width, separable convolutions and side of the input in pixels of the published sizes
SIZES: dict[str, tuple[float, float, bool, int]] = {
    "nano": (0.33, 0.25, True, 416),
    "tiny": (0.33, 0.375, False, 416),
    "s": (0.33, 0.5, False, 640),
    "m": (0.67, 0.75, False, 640),
    "l": (1.0, 1.0, False, 640),
    "x": (1.33, 1.25, False, 640),
}
_STEM, _LAST = "backbone.backbone.stem.conv.conv.weight", "head.cls_preds.0.bias"
# Rules from names of this package to those of the original code, applied in order.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.stem\.conv\.", "backbone.backbone.stem.conv."),
        (r"^backbone\.stages\.3\.1\.reduce\.", "backbone.backbone.dark5.1.conv1."),
        (r"^backbone\.stages\.3\.1\.merge\.", "backbone.backbone.dark5.1.conv2."),
        *((rf"^backbone\.stages\.{i}\.", f"backbone.backbone.dark{i + 2}.") for i in range(4)),
        (r"^neck\.laterals\.1\.", "backbone.lateral_conv0."),
        (r"^neck\.laterals\.0\.", "backbone.reduce_conv1."),
        (r"^neck\.down_merges\.1\.", "backbone.C3_p4."),
        (r"^neck\.down_merges\.0\.", "backbone.C3_p3."),
        (r"^neck\.down_samples\.0\.", "backbone.bu_conv2."),
        (r"^neck\.down_samples\.1\.", "backbone.bu_conv1."),
        (r"^neck\.up_merges\.0\.", "backbone.C3_n3."),
        (r"^neck\.up_merges\.1\.", "backbone.C3_n4."),
        (r"^head\.class_branches\.", "head.cls_convs."),
        (r"^head\.box_branches\.", "head.reg_convs."),
        (r"^head\.class_predictions\.", "head.cls_preds."),
        (r"^head\.box_predictions\.", "head.reg_preds."),
        (r"^head\.objectness_predictions\.", "head.obj_preds."),
        (r"\.bottlenecks\.(\d+)\.reduce\.", r".m.\1.conv1."),
        (r"\.bottlenecks\.(\d+)\.expand\.", r".m.\1.conv2."),
        (r"\.main\.", ".conv1."),
        (r"\.side\.", ".conv2."),
        (r"\.merge\.", ".conv3."),
        (r"\.depthwise\.", ".dconv."),
        (r"\.pointwise\.", ".pconv."),
        (r"\.norm\.", ".bn."),
    )
)


def original_name(name: str) -> str:
    """Return the name that an entry of the state dict of `Yolox` has in a published file."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def is_yolox_weights(path: Path) -> bool:
    """Tell by its suffix whether a file holds published weights of YOLOX."""
    return path.suffix == ".pth"


def load_yolox_file(path: Path) -> ModelFile:
    """Load a published or trained `.pth` file of YOLOX as a model file.

    The size follows from the shapes. 80 classes are taken as those of COCO; otherwise the classes are numbers.

    Raises:
        CheckpointError: the file cannot be read, asks for code, is of another network or of another size, or has
            weights that are not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path")
    content = read_archive(path)
    given = content.get("model") if isinstance(content, dict) else None
    if not isinstance(given, dict) or not {_STEM, _LAST} <= {n for n, t in given.items() if isinstance(t, Tensor)}:
        raise CheckpointError(f"{path}: expected the weights of a YOLOX network under the key model, got others")
    size = _size_of(given)
    num_classes = len(given[_LAST])
    with torch.device("meta"):
        own = Yolox(config_of_size(size), num_classes, image_channels=given[_STEM].shape[1] // 4).state_dict()
    listed = {original_name(name): name for name in own}
    state = {listed.get(str(name), str(name)): tensor for name, tensor in given.items() if isinstance(tensor, Tensor)}
    wrong = [
        f"{original_name(name)} {list(state[name].shape) if name in state else 'missing'}"
        for name, tensor in own.items()
        if name not in state or state[name].shape != tensor.shape
    ] + [f"{name} unexpected" for name in state if name not in own]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path}: expected the entries of yolox-{size} with {num_classes} classes, got {', '.join(wrong[:3])}{more}"
            "; give the file of a published size, or one that was trained from it"
        )
    is_coco = num_classes == len(COCO_CLASS_NAMES)
    source = {
        "config": {"model": plain_model(config_of_size(size)), "input": {"size": SIZES[size][3]}},
        "class_names": COCO_CLASS_NAMES if is_coco else tuple(map(str, range(num_classes))),
        "category_ids": COCO_CATEGORY_IDS if is_coco else tuple(range(num_classes)),
    }
    return checked_model_file(source, state, str(path))


def _size_of(state: Mapping[str, Tensor]) -> str:
    """Return the published size that has as many stem channels, bottlenecks and separable convolutions."""
    width = len(state[_STEM]) / 64
    num_bottlenecks = sum(
        re.fullmatch(r"backbone\.backbone\.dark2\.1\.m\.\d+\.conv1\.conv\.weight", str(name)) is not None
        for name in state
    )
    depthwise = any(".dconv." in str(name) for name in state)
    for name, (own_depth, own_width, own_depthwise, _) in SIZES.items():
        if (own_width, own_depthwise, max(1, round(3 * own_depth))) == (width, depthwise, num_bottlenecks):
            return name
    raise CheckpointError(
        f"YOLOX weights: expected one of the sizes {', '.join(SIZES)}, got {num_bottlenecks} bottlenecks in the first "
        f"stage, width {width:g}, {'with' if depthwise else 'without'} separable convolutions; give a published size"
    )


def config_of_size(size: str) -> Yolox.Config:
    """Return the config of a published size, a key of `SIZES`."""
    depth, width, depthwise, _ = SIZES[size]
    return Yolox.Config(
        depth=depth,
        width=width,
        backbone=YoloxDarknet.Config(depthwise),
        neck=YoloxPAN.Config(depthwise),
        head=YoloxHead.Config(depthwise),
    )


def size_of_config(config: Mapping[str, object]) -> str | None:
    """Return the published size of the model in a plain configuration, a key of `SIZES`, or None."""
    model = config.get("model")
    shape = (model.get("depth"), model.get("width")) if isinstance(model, Mapping) else None
    return next((size for size, (depth, width, _, _) in SIZES.items() if (depth, width) == shape), None)


def plain_model(config: Yolox.Config) -> dict[str, object]:
    """Return a model config as plain data, with the names of its parts."""

    def plain(part: PartConfig[object]) -> dict[str, object]:
        values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        nested = {key: plain(v) if isinstance(v, PartConfig) else v for key, v in values.items()}
        return {"name": name_of(part), **nested}

    return plain(config)


def save_yolox_file(path: Path, model: Yolox) -> None:
    """Write the weights of a model as a `.pth` file with the names of the original code, atomically.

    Raises:
        CheckpointError: its parts or levels are not those of YOLOX, or writing fails.
    """
    parts = (model.backbone, model.neck, model.head)
    if not all(isinstance(part, kind) for part, kind in zip(parts, (YoloxDarknet, YoloxPAN, YoloxHead), strict=True)):
        raise CheckpointError(f"{path}: expected a model with the parts of YOLOX, got others; choose .safetensors")
    if model.backbone.strides != DEFAULT_LEVELS:
        raise CheckpointError(
            f"{path}: expected the levels {list(DEFAULT_LEVELS)} of the original code, got "
            f"{list(model.backbone.strides)}; choose .safetensors"
        )
    state = {original_name(name): t.cpu().contiguous().clone() for name, t in model.state_dict().items()}
    write_atomically(path, lambda file: torch.save({"model": state}, file, pickle_protocol=2))
