from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.config.registry import find_config_class, names
from detector.training.optimizers import (
    SGD,
    AdamW,
    Muon,
    OptimizerConfig,
    RAdam,
    Ranger,
    build_optimizer,
    orthogonalised,
)

OPTIMIZERS = names(OptimizerConfig)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.Linear(5, 2))


def step_with(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


# ---- parameter groups


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_applies_to_weights_but_not_to_norms_and_biases(name: str) -> None:
    model = network()
    config = find_config_class(OptimizerConfig, name)(lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(config, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    step_with(model, optimizer, [torch.zeros_like(p) for p in model.parameters()])
    for parameter in model.parameters():
        wanted = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        if isinstance(config, SGD.Config) and parameter.ndim > 1:
            # Nesterov's momentum multiplies the decay by (1 + momentum).
            wanted = 1 - 0.1 * 0.5 * (1 + config.momentum)
        assert parameter.detach().unique().tolist() == pytest.approx([wanted])


def test_sgd_without_nesterov_equals_the_update_of_darknet() -> None:
    """u <- momentum * u + gradients - decay * B * w; w <- w + lr / B * u, with gradients summed over B images."""
    lr, momentum, decay, batch = 0.1, 0.9, 0.01, 8
    weight = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(weight.weight, 2.0)
    optimizer = build_optimizer(SGD.Config(lr=lr, momentum=momentum, weight_decay=decay, nesterov=False), weight)
    w, u = 2.0, 0.0
    for downhill in (3.0, -1.0, 5.0):
        u = momentum * u + downhill - decay * batch * w
        w += lr / batch * u
        step_with(weight, optimizer, [torch.full((1, 1, 1, 1), -downhill / batch)])
        assert weight.weight.item() == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_hold_each_trainable_parameter_once_and_no_frozen_one(name: str) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(find_config_class(OptimizerConfig, name)(), model)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_group_has_the_learning_rate_of_the_config(name: str) -> None:
    model = network()
    optimizer = build_optimizer(find_config_class(OptimizerConfig, name)(lr=0.25), model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step_with(model, optimizer, [torch.ones_like(p) for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_lower_the_loss(name: str) -> None:
    model = network()
    optimizer = build_optimizer(find_config_class(OptimizerConfig, name)(lr=1e-3, weight_decay=0.0), model)
    images = torch.randn(2, 4, 7, 7)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(images).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_state_continues_to_the_same_bits(name: str) -> None:
    torch.manual_seed(1)
    gradients = [[torch.randn_like(p) for p in network().parameters()] for _ in range(8)]
    config = find_config_class(OptimizerConfig, name)()
    whole = network()
    optimizer = build_optimizer(config, whole)
    for step in range(8):
        step_with(whole, optimizer, gradients[step])

    first, second = network(), network()
    optimizer = build_optimizer(config, first)
    for step in range(2):
        step_with(first, optimizer, gradients[step])
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(config, second)
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(2, 8):
        step_with(second, resumed, gradients[step])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


# ---- formulas, in float64


def adamw_by_hand(config: Any, weight: float, gradients: list[float], decay: float) -> float:
    """Loshchilov and Hutter 2017, algorithm 2."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        unbiased = math.sqrt(square / (1 - config.beta2**step)) + 1e-8
        weight -= config.lr * (mean / (1 - config.beta1**step) / unbiased + decay * weight)
    return weight


def sgd_by_hand(config: Any, weight: float, gradients: list[float], decay: float) -> float:
    """Sutskever et al. 2013, Nesterov momentum."""
    velocity = 0.0
    for gradient in gradients:
        slope = gradient + decay * weight
        velocity = config.momentum * velocity + slope
        weight -= config.lr * (slope + config.momentum * velocity)
    return weight


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (AdamW.Config(lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.99), adamw_by_hand),
        (AdamW.Config(), adamw_by_hand),
        (SGD.Config(lr=0.05, weight_decay=0.2, momentum=0.9), sgd_by_hand),
        (SGD.Config(momentum=0.0), sgd_by_hand),
    ],
)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_steps_equal_the_published_formula(
    config: OptimizerConfig, by_hand: Callable[..., float], num_steps: int
) -> None:
    model = network()
    optimizer = build_optimizer(config, model)
    before = [p.detach().flatten().tolist() for p in model.parameters()]
    torch.manual_seed(2)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(num_steps)]
    for step in range(num_steps):
        step_with(model, optimizer, gradients[step])
    for number, parameter in enumerate(model.parameters()):
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        own = torch.stack([g[number].flatten() for g in gradients]).T.tolist()
        wanted = [by_hand(config, w, g, decay) for w, g in zip(before[number], own, strict=True)]
        assert parameter.detach().flatten().tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


# ---- optimiser wrappers


def test_gradient_centralisation_removes_the_mean_of_matrices_but_not_of_vectors() -> None:
    model = network()
    optimizer = build_optimizer(SGD.Config(lr=1.0, momentum=0.0, weight_decay=0.0, centralise=True), model)
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    step_with(model, optimizer, gradients)
    for start, gradient, parameter in zip(before, gradients, model.parameters(), strict=True):
        wanted = gradient.double()
        if parameter.ndim > 1:
            wanted = wanted - wanted.flatten(1).mean(1).reshape(-1, *[1] * (parameter.ndim - 1))
        assert torch.allclose((start - parameter).double(), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "radam"])
def test_lookahead_moves_the_slow_weights_by_its_share(name: str) -> None:
    """Zhang et al. 2019, algorithm 1, compared with a plain optimiser whose weights are reset by hand."""
    config = find_config_class(OptimizerConfig, name)(lr=0.02)
    fast, model = network(), network()
    plain = build_optimizer(config, fast)
    optimizer = build_optimizer(replace(config, lookahead=3, lookahead_share=0.25), model)
    slow = [p.detach().double() for p in model.parameters()]
    torch.manual_seed(4)
    for step in range(1, 8):
        gradients = [torch.randn_like(p) for p in model.parameters()]
        step_with(fast, plain, gradients)
        step_with(model, optimizer, gradients)
        if step % 3 == 0:
            slow = [s + 0.25 * (f.detach().double() - s) for s, f in zip(slow, fast.parameters(), strict=True)]
            with torch.no_grad():
                for s, f in zip(slow, fast.parameters(), strict=True):
                    f.copy_(s)
        for ours, wanted in zip(model.parameters(), fast.parameters(), strict=True):
            assert torch.allclose(ours, wanted, atol=1e-6)


def test_ranger_equals_radam_with_centralisation_and_lookahead() -> None:
    model, other = network(), network()
    ranger = build_optimizer(Ranger.Config(lr=0.01), model)
    made = build_optimizer(RAdam.Config(lr=0.01, beta1=0.95, centralise=True, lookahead=6), other)
    torch.manual_seed(5)
    for _ in range(13):
        gradients = [torch.randn_like(p) for p in model.parameters()]
        step_with(model, ranger, gradients)
        step_with(other, made, gradients)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"lookahead": -1}, {"lookahead_share": 0.0}, {"lookahead_share": 1.5}])
def test_invalid_lookahead_is_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lookahead >= 0 and 0 < lookahead_share <= 1"):
        AdamW.Config(**settings)


def direct_iteration(matrices: Tensor) -> Tensor:
    """Return the quintic Newton-Schulz iteration of Jordan et al. 2024 in float64, without any rearrangement."""
    x = matrices.double()
    if x.shape[1] > x.shape[2]:
        return direct_iteration(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (8, 16), (16, 8), (32, 288), (288, 32), (64, 256), (3, 64)])
@pytest.mark.parametrize("smallest", [0.1, 1e-3, 0.0])
def test_orthogonalised_matrices_equal_the_direct_iteration(shape: tuple[int, int], smallest: float) -> None:
    torch.manual_seed(6)
    left, _, right = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.linspace(1, smallest, left.shape[2])
    matrices = left @ (values[:, None] * right)
    # Factors of up to 3.44^5 = 486 multiply the rounding of float32, 6e-8, in both forms.
    assert torch.allclose(orthogonalised(matrices).double(), direct_iteration(matrices), atol=1e-4)


def test_muon_keeps_weights_without_a_gradient_in_place() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 4, 64)), torch.zeros(2, 4, 64))


def test_muon_moves_kernels_by_the_orthogonalised_nesterov_momentum() -> None:
    model = network()
    optimizer = build_optimizer(Muon.Config(lr=0.5, weight_decay=0.0, momentum=0.9), model)
    kernels = [p for p in model.parameters() if p.ndim == 4]
    momenta = [torch.zeros_like(p, dtype=torch.float64) for p in kernels]
    torch.manual_seed(7)
    for _ in range(3):
        before = [p.detach().double() for p in kernels]
        gradients = [torch.randn_like(p) for p in model.parameters()]
        step_with(model, optimizer, gradients)
        for index, kernel in enumerate(kernels):
            assert kernel.grad is not None
            gradient = kernel.grad.double()
            momenta[index] = 0.9 * momenta[index] + 0.1 * gradient
            nesterov = (0.1 * gradient + 0.9 * momenta[index]).flatten(1)
            # Liu et al. 2025, equation 4.
            scale = 0.5 * 0.2 * max(nesterov.shape) ** 0.5
            wanted = before[index] - scale * direct_iteration(nesterov[None])[0].reshape(kernel.shape)
            assert torch.allclose(kernel.double(), wanted, atol=1e-5)


# ---- settings


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": -1e-3}, {"weight_decay": -0.1}])
def test_invalid_learning_rate_or_weight_decay_is_rejected(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lr > 0 and weight_decay >= 0"):
        find_config_class(OptimizerConfig, name)(**settings)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (AdamW, {"beta1": 1.0}, "expected 0 <= beta1 < 1, got 1.0"),
        (AdamW, {"beta2": -0.1}, "0 <= beta2 < 1"),
        (SGD, {"momentum": 1.0}, "0 <= momentum < 1"),
        (SGD, {"momentum": -0.5}, "0 <= momentum < 1"),
        (Muon, {"momentum": 1.0}, "an optimiser: expected 0 <= momentum < 1, got 1.0"),
        (Muon, {"beta1": -0.1}, "0 <= beta1 < 1"),
        (Muon, {"beta2": 1.0}, "0 <= beta2 < 1"),
    ],
)
def test_momentum_and_betas_out_of_range_are_rejected(part: Any, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part.Config(**settings)
