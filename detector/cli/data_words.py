"""Names of data sets on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from detector.cli.usage import data_label, split_data_words
from detector.config.registry import claim_of
from detector.data.dataset import DatasetConfig
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection


def configured(words: Sequence[str], config_name: str = "base") -> tuple[str, DetectionConfig]:
    """Return the name of a data set and an experiment on it.

    Args:
        words: the data set, optionally the folder of the images of a file, and overrides `key=value`.
        config_name: the configuration of the experiment, a file or preset.

    Raises:
        ConfigError: there is not exactly one data set, or the configuration is wrong.
        DatasetError: nothing there can be read.
    """
    names, overrides = split_data_words(words)
    if not names:
        return data_label(overrides), load_detection(config_name, overrides)
    data: object = names[0]
    if len(names) == 2:
        claim = claim_of(Path(names[0]), DatasetConfig, Path(names[1]))
        data = {"name": claim.name, **claim.keys}
    return names[0], load_detection(config_name, [f"data={json.dumps(data)}", *overrides])
