from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from detector.config.schema import config_to_plain
from detector.errors import CheckpointError, ConfigError
from detector.models.checkpoint import ModelFile
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.task import TaskConfig, build_checked, changed_config, config_of_file

WEIGHTS = Path("best.safetensors")
Schema: TypeAlias = "type[DetectionConfig] | type[ClassificationConfig]"
SCHEMAS: list[Schema] = [DetectionConfig, ClassificationConfig]


def file_of(config: TaskConfig) -> ModelFile:
    return ModelFile(config_to_plain(config), ("ring",), (1,), {})


def with_train_of(config: TaskConfig, other: TaskConfig) -> TaskConfig:
    """Return a config with the section `train` of another one of its task."""
    return replace(config, train=other.train)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_config_of_a_file_is_returned_with_and_without_overrides(schema: Schema) -> None:
    carried, config = config_of_file(schema, file_of(schema()), WEIGHTS, ["train.seed=7"])
    assert with_train_of(carried, schema()) == schema()
    assert (carried.train.seed, config.train.seed) == (0, 7)
    assert with_train_of(config, carried) == carried


@pytest.mark.parametrize("schema", SCHEMAS)
def test_unknown_key_is_a_checkpoint_error_in_a_file_and_a_config_error_in_an_override(schema: Schema) -> None:
    file = file_of(schema())
    with pytest.raises(CheckpointError, match=r"best.safetensors: carries a configuration .* cannot read: .*unheard"):
        config_of_file(schema, replace(file, config={**file.config, "unheard": 1}), WEIGHTS)
    with pytest.raises(ConfigError, match="sead"):
        config_of_file(schema, file, WEIGHTS, ["train.sead=7"])


@pytest.mark.parametrize("schema", SCHEMAS)
def test_python_settings_change_only_the_given_keys(schema: Schema) -> None:
    config = replace(schema(), device="cpu")
    changed = changed_config(config, None, {"train": {"seed": 7}}, "Detector")
    assert changed.train.seed == 7
    assert with_train_of(changed, config) == config
    with pytest.raises(ConfigError, match=r"Detector.*sead"):
        changed_config(config, None, {"train": {"sead": 7}}, "Detector")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_canvas_size_that_does_not_fit_the_model_is_a_config_error(schema: Schema) -> None:
    config = changed_config(schema(), None, {"input": {"size": 33}}, "test")
    with pytest.raises(ConfigError, match=r"input.size: .*33"):
        build_checked(config.model, 2, config.input)
