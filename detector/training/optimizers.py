"""Optimisers by name, on parameter groups of which only weights decay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detector.config.registry import PartConfig, build, register
from detector.models.precision import has_native_bf16
from detector.training.optimizer_wrappers import Lookahead, centralise, eager

# Of optimisers whose updates have the size of the learning rate whatever the gradient: a higher rate destroys trained
# weights in its first steps.
FINE_TUNING_LR = 1e-3


@dataclass(frozen=True)
class OptimizerConfig(PartConfig[torch.optim.Optimizer]):
    """The kind `optimiser`, built from its config and parameter groups; `lr` is the peak learning rate.

    Attributes:
        lr: peak learning rate, which the schedule scales.
        weight_decay: decay of weights; norms and biases never decay.
        centralise: whether the mean over the inputs is subtracted from the gradient of every weight (Yong et al. 2020).
        lookahead: steps between two updates of the slow weights of Lookahead (Zhang et al. 2019), or 0 for none.
        lookahead_share: share of the way to the fast weights that the slow weights move.
        layer_decay: factor on the learning rate from each part of the network to the one before it, counted from the
            head (Clark et al. 2020, ELECTRA, "layerwise learning rate decay"); 1 gives all parts the same rate.
        fine_tuning_lr: largest peak learning rate of a run that starts from given weights; None has no bound.
    """

    folders = ("training",)

    lr: float = 1e-3
    weight_decay: float = 0.0
    centralise: bool = False
    lookahead: int = 0
    lookahead_share: float = 0.5
    layer_decay: float = 1.0
    fine_tuning_lr: float | None = None

    def __post_init__(self) -> None:
        if self.lookahead < 0 or not 0 < self.lookahead_share <= 1:
            raise ValueError(
                f"an optimiser: expected lookahead >= 0 and 0 < lookahead_share <= 1, got {self.lookahead} and "
                f"{self.lookahead_share}"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"an optimiser: expected 0 < layer_decay <= 1, got {self.layer_decay}")
        if self.fine_tuning_lr is not None and self.fine_tuning_lr <= 0:
            raise ValueError(f"an optimiser: expected fine_tuning_lr > 0, got {self.fine_tuning_lr}")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"an optimiser: expected lr > 0 and weight_decay >= 0, got {self.lr} and {self.weight_decay}"
            )
        for name in ("momentum", "beta1", "beta2"):  # of the optimisers that have them
            if not 0 <= getattr(self, name, 0.0) < 1:
                raise ValueError(f"an optimiser: expected 0 <= {name} < 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class AdamConfig(OptimizerConfig):
    """Settings of Adam and its variants.

    Attributes:
        beta1: decay rate of the mean of the gradient.
        beta2: decay rate of the mean of its square.
    """

    weight_decay: float = 0.05
    fine_tuning_lr: float | None = FINE_TUNING_LR
    beta1: float = 0.9
    beta2: float = 0.999


@register("adamw")
@eager
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""

    @dataclass(frozen=True)
    class Config(AdamConfig):
        """Settings of AdamW."""

    def __init__(self, config: Config, groups: list[dict[str, object]]) -> None:
        super().__init__(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@register("radam")
@eager
class RAdam(torch.optim.RAdam):
    """Adam with a rectified variance in its first steps (Liu et al. 2019, algorithm 2), with decoupled decay."""

    @dataclass(frozen=True)
    class Config(AdamConfig):
        """Settings of RAdam."""

    def __init__(self, config: Config, groups: list[dict[str, object]]) -> None:
        betas = (config.beta1, config.beta2)
        super().__init__(groups, lr=config.lr, betas=betas, decoupled_weight_decay=True)


@register("ranger")
class Ranger(RAdam):
    """RAdam with Lookahead and gradient centralisation (Wright 2019; its defaults).

    With `schedule: flat_cosine` it is the published recipe for Mish.
    """

    @dataclass(frozen=True)
    class Config(AdamConfig):
        """Settings of Ranger: those of RAdam, with Lookahead and gradient centralisation."""

        centralise: bool = True
        lookahead: int = 6
        beta1: float = 0.95


@register("sgd")
@eager
class SGD(torch.optim.SGD):
    """Stochastic gradient descent, with Nesterov's momentum (Sutskever et al. 2013) or plain momentum."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        """Settings of SGD.

        Attributes:
            momentum: decay rate of the momentum; 0 switches momentum off.
            nesterov: whether to use Nesterov momentum; Darknet does not.
        """

        lr: float = 0.01
        weight_decay: float = 5e-4
        momentum: float = 0.937
        nesterov: bool = True

    def __init__(self, config: Config, groups: list[dict[str, object]]) -> None:
        nesterov = config.nesterov and config.momentum > 0
        super().__init__(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)


# Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon: An optimizer for hidden layers").
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
# Columns for each row from which the product of factors is faster. It needs 34 r^3 + 4 r^2 c operations and the direct
# form 10 r^3 + 20 r^2 c: both take the same time at a ratio of 1.5, and the product takes 0.8 of it at 2.
_LEAST_RATIO = 2
# Makes the root-mean-square of an update that of a typical AdamW update (Liu et al. 2025, "Muon is scalable", eq. 4).
_RMS_OF_ADAMW = 0.2
# A kernel over fewer inputs than this (a stem on RGB, a depthwise convolution) has no matrix worth orthogonalising.
_MIN_INPUTS = 8


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns) in float32 with their singular values driven to about 1.

    On a GPU the iteration runs in bfloat16, and corrects its rounding itself. On a CPU it runs in float32, and the
    factors of long matrices are multiplied first, in products of the short side alone:

        X_n = P_(n-1) ... P_0 X_0,    P_i = a I + b G_i + c G_i^2,    G_i = X_i X_i^T = P_(i-1) G_(i-1) P_(i-1)
    """
    a, b, c = _QUINTIC
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if matrices.device.type == "cpu" and x.shape[2] >= _LEAST_RATIO * x.shape[1]:
        x = _product_of_factors(x @ x.mT) @ x
    else:
        if matrices.device.type != "cpu" and has_native_bf16(matrices.device):
            x = x.bfloat16()
        for _ in range(_NUM_ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x if matrices.shape[1] <= matrices.shape[2] else x.mT
    return result.to(matrices.dtype)


def _product_of_factors(gram: Tensor) -> Tensor:
    """Return the product (N, rows, rows) of the factors that the iteration applies to matrices with these X X^T."""
    a, b, c = _QUINTIC
    product = gram
    for index in range(_NUM_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if index == 0 else factor @ product
        if index < _NUM_ITERATIONS - 1:
            gram = factor @ gram @ factor
    return product


@register("muon")
@eager
class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum on convolution kernels, AdamW on everything else.

    Sources: Jordan et al. 2024; the scale of the update and decoupled decay as in Liu et al. 2025, so that one learning
    rate serves both parts.
    """

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        """Settings of Muon.

        Attributes:
            momentum: decay rate of the momentum of convolution kernels.
            beta1: decay rate of the mean of the gradient of other parameters.
            beta2: decay rate of the mean of its square.
        """

        lr: float = 6e-3
        weight_decay: float = 0.05
        fine_tuning_lr: float | None = FINE_TUNING_LR
        momentum: float = 0.95
        beta1: float = 0.9
        beta2: float = 0.999

    def __init__(self, config: Config, groups: list[dict[str, object]]) -> None:
        defaults = {"lr": config.lr, "weight_decay": config.weight_decay}
        super().__init__(groups, defaults)
        self._config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's own
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 4 and parameter[0].numel() >= _MIN_INPUTS and parameter.shape[1] > 3:
                    by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
                else:
                    self._step_adamw(parameter, group["lr"], group["weight_decay"])
            for shape, parameters in by_shape.items():
                self._step_kernels(shape, parameters, group["lr"], group["weight_decay"])
        return loss

    def _step_kernels(self, shape: tuple[int, int], parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        momentum = self._config.momentum
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            grad = parameter.grad
            assert grad is not None  # step() passes only parameters with a gradient
            state["momentum"].lerp_(grad, 1 - momentum)
            directions.append(torch.lerp(grad, state["momentum"], momentum).reshape(shape))
        scale = _RMS_OF_ADAMW * max(shape) ** 0.5
        for parameter, update in zip(parameters, orthogonalised(torch.stack(directions)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update.reshape(parameter.shape), alpha=-lr * scale)

    def _step_adamw(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["updates"] = 0
        grad = parameter.grad
        assert grad is not None  # step() passes only parameters with a gradient
        beta1, beta2 = self._config.beta1, self._config.beta2
        state["updates"] += 1
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (state["square"] / (1 - beta2 ** state["updates"])).sqrt_().add_(1e-8)
        parameter.mul_(1 - lr * weight_decay)
        parameter.addcdiv_(state["mean"], root, value=-lr / (1 - beta1 ** state["updates"]))


def layer_rates(parts: Sequence[nn.Module], layer_decay: float) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each parameter: 1 in the last part, `layer_decay` in the one before it.

    Args:
        parts: the parts of a network, from its stem to its head; a shared parameter belongs to the last part with it.
        layer_decay: the factor from one part to the one before it.
    """
    with_parameters = [part for part in parts if next(part.parameters(), None) is not None]
    depth = len(with_parameters) - 1
    return {p: layer_decay ** (depth - i) for i, part in enumerate(with_parameters) for p in part.parameters()}


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, parts: Sequence[nn.Module] | None = None
) -> torch.optim.Optimizer:
    """Build an optimiser for the trainable parameters of a model; vectors (norms and biases) do not decay.

    Args:
        config: the optimiser; if `layer_decay` is not 1, each group carries its factor as `layer_rate`.
        model: the model.
        parts: the parts of the model from its stem to its head, by default its children; parameters in no part have
            the rate of the head.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rates: dict[nn.Parameter, float] = {}
    if config.layer_decay != 1:
        rates = layer_rates(list(model.children()) if parts is None else parts, config.layer_decay)
    groups: list[dict[str, object]] = []
    for rate in sorted({rates.get(p, 1.0) for p in parameters}, reverse=True):
        own = [p for p in parameters if rates.get(p, 1.0) == rate]
        told = {} if config.layer_decay == 1 else {"layer_rate": rate, "lr": config.lr * rate}
        groups.append({"params": [p for p in own if p.ndim > 1], "weight_decay": config.weight_decay, **told})
        groups.append({"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, **told})
    optimizer = build(config, groups)
    if config.centralise:
        optimizer.register_step_pre_hook(centralise)
    if config.lookahead:
        Lookahead(optimizer, config.lookahead, config.lookahead_share)
    return optimizer
