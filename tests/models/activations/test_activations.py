from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.config.registry import build, find, find_config_class, name_of, names
from detector.errors import ConfigError
from detector.models.activations import ELU, GELU, ActivationConfig, LeakyReLU, Maxout, PReLU, Swish
from detector.models.blocks import ConvNormAct
from detector.models.contracts import DetectionModel
from detector.models.folding import fold
from detector.models.yolo import Yolo
from detector.tasks.task import load_experiment

NAMES = [name for name in names(ActivationConfig) if find(ActivationConfig, name).__module__.startswith("detector.")]
ELEMENT_WISE = [name for name in NAMES if name != "maxout"]
LEARNED = {"prelu"}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mish_slope(x: float) -> float:
    t = math.tanh(softplus(x))
    return t + x * (1 - t * t) * sigmoid(x)


LAMBDA, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
# Each function and its derivative, in float64.
REFERENCES = {
    "linear": (lambda x: x, lambda x: 1.0),
    "relu": (lambda x: x if x > 0 else 0.0, lambda x: 1.0 if x > 0 else 0.0),
    "relu6": (lambda x: sorted((0.0, x, 6.0))[1], lambda x: 1.0 if 0 < x < 6 else 0.0),
    "leaky": (lambda x: x if x > 0 else 0.1 * x, lambda x: 1.0 if x > 0 else 0.1),
    "prelu": (lambda x: x if x > 0 else 0.25 * x, lambda x: 1.0 if x > 0 else 0.25),
    "elu": (lambda x: x if x > 0 else math.expm1(x), lambda x: 1.0 if x > 0 else math.exp(x)),
    "selu": (
        lambda x: LAMBDA * (x if x > 0 else ALPHA * math.expm1(x)),
        lambda x: LAMBDA * (1.0 if x > 0 else ALPHA * math.exp(x)),
    ),
    "sigmoid": (sigmoid, lambda x: math.exp(-abs(x)) / (1 + math.exp(-abs(x))) ** 2),
    "tanh": (math.tanh, lambda x: 1 / math.cosh(x) ** 2),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2),
    "softplus": (softplus, sigmoid),
    "mish": (lambda x: x * math.tanh(softplus(x)), mish_slope),
    "hard_mish": (
        lambda x: x if x > 0 else x * (x + 2) / 2 if x > -2 else 0.0,
        lambda x: 1.0 if x > 0 else x + 1 if x > -2 else 0.0,
    ),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) + x * sigmoid(x) * sigmoid(-x)),
    "swish": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) + x * sigmoid(x) * sigmoid(-x)),
    "hard_swish": (
        lambda x: x * sorted((0.0, x + 3, 6.0))[1] / 6,
        lambda x: 0.0 if x < -3 else 1.0 if x > 3 else (2 * x + 3) / 6,
    ),
    "gelu": (
        lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
        lambda x: math.erfc(-x / math.sqrt(2)) / 2 + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
}
# Even steps that avoid all kinks, and the positions of kinks, 0 among them.
PLACES = torch.linspace(-20.1, 19.9, 201, dtype=torch.float64)
KINKS = torch.tensor([-3, -2, -1, -0.0, 0.0, 3, 6], dtype=torch.float64)


def default(name: str) -> ActivationConfig:
    return find_config_class(ActivationConfig, name)()


def make(name: str) -> nn.Module:
    module: nn.Module = build(default(name))
    return module


def reference(name: str, order: int, x: Tensor) -> Tensor:
    return torch.tensor([REFERENCES[name][order](v) for v in x.double().tolist()], dtype=torch.float64)


def value_and_slope(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), slope


# ---- formulas


def test_every_common_activation_is_registered() -> None:
    assert set(NAMES) == {*REFERENCES, "maxout"}


