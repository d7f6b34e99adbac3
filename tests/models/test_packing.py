from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detector.models import packing
from detector.models.blocks import ConvNormAct
from detector.models.folding import fold
from detector.models.packing import PackedConv2d, can_pack, pack
from detector.models.yolo import Yolo

needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch does not pack weights")
CONVS = {
    "1x1": nn.Conv2d(24, 16, 1),
    "3x3": nn.Conv2d(16, 24, 3, padding=1, bias=False),
    "stride": nn.Conv2d(3, 8, 3, stride=2, padding=1),
    "depthwise": nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "dilated": nn.Conv2d(8, 8, 3, padding=2, dilation=2),
}


@needs_packing
@pytest.mark.parametrize("name", CONVS)
def test_a_packed_convolution_agrees_with_float64_on_images_of_every_size(name: str) -> None:
    conv = CONVS[name]
    packed = pack(nn.Sequential(copy.deepcopy(conv)))
    assert isinstance(packed[0], PackedConv2d)
    for batch, height, width in ((1, 40, 40), (3, 8, 20), (1, 1, 1)):  # the first decides the layout of the weights
        x = torch.randn(batch, conv.in_channels, height, width).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            found, expected = packed(x), copy.deepcopy(conv).double()(x.double())
        assert packed[0].weight.is_mkldnn
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_of_an_unsupported_dtype_is_not_packed(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "can_pack_dtype", lambda dtype: dtype == torch.float32)
    model = pack(nn.Sequential(nn.Conv2d(4, 8, 3).to(dtype), nn.Conv2d(8, 8, 3)))
    assert type(model[0]) is nn.Conv2d
    assert isinstance(model[1], PackedConv2d) == packing.can_pack()


@needs_packing
@pytest.mark.skipif(not packing.can_pack_dtype(torch.bfloat16), reason="this processor has no bf16 convolutions")
def test_a_packed_16_bit_convolution_takes_float32_images_and_biases() -> None:
    conv = nn.Conv2d(16, 24, 3, padding=1)
    half = copy.deepcopy(conv)
    half.weight.data = half.weight.data.bfloat16()
    x = torch.randn(1, 16, 20, 20)
    with torch.inference_mode():
        found, expected = pack(nn.Sequential(half))(x), conv.double()(x.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-7)  # 8 bits of mantissa


@needs_packing
def test_packing_a_folded_model_packs_every_convolution_and_keeps_its_maps() -> None:
    torch.manual_seed(0)
    model = fold(Yolo(Yolo.Config(width=0.125), 3))
    packed = pack(copy.deepcopy(model))
    assert not any(isinstance(part, nn.Conv2d) for part in packed.modules())
    assert sum(isinstance(part, PackedConv2d) for part in packed.modules()) == sum(
        isinstance(part, nn.Conv2d) for part in model.modules()
    )
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for found, expected in zip(packed(images), model(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_cannot_be_packed_is_unchanged() -> None:
    odd = nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1))
    assert all(type(part) is nn.Conv2d for part in pack(odd))


def test_a_torch_without_the_operators_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    block = ConvNormAct(3, 8, 3, Yolo.Config().activation)
    assert isinstance(pack(block).conv, nn.Conv2d)
