from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.config.registry import build, find_config_class, names
from detector.config.schema import config_from_plain
from detector.models.activations import ActivationConfig, ReLU
from detector.models.backbones import BackboneConfig
from detector.models.blocks import ConvNormAct
from detector.models.checkpoint import ModelFile
from detector.models.contracts import ClassifierConfig
from detector.models.folding import fold
from detector.models.image_classifier import ImageClassifier
from detector.models.plain_cnn import Plain
from detector.models.se_resnet import ResidualBlock, SEResNet18
from detector.models.yolo import Yolo
from detector.workflows.starting_weights import load_matching

SMALL: dict[str, dict[str, Any]] = {"plain": {"stride": 2}, "se_resnet18": {"stem": "small"}}


def make(backbone: str, **settings: Any) -> ImageClassifier:
    torch.manual_seed(0)
    part = find_config_class(BackboneConfig, backbone)(**{**SMALL.get(backbone, {}), **settings})
    return ImageClassifier(ImageClassifier.Config(depth=0.33, width=0.125, backbone=part), 7)


def images(side: int = 32, num: int = 2) -> Tensor:
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.mark.parametrize("backbone", names(BackboneConfig))
def test_every_backbone_works_in_a_classifier_of_small_images(backbone: str) -> None:
    model = make(backbone)
    for training in (True, False):
        assert model.train(training)(images()).shape == (2, 7)
    logits = model(images())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    logits.logsumexp(1).sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == set()


@pytest.mark.parametrize("backbone", names(BackboneConfig))
def test_folding_a_classifier_changes_nothing_but_rounding(backbone: str) -> None:
    model = make(backbone)
    model(images(num=8))  # gives batch norm statistics other than the initial ones
    model.eval()
    with torch.no_grad():
        before = model(images())
        assert torch.allclose(fold(model)(images()), before, rtol=1e-3, atol=1e-4)