@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_slope_equal_the_formula_in_float64(name: str) -> None:
    value, slope = value_and_slope(make(name).double(), PLACES)
    assert (value - reference(name, 0, PLACES)).abs().max() <= 1e-13
    assert (slope - reference(name, 1, PLACES)).abs().max() <= 1e-13
    assert (make(name).double()(KINKS) - reference(name, 0, KINKS)).abs().max() <= 1e-15


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shorter_formats_are_within_rounding_of_the_formula(name: str, dtype: torch.dtype) -> None:
    x = PLACES.to(dtype)
    value, slope = value_and_slope(make(name).to(dtype), x)
    assert value.dtype == slope.dtype == dtype
    epsilon = torch.finfo(dtype).eps
    wanted = reference(name, 0, x)
    # torch's float32 gelu is the product of x and 1 + erf; for erf near -1 the error is that of a number near 1.
    values = 2.5 if (name, dtype) == ("gelu", torch.float32) else 1.0
    assert ((value.double() - wanted).abs() <= values * epsilon * wanted.abs().clamp(min=1)).all()
    # The slope of x times a gate is the gate plus x times the gate's slope, which is rounded to epsilon at best.
    wanted = reference(name, 1, x)
    assert ((slope.double() - wanted).abs() <= epsilon * x.double().abs().clamp(min=1)).all()


@pytest.mark.parametrize("name", REFERENCES)
def test_the_documentation_states_the_formula_and_the_derivative(name: str) -> None:
    part = find(ActivationConfig, name)
    documentation = inspect.getdoc(part) or ""
    lines = documentation.split("\n")
    derivative = next(line for line in lines if line.startswith("Derivative: "))
    assert any(line.startswith("Source: ") for line in lines)
    settings = {f.name: getattr(default(name), f.name) for f in fields(default(name))}
    for text, order in ((lines[0], 0), (derivative.removeprefix("Derivative: "), 1)):
        for x in torch.linspace(-8.05, 8.05, 47, dtype=torch.float64).tolist():
            meanings = {**vars(math), "sigmoid": sigmoid, "softplus": softplus, "abs": abs, "max": max, "min": min}
            found = eval(text.removesuffix("."), {"__builtins__": {}}, {**meanings, **settings, "x": x})
            assert found == pytest.approx(REFERENCES[name][order](x), rel=1e-9, abs=1e-12), text


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_gradients_equal_finite_differences(name: str) -> None:
    x = torch.tensor([-7.3, -2.6, -1.4, -0.3, 0.2, 1.1, 2.7, 5.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make(name).double(), (x,))
    assert torch.autograd.gradgradcheck(make(name).double(), (x,))


# Activations for which torch itself gives NaN for -inf (times a closed gate) or both infinities (inf / inf, and gelu in
# vector registers).
NAN_IN_TORCH = {"mish": (-1,), "silu": (-1,), "swish": (-1,), "hard_swish": (-1,), "gelu": (-1, 1), "softsign": (-1, 1)}
LIMITS = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "elu": (-1.0, math.inf),
    "selu": (-LAMBDA * ALPHA, math.inf),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    **dict.fromkeys(("softplus", "mish", "hard_mish", "silu", "swish", "hard_swish", "gelu"), (0.0, math.inf)),
}


