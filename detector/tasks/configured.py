"""What experiments of every task have alike: read from a model file, changed in Python, built into a checked model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from detector.config import registry
from detector.config.schema import config_from_plain, config_to_plain, merged_plain
from detector.errors import CheckpointError, ConfigError
from detector.inference.predictor import InputConfig
from detector.models.checkpoint import ModelFile

Configured = TypeVar("Configured")


def config_of_file(
    schema: type[Configured], file: ModelFile, weights: Path, overrides: Sequence[str] = ()
) -> tuple[Configured, Configured]:
    """The experiment that a model file carries, as it stands there and with overrides.

    Raises:
        CheckpointError: this version cannot read it.
        ConfigError: an override is wrong.
    """
    try:
        carried: Configured = config_from_plain(schema, file.config, str(weights))
    except ConfigError as error:
        raise CheckpointError(f"{weights}: carries a configuration that this version cannot read: {error}") from error
    return carried, config_from_plain(schema, file.config, str(weights), overrides) if overrides else carried


def changed_config(config: Configured, data: Any, settings: Mapping[str, Any], who: str) -> Configured:
    """An experiment with other data, unless they are None, and other sections or keys, as Python gives them.

    Raises:
        ConfigError: a setting is wrong; `who` names where it was given.
    """
    plain = merged_plain(config_to_plain(config), dict(settings))
    if data is not None:
        plain["data"] = str(data) if isinstance(data, Path) else data
    changed: Configured = config_from_plain(type(config), plain, who)
    return changed


def build_checked(model: Any, num_classes: int, given: InputConfig) -> Any:
    """The model of a configuration with random weights, which takes images as `given` has them.

    Raises:
        ConfigError: the input size does not suit the model.
    """
    built = registry.build(model, num_classes, given.channels)
    try:
        built.check_image_hw(given.canvas_hw)
    except ValueError as error:
        raise ConfigError(f"input.size: {error}") from error
    return built