def test_logits_are_a_linear_map_of_the_mean_over_places() -> None:
    model = make("csp_darknet").eval()
    with torch.no_grad():
        last = model.backbone(images(64).float() / 255)[-1].double()
        means = last.flatten(2).mean(2)
        wanted = means @ model.linear.weight.double().T + model.linear.bias.double()
        assert torch.allclose(model(images(64)).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", names(BackboneConfig))
def test_a_detector_takes_the_weights_of_a_classifiers_backbone_by_name(backbone: str) -> None:
    part = find_config_class(BackboneConfig, backbone)(**SMALL.get(backbone, {}))
    classifier = ImageClassifier(ImageClassifier.Config(depth=0.33, width=0.125, backbone=part), 7)
    torch.manual_seed(5)
    detector = Yolo(replace(Yolo.Config(), width=0.125, backbone=part), 3)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    file = ModelFile({}, tuple("abcdefg"), tuple(range(7)), dict(classifier.state_dict()))
    taken = load_matching(detector, file, ("x", "y", "z"))
    state = detector.state_dict()
    own = [name for name in state if name.startswith("backbone.")]
    assert len(own) > 20
    assert all(torch.equal(state[name], classifier.state_dict()[name]) for name in own)
    assert set(taken.left) == set(state) - set(own)
    assert all(torch.equal(state[name], before[name]) for name in taken.left)


def test_a_classifier_of_other_classes_takes_the_rows_of_shared_classes() -> None:
    start = make("plain")
    model = ImageClassifier(ImageClassifier.Config(depth=0.33, width=0.125, backbone=Plain.Config(stride=2)), 2)
    file = ModelFile({}, tuple("abcdefg"), tuple(range(7)), dict(start.state_dict()))
    taken = load_matching(model, file, ("e", "new"))
    assert taken.known == ("e",)
    assert torch.equal(model.linear.weight[0], start.linear.weight[4])


# ---- the plain stack


@pytest.mark.parametrize("layers", [5, 10, 21, 40])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_plain_stack_has_the_configured_number_of_layers_and_nothing_else(layers: int, norm: str) -> None:
    model = make("plain", layers=layers, norm=norm, channels=(64, 64, 64))
    blocks = [m for m in model.backbone.modules() if isinstance(m, ConvNormAct)]
    assert len(blocks) == layers == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert all((block.norm is None) == (norm == "none") == (block.conv.bias is not None) for block in blocks)
    x = images().float() / 255
    for block in blocks:  # one after another, without shortcuts
        x = block(x)
    assert torch.equal(model.backbone(images().float() / 255)[-1], x)


@pytest.mark.parametrize(("stride", "layers"), [(1, 5), (2, 5), (4, 5), (8, 7), (8, 10)])
def test_a_plain_stack_has_the_strides_it_states(stride: int, layers: int) -> None:
    model = make("plain", stride=stride, layers=layers)
    maps = model.backbone(torch.rand(1, 3, 64, 64))
    assert model.backbone.strides == (stride, 2 * stride, 4 * stride)
    assert [m.shape[-1] for m in maps] == [64 // s for s in model.backbone.strides]


def test_initial_weights_are_those_of_he_et_al_for_every_activation() -> None:
    stacks = []
    for name in ("relu", "mish", "silu"):
        torch.manual_seed(3)
        config = ImageClassifier.Config(
            backbone=Plain.Config(layers=9, channels=(64, 64, 64), norm="none", stride=1),
            activation=find_config_class(ActivationConfig, name)(),
        )
        stacks.append(ImageClassifier(config, 3))
    kernels = [[m.weight for m in stack.modules() if isinstance(m, nn.Conv2d)] for stack in stacks]
    assert all(torch.equal(a, b) for others in kernels[1:] for a, b in zip(kernels[0], others, strict=True))
    for kernel in kernels[0][1:]:
        assert kernel.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
        assert abs(kernel.mean().item()) < 0.002
    biases = [m.bias for m in stacks[0].backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(bias is not None and not bias.any() for bias in biases)


@pytest.mark.parametrize(
    "settings", [{"layers": 4, "stride": 2}, {"layers": 6}, {"stride": 3}, {"channels": (0, 8, 8)}]
)
def test_an_invalid_plain_stack_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="plain: expected"):
        Plain.Config(**settings)


@pytest.mark.parametrize("name", ["mish", "relu", "silu"])
def test_a_block_without_norm_is_a_convolution_with_bias_and_its_activation(name: str) -> None:
    torch.manual_seed(0)
    activation = find_config_class(ActivationConfig, name)()
    block = ConvNormAct(5, 16, 3, activation, norm=False)
    assert block.conv.bias is not None
    nn.init.normal_(block.conv.bias)
    x = torch.randn(2, 5, 9, 7)
    y = nn.functional.conv2d(x.double(), block.conv.weight.double(), block.conv.bias.double(), padding=1)
    functions = {"mish": nn.functional.mish, "relu": nn.functional.relu, "silu": nn.functional.silu}
    wanted = functions[name](y)
    with torch.no_grad():
        without = block(x)
    for found in (block(x), without):
        assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-5)


# ---- the residual network


def test_se_resnet18_has_eighteen_layers_and_the_widths_of_the_paper() -> None:
    with torch.device("meta"):
        model = ImageClassifier(
            ImageClassifier.Config(backbone=SEResNet18.Config(stem="small"), activation=ReLU.Config()), 10
        )
    kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(kernels) + 1 == 18  # and the linear layer
    assert model.backbone.out_channels == (128, 256, 512)
    assert 11.1e6 < sum(p.numel() for p in model.parameters()) < 11.4e6


@pytest.mark.parametrize(("stem", "strides"), [("small", (2, 4, 8)), ("large", (8, 16, 32))])
def test_se_resnet18_has_the_strides_of_its_stem(stem: str, strides: tuple[int, ...]) -> None:
    backbone = make("se_resnet18", stem=stem).backbone
    assert backbone.strides == strides
    assert [m.shape[-1] for m in backbone(torch.rand(1, 3, 64, 64))] == [64 // s for s in strides]


@pytest.mark.parametrize("settings", [{"channels": (8, 8, 8, 0)}, {"blocks": (2, 0, 2, 2)}])
def test_an_invalid_residual_network_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="se_resnet18: expected channels and blocks of at least 1"):
        SEResNet18.Config(**settings)


def test_a_block_is_the_activation_of_its_input_plus_its_residual() -> None:
    model = make("se_resnet18").eval()
    block = next(m for m in model.modules() if isinstance(m, ResidualBlock))
    x = torch.randn(1, block.first.conv.in_channels, 6, 6)
    with torch.no_grad():
        added = block.attention(block.second(block.first(x)))
        assert torch.allclose(block(x), block.activation(x + added), atol=1e-6)
        weights = added / block.second(block.first(x))
        assert (weights.amax((2, 3)) - weights.amin((2, 3))).abs().max() < 1e-4  # one weight for each channel


@pytest.mark.parametrize("name", names(ActivationConfig))
def test_every_activation_works_in_the_plain_and_the_residual_backbone(name: str) -> None:
    activation = find_config_class(ActivationConfig, name)()
    for backbone in (SEResNet18.Config(stem="small"), Plain.Config(layers=6, stride=2, norm="none")):
        config = ImageClassifier.Config(depth=0.33, width=0.125, backbone=backbone, activation=activation)
        assert build(config, 2)(images()).shape == (2, 2)


@pytest.mark.parametrize("name", names(ClassifierConfig))
def test_a_size_that_is_not_a_multiple_of_the_stride_is_refused(name: str) -> None:
    config = config_from_plain(ClassifierConfig, {"name": name, "width": 0.125, "depth": 0.33}, "a test")
    model = build(config, 2)
    with pytest.raises(ValueError, match="multiple of 32"):
        model(images(48))


def test_a_classifier_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 class"):
        ImageClassifier(ImageClassifier.Config(), 0)
