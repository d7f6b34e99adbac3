from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from detector.config.registry import find_config_class, names
from detector.models.activations import ActivationConfig, Mish
from detector.models.blocks import ConvNormAct
from detector.models.folding import fold
from detector.models.yolo import Yolo


def trained(model: nn.Module) -> nn.Module:
    """Return a model whose norms are not identities."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2.0)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return model.eval()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", names(ActivationConfig))
def test_a_folded_block_equals_the_block_in_float64(name: str, layout: torch.memory_format) -> None:
    block = trained(ConvNormAct(5, 12, 3, find_config_class(ActivationConfig, name)(), stride=2))
    x = torch.randn(2, 5, 13, 11).contiguous(memory_format=layout)
    with torch.no_grad():
        wanted = copy.deepcopy(block).double()(x.double())
        residual = torch.randn_like(wanted).float().contiguous(memory_format=layout)
        folded = fold(copy.deepcopy(block))
        assert folded.norm is None
        assert (folded(x) - wanted).abs().max() <= 2e-5
        assert (folded(x, residual) - (wanted + residual)).abs().max() <= 2e-5


def test_a_folded_model_has_no_norm_and_the_same_maps() -> None:
    model = trained(Yolo(Yolo.Config(width=0.125), 3))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model.double()(images)
        folded = fold(copy.deepcopy(model).float())
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        for ours, theirs in zip(folded(images), wanted, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_folded_block_can_still_be_differentiated() -> None:
    block = fold(trained(ConvNormAct(3, 8, 3, Mish.Config())))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    y: Tensor = block(x)
    y.sum().backward()
    assert x.grad is not None


def test_conversion_to_synchronised_norms_keeps_the_activation() -> None:
    block = trained(ConvNormAct(3, 8, 3, Mish.Config()))
    x = torch.randn(2, 3, 8, 8)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block)).eval()
    with torch.no_grad():
        assert torch.allclose(converted(x), block(x), atol=1e-5)
    assert list(converted.state_dict()) == list(block.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_a_block_compiles_into_one_graph_and_keeps_its_outputs(training: bool) -> None:
    block = trained(ConvNormAct(3, 8, 3, Mish.Config())).train(training)
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    wanted = copy.deepcopy(block)(x)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    found.sum().backward()


def test_a_model_exports_with_torch_s_own_operators() -> None:
    model = trained(Yolo(Yolo.Config(width=0.125), 3))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(model, (images,))
        called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert "aten.mish.default" in called
        assert not [target for target in called if target.startswith("detector.")]
        for ours, theirs in zip(exported.module()(images), model(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
