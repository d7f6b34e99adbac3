from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from detector.config import registry
from detector.darknet.darknet_activations import _OWN, DarknetActivation
from detector.export.graph import DetectionGraph, WrittenMish
from detector.export.ncnn import replace_focus_stems
from detector.export.pt2 import exported_program
from detector.models.activations import ActivationConfig, Mish
from detector.models.attention import AttentionConfig
from detector.models.folding import fold
from detector.models.yolox import FocusStem
from detector.ops.mish import mish
from detector.tasks.detection_model import load_model

CHANNELS = 8


class Parts(nn.Module):
    """Network of every activation and attention, side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        kinds = {kind: registry.names(kind) for kind in (ActivationConfig, AttentionConfig)}
        self.names = [name for names in kinds.values() for name in names] + list(_OWN)
        self.parts = nn.ModuleList()
        for name in kinds[ActivationConfig]:
            self.parts.append(registry.build(registry.find_config_class(ActivationConfig, name)()))
        for name in kinds[AttentionConfig]:
            self.parts.append(registry.build(registry.find_config_class(AttentionConfig, name)(), CHANNELS))
        self.parts.extend(DarknetActivation(name) for name in _OWN)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_()
        for name, parameter in self.named_parameters():
            if name.endswith("gamma"):
                nn.init.ones_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


def test_every_activation_and_attention_uses_standard_onnx_operators_only():
    parts = Parts().eval().requires_grad_(False)
    assert len(parts.names) >= 18 + 3
    x = torch.randn(2, CHANNELS, 4, 6) * 3
    program = torch.export.export(parts, (x,), strict=False)
    model = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False).model_proto
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for name, expected, output in zip(parts.names, parts(x), outputs, strict=True):
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", ["mish", "softplus", "sigmoid"])
def test_each_written_form_of_mish_equals_mish(form):
    x = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([0.0, -1.19243, 1e4, -1e4])])
    expected = x.double() * torch.tanh(torch.nn.functional.softplus(x.double()))
    torch.testing.assert_close(WrittenMish(form)(x).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(WrittenMish(form)(x), mish(x), rtol=1e-5, atol=1e-6)


def test_graph_is_a_folded_copy_without_custom_kernels(yolo_file):
    model = load_model(yolo_file).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = DetectionGraph(model, "mish", is_half=False)
    assert not any(isinstance(module, (nn.BatchNorm2d, Mish)) for module in graph.modules())
    assert graph.output_names == ["boxes", "scores", "raw_0", "raw_1", "raw_2"]
    program = exported_program(graph, (64, 64), torch.uint8, dynamic=False)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert [target for target in targets if target.startswith("detector")] == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.eval()(images.permute(0, 3, 1, 2))
        outputs = program.module()(images)
    for one, other in zip(expected, outputs[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_stem_of_yolox_is_one_convolution_for_ncnn(channels):
    torch.manual_seed(0)
    network = fold(nn.Sequential(FocusStem(channels, CHANNELS, Mish.Config()))).double().requires_grad_(False)
    images = torch.rand(2, channels, 10, 14, dtype=torch.float64)
    expected = network(images)
    replace_focus_stems(network)
    assert not any(isinstance(module, FocusStem) for module in network.modules())
    torch.testing.assert_close(network(images), expected, rtol=1e-12, atol=1e-12)
