"""Recipe of `[net]`: the schedule used in training gives Darknet's learning rate at every update."""

from __future__ import annotations

import math
from typing import Any

import pytest

from detector.config.schema import config_from_plain
from detector.darknet.cfg_file import parse_cfg
from detector.darknet.training_recipe import recipe_of
from detector.errors import DarknetError
from detector.tasks.detection_config import DetectionConfig
from detector.training.schedules import LearningRate


def recipe_from(keys: str) -> dict[str, Any]:
    body = "[convolutional]\nfilters=18\nsize=1\nstride=32\nactivation=linear\n"
    head = "[yolo]\nmask=0,1,2\nanchors=1,2,3,4,5,6\nclasses=1\nnum=3\n"
    return recipe_of(parse_cfg(f"[net]\nwidth=64\nheight=64\nchannels=3\n{keys}\n{body}{head}", "test.cfg"))


def rate_by_hand(k: int, **net: Any) -> float:
    """Compute Darknet's learning rate at update k."""
    lr, power = net.get("learning_rate", 0.001), net.get("power", 4.0)
    if k < net.get("burn_in", 0):
        return float(lr * (k / net["burn_in"]) ** power)
    match net["policy"]:
        case "steps":
            for step, scale in zip(net["steps"], net["scales"], strict=True):
                lr *= scale if step <= k else 1
            return float(lr)
        case "step":
            return float(lr * net["scale"] ** (k // net["step"]))
        case "exp":
            return float(lr * net["gamma"] ** k)
        case "poly":
            return float(lr * (1 - k / net["max_batches"]) ** power)
        case "sigmoid":
            return float(lr / (1 + math.exp(net["gamma"] * (k - net["step"]))))
        case "sgdr":
            start, cycle, low = 0, net.get("sgdr_cycle", net["max_batches"]), net.get("learning_rate_min", 1e-5)
            while start + cycle < k:
                start, cycle = start + cycle, cycle * net.get("sgdr_mult", 2)
            return float(low + 0.5 * (lr - low) * (1 + math.cos(math.pi * (k - start) / cycle)))
    return float(lr)


@pytest.mark.parametrize(
    "net",
    [
        {"policy": "constant", "burn_in": 5},
        {"policy": "steps", "burn_in": 4, "steps": (6, 8), "scales": (0.1, 0.5)},
        {"policy": "steps", "burn_in": 10, "steps": (3, 20), "scales": (0.1, 10.0), "power": 2.0},
        {"policy": "step", "step": 7, "scale": 0.5},
        {"policy": "exp", "gamma": 0.95, "burn_in": 1},
        {"policy": "poly", "power": 3.0, "burn_in": 2, "learning_rate": 0.02},
        {"policy": "sigmoid", "gamma": 0.3, "step": 12},
        {"policy": "sgdr", "burn_in": 3},
        {"policy": "sgdr", "sgdr_cycle": 4, "sgdr_mult": 3, "learning_rate_min": 0.0002},
    ],
)
def test_every_policy_gives_darknets_rate_at_every_update(net: dict[str, Any]) -> None:
    net = {"max_batches": 30, **net}
    keys = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in net.items()]
    config = config_from_plain(DetectionConfig, recipe_from("\n".join(keys)), "test")
    rate = LearningRate(config.schedule, config.train.num_steps(100, 1))
    rates = [config.optimizer.lr * rate.factor(step) for step in range(30)]
    assert rates == pytest.approx([rate_by_hand(k, **net) for k in range(1, 31)], rel=1e-9, abs=1e-15)


def test_optimiser_and_batch_come_from_the_section() -> None:
    recipe = recipe_from("batch=64\nsubdivisions=16\nmomentum=0.95\ndecay=0.0003\nlearning_rate=0.002\nmax_batches=500")
    config = config_from_plain(DetectionConfig, recipe, "test")
    assert recipe["optimizer"] == {
        "name": "sgd", "lr": 0.002, "momentum": 0.95, "weight_decay": 0.0003, "nesterov": False
    }  # fmt: skip
    assert (config.loader.batch_size, config.train.accumulate, config.train.iterations) == (4, 16, 500)
    assert config.train.clip_norm == 1e9
    assert config.schedule.warmup_iterations == 0


def test_random_policy_becomes_the_seeded_schedule() -> None:
    assert recipe_from("policy=random\npower=2")["schedule"] == {
        "name": "random", "power": 2.0, "warmup_iterations": 0, "warmup_share": 1.0
    }  # fmt: skip


def test_darknets_adam_is_refused_with_its_location() -> None:
    with pytest.raises(DarknetError, match=r"test\.cfg:1: \[net\] adam=1: .* set optimizer=adamw or remove the key"):
        recipe_from("adam=1")


def test_more_subdivisions_than_images_are_refused_with_their_location() -> None:
    with pytest.raises(DarknetError, match=r"test\.cfg:1: \[net\] subdivisions=64 is more than batch=16"):
        recipe_from("batch=16\nsubdivisions=64")


def test_batch_is_rounded_down_to_a_multiple_of_subdivisions() -> None:
    recipe = recipe_from("batch=64\nsubdivisions=24")
    assert (recipe["loader"]["batch_size"], recipe["train"]["accumulate"]) == (2, 24)
