"""Training recipe of a `[net]` section as settings of an experiment.

The settings are plain data, as in an experiment's file under `optimizer`, `schedule`, `train` and `loader`.
"""

from __future__ import annotations

from detector.darknet.cfg_file import DarknetCfg
from detector.darknet.sections import NetSection
from detector.errors import DarknetError

_NO_BOUND = 1e9  # a gradient norm that is never reached, because Darknet does not clip gradients


def recipe_of(cfg: DarknetCfg) -> dict[str, object]:
    """Return Darknet's recipe for a network: optimiser, schedule, number of updates and batch size.

    Raises:
        DarknetError: a part of the recipe is not implemented here.
    """
    net = cfg.net
    if net.adam:
        raise DarknetError(
            f"{cfg.place(net)} adam=1: Darknet's Adam, which also decays biases, is not implemented here; "
            "set optimizer=adamw or remove the key"
        )
    if net.subdivisions > net.batch:
        raise DarknetError(
            f"{cfg.place(net)} subdivisions={net.subdivisions} is more than batch={net.batch}, which leaves parts "
            "without an image; lower subdivisions or raise batch"
        )
    train: dict[str, object] = {"accumulate": net.subdivisions, "clip_norm": _NO_BOUND}
    if net.max_batches:
        train["iterations"] = net.max_batches
    return {
        "optimizer": optimizer_of(net),
        "schedule": schedule_of(net),
        "train": train,
        "loader": {"batch_size": net.batch // net.subdivisions},
    }


def optimizer_of(net: NetSection) -> dict[str, object]:
    """Return the optimiser: SGD with plain momentum and weight decay on weights only."""
    return {
        "name": "sgd",
        "lr": net.learning_rate,
        "momentum": net.momentum,
        "weight_decay": net.decay,
        "nesterov": False,
    }


def schedule_of(net: NetSection) -> dict[str, object]:
    """Return the learning-rate schedule: the policy with `burn_in` as its warm-up, exact at every update."""
    policies: dict[str, dict[str, object]] = {
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
    # Burn-in ends before update `burn_in`, which already has the full rate.
    warmup: dict[str, object] = {"warmup_iterations": max(net.burn_in - 1, 0), "warmup_share": 1.0}
    if net.burn_in:
        warmup["warmup_power"] = net.power
    return {**policies[net.policy], **warmup}