@pytest.mark.parametrize("name", ELEMENT_WISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_values_are_handled_as_well_as_by_torch(name: str, dtype: torch.dtype) -> None:
    module = make(name).to(dtype)
    value, slope = value_and_slope(module, torch.tensor([math.nan, -math.inf, math.inf, -1e30, 1e30], dtype=dtype))
    assert value[0].isnan()
    below, above = LIMITS.get(name, (-math.inf, math.inf))
    for found, limit, sign in ((value[1], below, -1), (value[2], above, 1)):
        if not (found.isnan() and sign in NAN_IN_TORCH.get(name, ())):
            assert found.item() == pytest.approx(limit, rel=torch.finfo(dtype).eps)
    for found, limit, x in ((value[3], below, -1e30), (value[4], above, 1e30)):
        wanted = limit if math.isfinite(limit) else REFERENCES[name][0](x)
        assert found.item() == pytest.approx(wanted, rel=torch.finfo(dtype).eps)
    assert slope[3:].isfinite().all()
    assert slope[3:].abs().max() <= 1.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_mish_is_exact_up_to_infinity(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([-math.inf, -largest, -2.0, -1.0, 0.0, largest, math.inf], dtype=dtype)
    value, slope = value_and_slope(make("hard_mish"), x)
    assert value.tolist() == [0, 0, 0, -0.5, 0, largest, math.inf]
    assert slope.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_format_is_kept_and_does_not_change_the_result(name: str) -> None:
    x = torch.randn(2, 8, 5, 7)
    module = make(name)
    found = module(x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, module(x), rtol=1e-6, atol=1e-6)


# ---- settings


def test_settings_change_the_function() -> None:
    x = torch.tensor([-2.0, -0.5, 3.0], dtype=torch.float64)
    leaky = build(LeakyReLU.Config(slope=0.25)).double()
    assert leaky(x).tolist() == [-0.5, -0.125, 3.0]
    prelu = build(PReLU.Config(slope=0.5)).double()
    assert prelu(x).tolist() == [-1.0, -0.25, 3.0]
    elu = build(ELU.Config(alpha=2.0)).double()
    assert elu(x).tolist() == pytest.approx([2 * math.expm1(-2), 2 * math.expm1(-0.5), 3.0])
    swish = build(Swish.Config(beta=1.7)).double()
    assert swish(x).tolist() == pytest.approx([v * sigmoid(1.7 * v) for v in x.tolist()])
    gelu = build(GELU.Config(approximate="tanh")).double()
    inner = [math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) for v in x.tolist()]
    assert gelu(x).tolist() == pytest.approx(
        [v / 2 * (1 + math.tanh(i)) for v, i in zip(x.tolist(), inner, strict=True)]
    )


def test_selu_keeps_mean_0_and_variance_1_of_normal_input() -> None:
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) * 1e-4
    y = make("selu")(x)
    assert (y * density).sum().item() == pytest.approx(0, abs=1e-9)
    assert (y.square() * density).sum().item() == pytest.approx(1, abs=1e-9)


def test_swish_approaches_half_the_identity_and_relu_at_extreme_beta() -> None:
    assert torch.allclose(build(Swish.Config(beta=0.0))(PLACES), PLACES / 2)
    assert (build(Swish.Config(beta=1e4))(PLACES) - PLACES.clamp(min=0)).abs().max() <= 1e-12


def test_a_fixed_swish_has_no_parameter_and_a_learned_one_has_a_gradient() -> None:
    assert list(build(Swish.Config(beta=2.0)).parameters()) == []
    learned = build(Swish.Config(beta=2.0, learned=True)).double()
    assert isinstance(learned, Swish)
    assert isinstance(learned.beta, nn.Parameter)
    x = torch.randn(50, dtype=torch.float64, generator=torch.manual_seed(0), requires_grad=True)
    assert torch.equal(learned(x), build(Swish.Config(beta=2.0))(x))
    assert torch.autograd.gradcheck(lambda x, beta: x * torch.sigmoid(beta * x), (x, learned.beta))
    learned(x).sum().backward()
    gates = [sigmoid(2 * v) for v in x.tolist()]
    wanted = sum(v * v * gate * (1 - gate) for v, gate in zip(x.tolist(), gates, strict=True))
    assert learned.beta.grad is not None
    assert learned.beta.grad.item() == pytest.approx(wanted, rel=1e-12)


def test_the_gradient_of_the_prelu_slope_is_the_sum_of_negative_inputs() -> None:
    prelu = build(PReLU.Config())
    assert isinstance(prelu, PReLU)
    prelu(torch.tensor([[-3.0, 5.0], [-0.5, 0.0]])).sum().backward()
    assert prelu.slope.grad is not None
    assert prelu.slope.grad.item() == -3.5


