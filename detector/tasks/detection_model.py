"""Detection models: opened from files, run and evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.config import registry
from detector.config.nodes import presets_dir
from detector.config.schema import config_from_plain, config_to_plain
from detector.darknet.darknet_model_file import class_names_of, find_cfg_of, is_darknet_weights, load_darknet_file
from detector.data.class_matching import match_classes
from detector.data.coco import CocoAnnotations
from detector.errors import CheckpointError, ConfigError, DatasetError
from detector.evaluation.detection_metric import DetectionMetric, MetricNumbers
from detector.evaluation.evaluator import Evaluation, SplitDetections, evaluate
from detector.export.export_config import target_of
from detector.export.export_runtime import ExportRuntime
from detector.export.writer import open_export
from detector.inference.predictor import Predictor
from detector.inference.runtime import Runtime, TorchRuntime
from detector.inference.views import ViewsConfig
from detector.models.checkpoint import ModelFile, load_model_file, load_state
from detector.models.contracts import DetectionModel
from detector.models.precision import choose_device
from detector.models.published_weights import MODEL_SUFFIXES, is_published, resolve_weights, run_weights, with_origin
from detector.models.yolox_checkpoint import is_yolox_weights, load_yolox_file, size_of_config
from detector.structures.selection import with_selection
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.task import build_checked, config_of_file, load_experiment, load_experiment_of
from detector.training.events import Noted, Report

# Sections of a preset with folders of this machine.
_OF_RUNS = ("data", "loader", "train")


def load_detection(name: str, overrides: Sequence[str] = ()) -> DetectionConfig:
    """Load an experiment of detection, as `load_experiment` does.

    Raises:
        ConfigError: as `load_experiment`, or the experiment is of another task.
    """
    return load_experiment_of(DetectionConfig, name, overrides)


def build_model(config: DetectionConfig, num_classes: int) -> DetectionModel:
    """Build a model with random weights.

    Raises:
        ConfigError: the input size does not suit the model.
    """
    model: DetectionModel = build_checked(config.model, num_classes, config.input)
    return model


@dataclass(frozen=True)
class LoadedModel:
    """An opened model file: its experiment, its model and its description, with class names and category ids."""

    config: DetectionConfig
    model: DetectionModel | ExportRuntime
    file: ModelFile


def is_model(word: str) -> bool:
    """Tell whether a word means a model, by its suffix or as a published name, and not images or a video."""
    path = Path(word)
    return is_model_name(word) or not (path.exists() or path.suffix or set(word) & set("/*?[:-"))


def is_model_name(word: str) -> bool:
    """Tell whether a word names a model file by its suffix, a run folder or published weights."""
    path = Path(word)
    is_file = path.suffix in MODEL_SUFFIXES or target_of(path) is not None
    return is_file or run_weights(path) is not None or is_published(word)


def read_file(
    weights: Path, cfg: str | None = None, names: Path | None = None
) -> tuple[ModelFile, ExportRuntime | None]:
    """Read a model file of any format, and open it if it is an export; `cfg` and `names` are those of `load_model`.

    Raises:
        CheckpointError: the file cannot be read.
        DarknetError: a Darknet file cannot be read, or the files do not fit together.
        ConfigError: `cfg` or `names` does not suit the file.
    """
    if is_darknet_weights(weights):
        if not weights.exists():  # before a .cfg is looked for beside it
            raise CheckpointError(f"{weights} does not exist; check the path")
        return with_origin(load_darknet_file(weights, find_cfg_of(weights, cfg), names), weights), None
    if is_yolox_weights(weights) and cfg is None:
        return _with_listed_names(load_published_yolox(weights), weights, names), None
    if cfg is not None or names is not None:
        raise ConfigError(
            f"--cfg and --names: expected a Darknet .weights file, or a .pth for --names, got {weights}; leave them out"
        )
    if target_of(weights) is not None:
        export = open_export(weights)
        return export.description.file, export
    return load_model_file(weights), None


def load_model(
    weights: Path, overrides: Sequence[str] = (), *, cfg: str | None = None, names: Path | None = None
) -> LoadedModel:
    """Load a trained model from a model file, .weights, .pth or an export, with overrides on its experiment.

    Args:
        weights: the file, or the name of published weights that are on this machine, such as `yolox-nano`; of an export
            that selects by itself, `evaluate` of the experiment is that selection, except for overrides.
        overrides: texts such as `evaluate.iou=0.6`.
        cfg: the .cfg of a .weights file, or the name of a shipped one; by default the one beside it or of its name.
        names: the class names of a .weights file; by default those beside it, or numbers.

    Raises:
        CheckpointError: the file cannot be read or does not fit its own configuration.
        DarknetError: a Darknet file cannot be read, or the files do not fit together.
        ConfigError: an override is wrong.
    """
    weights = resolve_weights(weights)
    file, export = read_file(weights, cfg, names)
    carried, config = config_of_file(DetectionConfig, file, weights, overrides)
    if export is not None:
        if config.model != carried.model:
            raise ConfigError(f"{weights}: the network of an export cannot be changed; leave the keys of model out")
        if config.runtime != carried.runtime:
            raise ConfigError(
                f"{weights}: the precision of an export, {export.precision}, cannot be changed; leave precision and "
                "the keys of runtime out"
            )
        export.description.require_input(config.input)
        if export.selection is not None:  # its boxes can be evaluated with its own selection only
            own = with_selection(config.evaluate, export.selection, carried.evaluate)
            config = replace(config, evaluate=own)
        return LoadedModel(config, export, file)
    model = build_model(config, len(file.class_names))
    load_state(model, file.state, str(weights))
    return LoadedModel(config, model, file)


def load_published_yolox(weights: Path) -> ModelFile:
    """Load a .pth file of YOLOX with the experiment of the preset of its size, so that it can be trained as it is.

    Raises:
        CheckpointError: as `load_yolox_file`.
    """
    file = with_origin(load_yolox_file(weights), weights)
    plain = config_to_plain(load_detection(f"yolox-{size_of_config(file.config)}"))
    return replace(file, config={key: section for key, section in plain.items() if key not in _OF_RUNS})


def _with_listed_names(file: ModelFile, weights: Path, names: Path | None) -> ModelFile:
    """Return a file whose format has no class names with those of a list, given or beside it, if there is one.

    Raises:
        DarknetError: the list has another number of names.
    """
    if names is None and not weights.with_suffix(".names").is_file():
        return file
    num_classes = len(file.class_names)
    listed = class_names_of(weights, names, num_classes)
    return replace(file, class_names=listed, category_ids=tuple(range(num_classes)))


def with_views(loaded: LoadedModel, own: ViewsConfig, views: Mapping[str, object] | None) -> LoadedModel:
    """Return a model with other views of each image.

    Args:
        loaded: the model.
        own: the views that the keys change.
        views: keys of `ViewsConfig`, or None for `own`.

    Raises:
        ConfigError: a key is unknown or wrong.
    """
    if views is None and loaded.config.views == own:
        return loaded
    asked = config_from_plain(ViewsConfig, {**config_to_plain(own), **(views or {})}, "views")
    return replace(loaded, config=replace(loaded.config, views=asked))


def build_predictor(loaded: LoadedModel, batch_size: int = 1) -> Predictor:
    """Build a predictor from a loaded model."""
    runtime: Runtime
    if isinstance(loaded.model, ExportRuntime):
        loaded.model.description.require_input(loaded.config.input)
        if choose_device(loaded.config.device).type == "cuda" and loaded.config.device != "auto":
            raise ConfigError(f"device={loaded.config.device}: an export runs on the CPU here; leave the device out")
        runtime = loaded.model
    else:
        runtime = TorchRuntime(loaded.model, choose_device(loaded.config.device), loaded.config.runtime)
    names, ids = loaded.file.class_names, loaded.file.category_ids
    return Predictor(runtime, loaded.config.input, names, ids, batch_size=batch_size, views=loaded.config.views)


def read_split(
    config: DetectionConfig, split: str, report: Report = lambda event: None, *, with_notes: bool = True
) -> CocoAnnotations:
    """Read a split of the experiment's data set and report what was skipped in its file.

    Args:
        config: the experiment.
        split: the name of the split.
        report: receives a note on each kind of fault.
        with_notes: whether to report what the reader assumed about the whole data set.

    Raises:
        DatasetError: there is no such split, or its file is refused.
    """
    if config.data is None:
        raise DatasetError(
            "no data set is configured; give data=DATA, a folder, zip or file with images and annotations, such as "
            "data=data.yaml"
        )
    dataset = registry.build(config.data)
    annotations = dataset.split(split)
    for note in dataset.notes() if with_notes else ():
        report(Noted(note))
    for problem in annotations.problems:
        report(Noted(f"{annotations.annotations}: {problem}", is_of_data=True))
    return annotations


def read_train(
    config: DetectionConfig, report: Report = lambda event: None
) -> tuple[CocoAnnotations, CocoAnnotations | None]:
    """Read the images that a run is trained on, and those that its fold holds out; None without `train.fold`."""
    annotations = read_split(config, "train", report)
    return (annotations, None) if config.train.fold is None else config.train.fold.divided(annotations)


def matched(
    loaded: LoadedModel,
    annotations: CocoAnnotations,
    note: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
) -> tuple[LoadedModel, CocoAnnotations]:
    """Return the model with the category ids of an annotation file, and the part of the file that it can be scored on.

    Args:
        loaded: the model.
        annotations: the file; `match_classes` matches its categories with the classes of the model.
        note: called with each line about classes that were not matched by an equal name.
        warn: called with the line about categories that are left out; None for `note`.

    Raises:
        DatasetError: no category matches a class of the model.
    """
    match = match_classes(loaded.file.class_names, loaded.file.category_ids, annotations)
    for text in match.notes:
        note(text)
    if match.warning:
        (warn or note)(match.warning)
    file = replace(loaded.file, category_ids=match.category_ids)
    return replace(loaded, file=file), match.matched_part(annotations)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)  # names the line that asked for the evaluation


def evaluate_model(
    loaded: LoadedModel, annotations: CocoAnnotations, on_image: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Evaluate a loaded model on a split, on the categories that match its classes; warn of the others.

    Raises:
        DatasetError: no category matches a class of the model.
    """
    loaded, annotations = matched(loaded, annotations, _warn)
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    return evaluate(predictor, annotations, loaded.config.evaluate, on_image)


