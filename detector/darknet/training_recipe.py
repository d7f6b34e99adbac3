"""The training recipe of a `[net]` section as settings of an experiment.

These are plain data: what stands in an experiment's file under `optimizer`, `schedule`, `train` and `loader`.
"""

from __future__ import annotations

from typing import Any

from detector.darknet.cfg_file import DarknetCfg
from detector.darknet.sections import NetSection
from detector.errors import DarknetError

_NO_BOUND = 1e9  # a gradient's norm that nothing reaches: Darknet does not clip it


def recipe_of(cfg: DarknetCfg) -> dict[str, Any]:
    """How Darknet would train a network: optimiser, schedule, length and size of a step.

    Raises:
        DarknetError: the recipe has a part that is not rebuilt here.
    """
    net = cfg.net
    if net.adam:
        raise DarknetError(
            f"{cfg.place(net)} adam=1: Darknet's Adam, which decays biases too, is not rebuilt here; "
            "set optimizer=adamw or remove the key"
        )
    if net.subdivisions > net.batch:
        raise DarknetError(
            f"{cfg.place(net)} subdivisions={net.subdivisions} is more than batch={net.batch} and leaves no image to "
            "a part; lower subdivisions or raise batch"
        )
    recipe: dict[str, Any] = {
        "optimizer": optimizer_of(net),
        "schedule": schedule_of(net),
        "train": {"accumulate": net.subdivisions, "clip_norm": _NO_BOUND},
        "loader": {"batch_size": net.batch // net.subdivisions},
    }
    if net.max_batches:
        recipe["train"]["iterations"] = net.max_batches
    return recipe


def optimizer_of(net: NetSection) -> dict[str, Any]:
    """The optimiser: SGD with plain momentum, decay on weights alone."""
    return {
        "name": "sgd",
        "lr": net.learning_rate,
        "momentum": net.momentum,
        "weight_decay": net.decay,
        "nesterov": False,
    }


def schedule_of(net: NetSection) -> dict[str, Any]:
    """The learning-rate schedule: the policy, with `burn_in` as its warm-up, exact at every update."""
    policies: dict[str, dict[str, Any]] = {
        "constant": {"name": "constant"},
        "steps": {"name": "iteration_steps", "iterations": list(net.steps), "scales": list(net.scales)},
        "step": {"name": "step", "step": net.step, "scale": net.scale},
        "exp": {"name": "exp", "gamma": net.gamma},
        "poly": {"name": "poly", "iterations": net.max_batches, "power": net.power},
        "sigmoid": {"name": "sigmoid", "step": net.step, "gamma": net.gamma},
        "sgdr": {
            "name": "sgdr",
            "cycle": net.sgdr_cycle or net.max_batches,
            "growth": net.sgdr_mult,
            "final": net.learning_rate_min / net.learning_rate if net.learning_rate else 0.0,
        },
        "random": {"name": "random", "power": net.power},
    }
    # Burn-in ends before update `burn_in`, which has the full rate already.
    warmup = {"warmup_iterations": max(net.burn_in - 1, 0), "warmup_share": 1.0}
    if net.burn_in:
        warmup["warmup_power"] = net.power
    return {**policies[net.policy], **warmup}