@pytest.mark.parametrize(("config", "key"), [(PReLU.Config(), "slope"), (Swish.Config(learned=True), "beta")])
def test_learned_settings_are_vectors_without_weight_decay(config: ActivationConfig, key: str) -> None:
    assert [(name, p.ndim) for name, p in build(config).named_parameters()] == [(key, 1)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{name: maxout, pieces: 1}", "maxout: expected at least 2 pieces, got 1"),
        ("{name: elu, alpha: 0.0}", "elu: expected alpha > 0, got 0.0"),
        (
            "{name: gelu, approximate: erf}",
            "model.activation.approximate: expected 'none' or 'tanh', got the text 'erf'",
        ),
        ("{name: leaky, slop: 0.2}", "unknown key 'model.activation.slop'; did you mean 'slope'?"),
        ("hard_mihs", "no activation is named 'hard_mihs'; did you mean 'hard_mish'?"),
    ],
)
def test_an_invalid_setting_is_reported(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment("mish-n", [f"model.activation={override}"])


# ---- maxout


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_maxout_is_the_largest_of_its_pieces_at_each_place(pieces: int) -> None:
    x = torch.randn(2, 4 * pieces, 3, 5, dtype=torch.float64, generator=torch.manual_seed(0), requires_grad=True)
    y = build(Maxout.Config(pieces=pieces))(x)
    assert y.shape == (2, 4, 3, 5)
    y.sum().backward()
    assert x.grad is not None
    for image, channel, row, column in torch.cartesian_prod(*(torch.arange(n) for n in y.shape)).tolist():
        choices = [x[image, piece * 4 + channel, row, column].item() for piece in range(pieces)]
        assert y[image, channel, row, column].item() == max(choices)
        gradients = [x.grad[image, piece * 4 + channel, row, column].item() for piece in range(pieces)]
        assert gradients == [float(c == max(choices)) for c in choices]


def test_equal_pieces_of_maxout_share_the_gradient_and_nan_passes() -> None:
    x = torch.ones(1, 2, requires_grad=True)
    build(Maxout.Config())(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0.5]]
    assert build(Maxout.Config())(torch.tensor([[math.nan, 1.0]])).isnan().all()


@pytest.mark.parametrize("groups", [1, 8])
def test_the_convolution_before_maxout_has_channels_for_all_pieces(groups: int) -> None:
    block = ConvNormAct(8, 16, 3, Maxout.Config(pieces=3), groups=groups)
    assert isinstance(block.norm, nn.BatchNorm2d)
    assert block.conv.out_channels == block.norm.num_features == 48
    assert block(torch.randn(2, 8, 6, 6)).shape == (2, 16, 6, 6)


# ---- in a network


def tiny(config: ActivationConfig, device: str = "cpu") -> DetectionModel:
    torch.manual_seed(0)
    with torch.device(device):
        model: DetectionModel = build(replace(Yolo.Config(), width=0.125, activation=config), 2)
    return model


CONFIGS = [*(default(name) for name in NAMES), Swish.Config(learned=True), Maxout.Config(pieces=3)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{name_of(c)}{''.join(map(str, vars(c).values()))}")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_runs_forward_and_backward(config: ActivationConfig, precision: str) -> None:
    model = tiny(config)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        raw_maps = model(images)
    assert {m.dtype for m in raw_maps} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    sum(m.float().square().mean() for m in raw_maps).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    learned = [g for name, g in gradients.items() if ".activation." in name and g is not None]
    assert bool(learned) == (name_of(config) == "prelu" or getattr(config, "learned", False))
    assert all(g.abs().sum() > 0 for g in learned)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{name_of(c)}{''.join(map(str, vars(c).values()))}")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_folding_the_norm_keeps_the_outputs(config: ActivationConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = ConvNormAct(8, 16, 3, config).to(dtype)
    norm = block.norm
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.2, 0.9)
        x, residual = torch.randn(2, 8, 6, 5, dtype=dtype), torch.randn(2, 16, 6, 5, dtype=dtype)
        wanted = block.eval()(x, residual)
        found = fold(block)(x, residual)
    assert block.norm is None
    assert (found - wanted).abs().max() <= 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{name_of(c)}{''.join(map(str, vars(c).values()))}")
def test_checkpoints_differ_only_in_learned_activation_settings(config: ActivationConfig) -> None:
    own, plain = tiny(config, "meta").state_dict(), tiny(default("mish"), "meta").state_dict()
    rest: dict[str, Any] = {key: t for key, t in own.items() if ".activation." not in key}
    assert list(rest) == list(plain)
    if config.expansion == 1:
        assert {key: t.shape for key, t in rest.items()} == {key: t.shape for key, t in plain.items()}
    if name_of(config) not in LEARNED and not getattr(config, "learned", False):
        assert rest == own
