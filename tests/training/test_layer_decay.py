"""Learning rates by depth, compared with rates computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model
from detector.training.optimizers import SGD, build_optimizer
from detector.workflows.train import train

Make = Callable[..., DetectionConfig]


def rates_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    by_id = {id(p): group.get("layer_rate", 1.0) for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}


def test_learning_rate_of_each_part_depends_on_its_depth() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    optimizer = build_optimizer(SGD.Config(lr=0.1, layer_decay=0.5), model)
    wanted = {"0.weight": 0.25, "0.bias": 0.25, "2.weight": 0.5, "2.bias": 0.5, "3.weight": 1.0, "3.bias": 1.0}
    assert rates_of(optimizer, model) == wanted  # the activation has no parameters and does not count as a depth
    decays = [(g["layer_rate"], g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert decays == [
        (1.0, 0.1, 5e-4, 1),
        (1.0, 0.1, 0.0, 1),
        (0.5, 0.05, 5e-4, 0),
        (0.5, 0.05, 0.0, 2),
        (0.25, 0.025, 5e-4, 1),
        (0.25, 0.025, 0.0, 1),
    ]


def test_step_uses_the_learning_rate_of_each_part() -> None:
    layers = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(3)]
    model = nn.Sequential(*layers)
    config = SGD.Config(lr=0.1, momentum=0.0, weight_decay=0.0, layer_decay=0.8)
    optimizer = build_optimizer(config, model)
    before = [layer.weight.item() for layer in layers]
    for layer in layers:
        layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    moved = [b - layer.weight.item() for b, layer in zip(before, layers, strict=True)]
    assert moved == pytest.approx([0.064, 0.08, 0.1], abs=1e-6)


def test_parts_of_the_family_are_stem_stages_pooling_neck_and_head(experiment: Make) -> None:
    model = build_model(experiment(), 3)
    optimizer = build_optimizer(SGD.Config(layer_decay=0.5), model, model.parts_in_order())
    rates = rates_of(optimizer, model)
    stages = {f"backbone.stages.{i}": 6 - i for i in range(4)}
    depth = {"backbone.stem": 7, **stages, "backbone.spp": 2, "neck": 1, "head": 0}
    for name, rate in rates.items():
        part = next(p for p in depth if name.startswith(f"{p}."))
        assert rate == 0.5 ** depth[part], name
    assert set(rates.values()) == {0.5**d for d in depth.values()}


@pytest.mark.parametrize("experiment", ["darknet"], indirect=True)
def test_parts_of_a_darknet_network_are_its_layers_with_weights(experiment: Make) -> None:
    model = build_model(experiment(), 3)
    rates = rates_of(build_optimizer(SGD.Config(layer_decay=0.5), model, model.parts_in_order()), model)
    layers = sorted({int(name.split(".")[1]) for name in rates})
    assert len(layers) > 4
    assert rates == {name: 0.5 ** (len(layers) - 1 - layers.index(int(name.split(".")[1]))) for name in rates}


def test_schedule_scales_every_learning_rate(experiment: Make) -> None:
    config = experiment(
        "optimizer={name: sgd, lr: 0.01, layer_decay: 0.5}", "schedule={name: constant, warmup_iterations: 0}",
        "train.iterations=2",
    )  # fmt: skip
    groups = load_training_state(train(config).folder.last)["optimizer"]["param_groups"]
    found = [group["lr"] for group in groups[::2]]
    assert found == pytest.approx([0.01 * 0.5**depth for depth in range(8)], rel=1e-12)


def test_default_layer_decay_adds_no_parameter_groups(experiment: Make) -> None:
    model = build_model(experiment(), 3)
    optimizer = build_optimizer(SGD.Config(), model, model.parts_in_order())
    assert len(optimizer.param_groups) == 2
    assert all("layer_rate" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.01])
def test_layer_decay_out_of_range_is_rejected(layer_decay: float) -> None:
    with pytest.raises(ValueError, match=r"0 < layer_decay <= 1"):
        SGD.Config(layer_decay=layer_decay)
