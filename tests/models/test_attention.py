from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.config.registry import build, find, find_config_class, names
from detector.config.schema import config_to_yaml
from detector.errors import ConfigError
from detector.models.attention import AttentionConfig, SelfAttention, SpatialAttention, SqueezeExcite
from detector.models.backbones import CSPDarknet
from detector.models.contracts import DetectionModel
from detector.models.folding import fold
from detector.models.yolo import Yolo
from detector.tasks.task import TaskConfig, load_experiment

NAMES = [name for name in names(AttentionConfig) if find(AttentionConfig, name).__module__.startswith("detector.")]


def make(config: AttentionConfig, channels: int) -> nn.Module:
    """Build it in float64, with parameters and statistics that are nowhere 0 or 1."""
    torch.manual_seed(0)
    module: nn.Module = build(config, channels).double().eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 0.9) if tensor.ndim == 1 else tensor.normal_(std=0.4)
    return module


def feature_map(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(1))


def pointwise(kernel: Tensor, vector: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in kernel.flatten(1).tolist()]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- references, number by number


def squeeze_excite(module: SqueezeExcite, x: Tensor) -> Tensor:
    y = x.clone()
    assert module.squeeze.bias is not None
    assert module.excite.bias is not None
    for image in y:
        means = [channel.sum().item() / channel.numel() for channel in image]
        sums = pointwise(module.squeeze.weight, means)
        hidden = [v + b for v, b in zip(sums, module.squeeze.bias.tolist(), strict=True)]
        weights = pointwise(module.excite.weight, [max(h, 0.0) for h in hidden])
        for channel, weight, bias in zip(image, weights, module.excite.bias.tolist(), strict=True):
            channel *= sigmoid(weight + bias)
    return y


def spatial_attention(module: SpatialAttention, x: Tensor) -> Tensor:
    y = x.clone()
    norm = module.gate.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for image in y:
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                gates = pointwise(module.gate.conv.weight, image[:, row, column].tolist())
                for c, gate in enumerate(gates):
                    scaled = (gate - norm.running_mean[c]) / math.sqrt(norm.running_var[c] + norm.eps)
                    image[c, row, column] *= sigmoid((scaled * norm.weight[c] + norm.bias[c]).item())
    return y


def self_attention(module: SelfAttention, x: Tensor) -> Tensor:
    y = x.clone()
    for image, out in zip(x.flatten(2), y.flatten(2), strict=True):
        places = [pointwise(module.project.weight, image[:, i].tolist()) for i in range(image.shape[1])]
        n = module.hidden
        f, g, h = ([p[k * n : (k + 1) * n] for p in places] for k in range(3))
        for j in range(len(places)):
            likeness = [math.exp(sum(a * b for a, b in zip(f[i], g[j], strict=True))) for i in range(len(places))]
            means = [sum(e * h[i][k] for i, e in enumerate(likeness)) / sum(likeness) for k in range(n)]
            added = torch.tensor(pointwise(module.restore.weight, means), dtype=torch.float64)
            out[:, j] = image[:, j] + module.gamma.item() * added
    return y


REFERENCES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "squeeze_excite": squeeze_excite,
    "spatial_attention": spatial_attention,
    "self_attention": self_attention,
}


