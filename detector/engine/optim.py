"""Optimisers by name, over parameter groups that decay weights only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from detector.registry import PartConfig, build, register


@dataclass(frozen=True)
class OptimizerConfig(PartConfig):
    """The kind `optimiser`. An optimiser is built from its config and parameter groups; `lr` is its peak rate.

    Attributes:
        lr: peak learning rate, which the schedule scales.
        weight_decay: decay of weights; norms and biases never decay.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"an optimiser wants lr > 0 and weight_decay >= 0, found {self.lr} and {self.weight_decay}"
            )


@register("adamw")
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        """Settings of AdamW.

        Attributes:
            beta1: memory of the gradient's mean.
            beta2: memory of the gradient's square.
        """

        weight_decay: float = 0.05
        beta1: float = 0.9
        beta2: float = 0.999

    def __init__(self, config: Config, groups: list[dict[str, object]]) -> None:
        super().__init__(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@register("sgd")
class SGD(torch.optim.SGD):
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        """Settings of SGD.

        Attributes:
            momentum: memory of the gradient; 0 switches momentum off.
        """

        lr: float = 0.01
        weight_decay: float = 5e-4
        momentum: float = 0.937

    def __init__(self, config: Config, groups: list[dict[str, object]]) -> None:
        super().__init__(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser over a model's trainable parameters; vectors (norms and biases) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return build(config, groups)  # type: ignore[no-any-return]  # build serves every kind
