"""Batches with one value per channel, which batch norm cannot be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.errors import ConfigError
from detector.models.activations import Mish
from detector.models.blocks import ConvNormAct
from detector.tasks.detection_config import DetectionConfig
from detector.training.batch_norm import batch_norm_in_words, require_values
from detector.workflows.train import train

Make = Callable[..., DetectionConfig]


@pytest.mark.parametrize("size", [["input.size=32"], ["input.size=64", "input.multi_scale=0.5"]])
def test_one_image_of_one_cell_is_refused_before_a_run_folder_exists(
    size: list[str], experiment: Make, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"loader\.batch_size=1 with images of 32 x 32 px: expected more than one"):
        train(experiment("loader.batch_size=1", *size))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("batch_size", "canvas_hw", "is_refused"),
    [(1, (32, 32), True), (2, (32, 32), False), (1, (32, 64), False), (1, (64, 64), False)],
)
def test_batch_of_one_value_per_channel_is_refused(
    batch_size: int, canvas_hw: tuple[int, int], is_refused: bool
) -> None:
    require_values(nn.Conv2d(3, 8, 1), 32, batch_size, canvas_hw)  # has no batch norm
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    if not is_refused:
        require_values(model, 32, batch_size, canvas_hw)
        return
    with pytest.raises(ConfigError, match=r"raise loader\.batch_size to 2 or more, or input\.size"):
        require_values(model, 32, batch_size, canvas_hw)


@pytest.mark.parametrize("block", [nn.BatchNorm2d(3), ConvNormAct(3, 4, 1, Mish.Config())])
def test_error_of_batch_norm_becomes_advice(block: nn.Module) -> None:
    with (
        pytest.raises(ConfigError, match=r"loader\.batch_size=1 with images of 64 x 32 px"),
        batch_norm_in_words(1, (64, 32)),
    ):
        block.train()(torch.ones(1, 3, 1, 1))
    with pytest.raises(ValueError, match="another"), batch_norm_in_words(1, (64, 32)):
        raise ValueError("another")