def test_every_attention_has_a_reference() -> None:
    assert set(NAMES) == set(REFERENCES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_equals_its_formula_in_float64(name: str, memory_format: torch.memory_format) -> None:
    module, x = make(find_config_class(AttentionConfig, name)(), 16), feature_map(2, 16, 3, 4)
    with torch.no_grad():
        found, wanted = module(x.to(memory_format=memory_format)), REFERENCES[name](module, x)
    assert found.shape == x.shape
    assert (wanted - x).abs().max() > 0.1
    assert (found - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    module, x = make(find_config_class(AttentionConfig, name)(), 8), feature_map(2, 8, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name: str) -> None:
    module, x = make(find_config_class(AttentionConfig, name)(), 64), feature_map(2, 64, 20, 20)
    with torch.no_grad():
        wanted, found = module(x), copy.deepcopy(module).float()(x.float())
    # Self-attention sums 8 products of sums of 64 terms and takes the exponential.
    assert (found.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_reduction_sets_the_hidden_channels() -> None:
    assert SqueezeExcite(SqueezeExcite.Config(reduction=4), 64).squeeze.out_channels == 16
    assert SqueezeExcite(SqueezeExcite.Config(), 64).squeeze.out_channels == 8  # not 4
    assert SelfAttention(SelfAttention.Config(), 256).hidden == 32


def test_untrained_self_attention_is_the_identity_and_learns_gamma_first() -> None:
    module = SelfAttention(SelfAttention.Config(), 16)
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.gamma.grad is not None
    assert module.gamma.grad.item() != 0
    assert module.gamma.ndim == 1  # so that it has no weight decay
    assert module.project.weight.grad is not None
    assert module.project.weight.grad.abs().sum() == 0
    module.gamma.data.fill_(0.1)
    module(x).square().sum().backward()
    assert module.project.weight.grad.abs().sum() > 0


# ---- in the backbone


def tiny(attention: AttentionConfig | None, strides: tuple[int, ...] = (32,)) -> DetectionModel:
    torch.manual_seed(0)
    backbone = CSPDarknet.Config(attention=attention, attention_strides=strides)
    return build(replace(Yolo.Config(), width=0.125, backbone=backbone), 2)


IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_with_attention_runs_forward_and_backward(name: str, precision: str) -> None:
    model = tiny(find_config_class(AttentionConfig, name)(), (4, 8, 16, 32))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        raw_maps = model(IMAGES)
    assert {m.dtype for m in raw_maps} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    sum(m.float().square().mean() for m in raw_maps).backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strides", [(32,), (8, 16), (4, 8, 16, 32)])
def test_attention_is_at_the_end_of_the_chosen_stages(name: str, strides: tuple[int, ...]) -> None:
    model = tiny(find_config_class(AttentionConfig, name)(), strides)
    seen: list[Tensor] = []
    for module in model.modules():
        if type(module) is find(AttentionConfig, name):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(IMAGES)
    assert [(64 // x.shape[2], 96 // x.shape[3]) for x in seen] == [(s, s) for s in strides]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_without_attention_fits_a_network_with_it(name: str) -> None:
    plain, own = tiny(None), tiny(find_config_class(AttentionConfig, name)())
    added = [key for key in own.state_dict() if key not in plain.state_dict()]
    assert added
    assert all(key.startswith("backbone.stages.3.2.") for key in added)
    left, unknown = own.load_state_dict(plain.state_dict(), strict=False)
    assert [key for key in added if not key.endswith("num_batches_tracked")] == left
    assert unknown == []
    with torch.no_grad():  # in training mode: otherwise the maps of an untrained network fade without batch norm
        pairs = list(zip(own(IMAGES), plain(IMAGES), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) == (name == "self_attention")  # which starts as the identity


def test_folding_keeps_the_outputs_of_a_network_with_attention() -> None:
    model = tiny(SpatialAttention.Config(), (16, 32)).double()
    model(IMAGES)  # gives batch norm statistics other than the initial ones
    with torch.no_grad():
        wanted, found = model.eval()(IMAGES), fold(copy.deepcopy(model))(IMAGES)
    for a, b in zip(wanted, found, strict=True):
        assert (a - b).abs().max() <= 1e-9


def backbone_of(config: TaskConfig) -> CSPDarknet.Config:
    assert isinstance(config.model, Yolo.Config)
    assert isinstance(config.model.backbone, CSPDarknet.Config)
    return config.model.backbone


def test_the_configuration_chooses_attention_and_its_settings_and_switches_it_off(tmp_path: Path) -> None:
    words = ["model.backbone.attention=squeeze_excite", "model.backbone.attention.reduction=4"]
    config = load_experiment("mish-n", [*words, "model.backbone.attention_strides=[8, 32]"])
    assert backbone_of(config).attention == SqueezeExcite.Config(reduction=4)
    assert backbone_of(config).attention_strides == (8, 32)
    (tmp_path / "a.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert load_experiment(str(tmp_path / "a.yaml")) == config
    off = load_experiment(str(tmp_path / "a.yaml"), ["model.backbone.attention=null"])
    assert backbone_of(off).attention is None
    assert backbone_of(load_experiment("mish-n")).attention is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention=self_atention", "no attention is named 'self_atention'; did you mean 'self_attention'?"),
        ("attention={name: self_attention, reduction: 0}", "self_attention: expected a reduction of at least 1, got 0"),
        ("attention={name: squeeze_excite, reduction: 0}", "squeeze_excite: expected a reduction of at least 1, got 0"),
        ("attention={name: spatial_attention, size: 7}", "unknown key 'model.backbone.attention.size'"),
        ("attention_strides=[2]", "csp_darknet: expected attention_strides out of (4, 8, 16, 32, 64), got (2,)"),
        ("attention_strides=[]", "csp_darknet: expected attention_strides out of (4, 8, 16, 32, 64), got ()"),
    ],
)
def test_an_invalid_setting_is_reported(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment("mish-n", [f"model.backbone.{override}"])
