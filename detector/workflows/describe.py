"""Description of a model file of any format: parameters, FLOPs, input, classes, provenance, layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detector.config import registry
from detector.config.nodes import presets_dir
from detector.config.schema import config_from_plain, config_to_plain
from detector.darknet.darknet_model_file import num_classes_of
from detector.darknet.network import CfgText
from detector.models.checkpoint import ModelFile
from detector.models.folding import without_training_parts
from detector.models.published_weights import is_published, published_file, resolve_weights
from detector.structures.coco_classes import COCO_CLASS_NAMES
from detector.tasks.detection_model import read_file
from detector.tasks.task import TaskConfig, build_checked, load_experiment, task_of


@dataclass(frozen=True)
class LayerDescription:
    """Layer of a network: its name, its kind, the shape of its output for one image and its number of parameters."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_parameters: int


@dataclass(frozen=True)
class ModelDescription:
    """Description of a model file.

    Attributes:
        path: the file.
        product: detector or classifier.
        network: name of the kind of network, such as yolox.
        num_parameters: number of trainable numbers of the network as it predicts, without parts that only train it.
        gflops: billions of operations for one image, two for each multiply-add.
        input: canvas: size, channels, fit and arithmetic.
        class_names: name of each class.
        metrics: measured values by name.
        provenance: where the first weights came from, as in `ModelFile`; empty if they were random or are not there.
        has_weights: false for a `.cfg` or a preset.
        written: for an export its format and precision, else nothing.
        layers: the layers in the order of their use.
    """

    path: str
    product: str
    network: str
    num_parameters: int
    gflops: float
    input: dict[str, object]
    class_names: tuple[str, ...]
    metrics: dict[str, float]
    provenance: dict[str, str]
    has_weights: bool
    written: dict[str, object]
    layers: tuple[LayerDescription, ...]


def describe_model(path: Path, cfg: str | None = None, names: Path | None = None) -> ModelDescription:
    """Describe a model file, an export, a .cfg, a preset or published weights that are on this machine.

    A preset has COCO's classes. The network of an export is described as it was before the export.

    Raises:
        DetectorError: the file cannot be read or is of another program.
    """
    written: dict[str, object] = {}
    if path.suffix == ".cfg" or _is_preset(path):
        config = load_experiment(str(path))
        is_cfg = path.suffix == ".cfg"
        num_classes = num_classes_of(CfgText.of_file(str(path)).parsed()) if is_cfg else len(COCO_CLASS_NAMES)
        names_of = tuple(map(str, range(num_classes))) if is_cfg else COCO_CLASS_NAMES
        file = ModelFile(config_to_plain(config), names_of, tuple(range(num_classes)), {})
    else:
        path = resolve_weights(path)
        file, export = read_file(path, cfg, names)
        config = config_from_plain(TaskConfig, file.config, str(path))
        if export is not None:
            written = {"target": export.description.target, "precision": export.precision}
    with torch.device("meta"):
        model = without_training_parts(build_checked(config.model, len(file.class_names), config.input)).eval()
        height, width = config.input.canvas_hw
        image = torch.zeros(1, config.input.channels, height, width, dtype=torch.uint8)
    gflops, layers = _measured(model, image)
    return ModelDescription(
        str(path),
        task_of(type(config)).product,
        registry.name_of(config.model),
        sum(parameter.numel() for parameter in model.parameters()),
        gflops,
        dataclasses.asdict(config.input),
        file.class_names,
        file.metrics,
        file.provenance,
        bool(file.state) or bool(written),
        written,
        layers,
    )


def _is_preset(path: Path) -> bool:
    """Tell whether a word is the name of a preset, and not of a file or of weights that are on this machine."""
    is_taken = path.exists() or (is_published(path) and published_file(path.name) is not None)
    return not is_taken and len(path.parts) == 1 and (presets_dir() / f"{path}.yaml").is_file()


@torch.no_grad()
def _measured(model: nn.Module, image: Tensor) -> tuple[float, tuple[LayerDescription, ...]]:
    """Return GFLOPs and layers; a convolution with its norm and activation is one layer."""
    layers: list[LayerDescription] = []

    def note(name: str, module: nn.Module, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        layers.append(LayerDescription(name, type(module).__name__, shape, num_parameters))

    blocks = [name for name, module in model.named_modules() if isinstance(getattr(module, "conv", None), nn.Conv2d)]
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{block}.") for block in blocks)
        if name in blocks or (not is_inside and not list(module.children())):
            module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 1e9, tuple(layers)
