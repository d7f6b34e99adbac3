"""`detector convert`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from detector.cli.model_file import load
from detector.cli.progress import say
from detector.cli.usage import split_words
from detector.config.schema import config_to_plain
from detector.darknet.darknet_model_file import save_darknet_files
from detector.darknet.network import DarknetNet
from detector.errors import ConfigError
from detector.export.export_runtime import ExportRuntime
from detector.io.atomic import write_atomically
from detector.models.checkpoint import save_model
from detector.models.published_weights import resolve_weights
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import save_yolox_file
from detector.tasks.detection_model import LoadedModel
from detector.workflows.unfold import unfold_model


def run(arguments: argparse.Namespace) -> int:
    """Convert a model file; return the exit code."""
    names, overrides = split_words(arguments)
    source, target = resolve_weights(Path(names[0])), arguments.out or Path(names[1])
    suffixes = {
        ".safetensors": (".safetensors",),
        ".weights": (".weights", ".cfg", ".names"),
        ".pth": (".pth", ".names"),
    }.get(target.suffix)
    if suffixes is None:
        raise ConfigError(f"{target}: expected a target NAME.safetensors, NAME.weights or NAME.pth; rename it")
    if arguments.fold and target.suffix != ".weights":
        raise ConfigError(
            f"--fold: expected a target NAME.weights, got {target}; leave it out, a .safetensors keeps its batch norm"
        )
    there = [str(path) for path in map(target.with_suffix, suffixes) if path.exists()]
    if there and not arguments.overwrite:
        raise ConfigError(f"{', '.join(there)}: already exists; choose another TARGET or give --overwrite")

    loaded = load(arguments, source, overrides)
    if isinstance(loaded.model, ExportRuntime):
        raise ConfigError(f"{source}: an export cannot be converted; give the model file it came from")
    if arguments.unfold is not None:
        loaded, checked = unfold_model(loaded, arguments.unfold)
        say(str(checked), arguments.quiet)
    if target.suffix == ".safetensors":
        save_model(target, replace(loaded.file, config=config_to_plain(loaded.config)))
        written: tuple[Path, ...] = (target,)
    elif target.suffix == ".weights" and isinstance(loaded.model, DarknetNet):
        model = loaded.model.folded() if arguments.fold else loaded.model
        settings = loaded.config.input
        written = save_darknet_files(model, target, loaded.file.class_names, settings.canvas_hw, settings.fit)
    elif target.suffix == ".pth":
        written = _save_pth(target, loaded)
    else:
        raise ConfigError(f"{source}: its model has no .cfg, so .weights cannot hold it; choose a .safetensors target")
    print("\n".join(map(str, written)))
    return 0


def _save_pth(target: Path, loaded: LoadedModel) -> tuple[Path, ...]:
    """Write a model of YOLOX with the names of the original code, and its class names beside it."""
    if not isinstance(loaded.model, Yolox):
        raise ConfigError(f"{target}: expected a model of YOLOX for a .pth, got another one; choose .safetensors")
    names = target.with_suffix(".names")
    save_yolox_file(target, loaded.model)
    write_atomically(names, lambda file: file.write("".join(f"{n}\n" for n in loaded.file.class_names).encode()))
    return target, names
