from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules import module as registration

from detector.errors import ConfigError
from detector.models.network_size import require_bounded
from detector.tasks.detection_model import build_model, load_detection


@pytest.mark.parametrize(
    "override",
    [
        "model.width=1e300",
        "model.width=60",
        "model.depth=1e300",
        "model.depth=2000",
        "model.backbone.bottlenecks=[3, 6, 1000000000, 3]",
        "model.backbone.channels=[64, 128, 256, 512, 1000000000000]",
        "input.size=1000000",
        "input.channels=1000000000",
    ],
)
def test_too_large_network_is_refused_before_it_takes_memory(override, bounded):
    more = ["model.max_channels=9000000000000"] if "channels=[" in override else []
    with bounded(), pytest.raises(ConfigError, match=r"expected (a network of )?(an input of )?at most .* lower "):
        build_model(load_detection("mish-n", [override, *more]), 80)


def test_many_classes_are_refused_before_they_take_memory(bounded):
    with bounded(), pytest.raises(ConfigError, match="at most 1,073,741,824 parameters"):
        build_model(load_detection("mish-n", []), 10**9)


def test_check_changes_neither_random_numbers_nor_later_networks():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    require_bounded(lambda: nn.Conv2d(3, 8, 3))
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ConfigError):
        require_bounded(lambda: nn.Linear(2**20, 2**20))
    assert not registration._global_parameter_registration_hooks
    assert not registration._global_module_registration_hooks
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_network_that_needs_its_memory_in_its_constructor_is_left_alone():
    require_bounded(lambda: nn.Linear(int(torch.ones(1).item()), 2))