def measure_model(
    loaded: LoadedModel,
    annotations: CocoAnnotations,
    metric: DetectionMetric,
    on_image: Callable[[int], None] = lambda done: None,
) -> tuple[MetricNumbers, SplitDetections]:
    """Return the numbers of a model by a metric, and the detections that were scored; both as `matched` returns them.

    Args:
        loaded: the model, with the category ids of the split.
        annotations: the split.
        metric: the metric.
        on_image: called after each image with the number of images done.

    Raises:
        DatasetError: the split has a category that the model does not know.
    """
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    return metric.measure(predictor, annotations, loaded.config.evaluate, on_image)


@dataclass(frozen=True)
class ModelSize:
    """Size and cost of the network of a preset."""

    preset: str
    num_parameters: int
    gflops: float


def measure_presets(size: int, num_classes: int) -> list[ModelSize]:
    """Count parameters and GFLOPs (two per multiply-add, one image of `size` x `size`) of presets without a data set.

    Raises:
        ConfigError: the size does not suit a model.
    """
    measured = []
    for path in presets_dir().glob("*.yaml"):
        config = load_experiment(str(path), [f"input.size={size}"])
        if not isinstance(config, DetectionConfig) or config.data is not None or path.stem == "base":
            continue
        with torch.device("meta"):
            model = build_model(config, num_classes).eval()
            image = torch.zeros(1, config.input.channels, size, size, dtype=torch.uint8)
        num_parameters = sum(p.numel() for p in model.parameters())
        measured.append(ModelSize(path.stem, num_parameters, _num_convolution_flops(model, image) / 1e9))
    return sorted(measured, key=lambda m: m.gflops)


@torch.no_grad()
def _num_convolution_flops(model: DetectionModel, image: Tensor) -> int:
    """Return what `FlopCounterMode` counts for a model that multiplies in convolutions only, in half of its time."""
    counts = []

    def count(module: nn.Conv2d, inputs: Any, output: Tensor) -> None:
        counts.append(2 * output.numel() * module.weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(image)
    return sum(counts)
