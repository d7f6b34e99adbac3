from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.models.blocks import BN_EPSILON
from detector.models.unfolding import is_folded, unfold
from detector.models.yolo import Yolo
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import config_of_size


def folded_model(config: Yolo.Config | Yolox.Config) -> nn.Module:
    """A model whose norms have mean 0, variance 1 and scale 1, and shifts of their own, as after folding."""
    torch.manual_seed(0)
    model = Yolox(config, 2) if isinstance(config, Yolox.Config) else Yolo(config, 2)
    model.eval()
    for norm in norms_of(model):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        nn.init.ones_(norm.weight)
        nn.init.normal_(norm.bias, std=0.3)
    return model


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["nano", "mish"])
def folded(request: pytest.FixtureRequest) -> nn.Module:
    return folded_model(config_of_size("nano") if request.param == "nano" else Yolo.Config(width=0.125))


def outputs(model: nn.Module, images: Tensor, training: bool) -> list[Tensor]:
    with torch.no_grad():
        return list(copy.deepcopy(model).train(training)(images))


def largest(first: list[Tensor], second: list[Tensor]) -> float:
    scale = max(float(a.abs().max()) for a in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / scale


def test_function_stays_and_training_mode_computes_nearly_the_same(folded, images):
    assert is_folded(folded)
    wanted = outputs(folded, images, training=False)
    before = largest(wanted, outputs(folded, images, training=True))
    unfold(folded, [images[:4], images[4:]])
    assert not is_folded(folded)
    assert largest(wanted, outputs(folded, images, training=False)) < 1e-4
    assert largest(wanted, outputs(folded, images, training=True)) < min(0.02, before / 5)


def test_statistics_are_the_mean_and_variance_of_the_inputs(images):
    model = folded_model(config_of_size("nano"))
    seen: list[Tensor] = []
    stem: Any = model.get_submodule("backbone.stem.conv")
    stem.conv.register_forward_hook(lambda module, given, x: seen.append(x.double()))
    shift = stem.norm.bias.detach().double().clone()
    unfold(model, [images[:2], images[2:]])
    norm = stem.norm
    inputs = torch.cat(seen)
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    assert torch.allclose(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(norm.running_var.double(), variance, rtol=1e-5)
    assert torch.allclose(norm.weight.double(), (variance + BN_EPSILON).sqrt(), rtol=1e-5)
    assert torch.allclose(norm.bias.double(), shift + mean, rtol=1e-4, atol=1e-4)


def test_norm_with_statistics_of_its_own_keeps_the_function(images):
    """The formula holds for any norm, so that a second set of images can replace the first."""
    model = folded_model(config_of_size("nano"))
    unfold(model, [images[:3]])
    wanted = outputs(model, images, training=False)
    unfold(model, [images[3:]])
    assert largest(wanted, outputs(model, images, training=False)) < 1e-4


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        unfold(folded_model(config_of_size("nano")), [])


def test_model_without_norm_is_not_folded():
    assert not is_folded(nn.Conv2d(3, 3, 1))
