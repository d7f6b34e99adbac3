"""Each layer against a reference: plain loops over NumPy float64 arrays, as in the specification."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from detector.darknet.layers import (
    BlurredConv,
    BlurredMaxPool,
    ConvGeometry,
    DarknetConv,
    GlobalAvgPool,
    LocalAvgPool,
    MaxPool,
    Product,
    Reorg,
    Reorg3d,
    Route,
    Shortcut,
    Upsample,
    WeightedShortcut,
)

Array = npt.NDArray[np.float64]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def run(layer: nn.Module, *inputs: Array) -> Array:
    """Apply a layer in evaluation mode to one image, in float64."""
    with torch.no_grad():
        found = layer.double().eval()(*(torch.from_numpy(x)[None] for x in inputs))
    return np.asarray(found[0])


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.1 * x)


def convolved(
    x: Array, weights: Array, stride_yx: tuple[int, int], padding: int, dilation: int = 1, groups: int = 1
) -> Array:
    """Cross-correlate; the size of the output ignores the dilation, and the padding is scaled by it."""
    num_filters, depth, size, _ = weights.shape
    height, width = ((side + 2 * padding - size) // s + 1 for side, s in zip(x.shape[1:], stride_yx, strict=True))
    out = np.zeros((num_filters, height, width))
    for f, row, column in itertools.product(range(num_filters), range(height), range(width)):
        first = f // (num_filters // groups) * depth
        for c, ky, kx in itertools.product(range(depth), range(size), range(size)):
            y = row * stride_yx[0] - padding * dilation + ky * dilation
            z = column * stride_yx[1] - padding * dilation + kx * dilation
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                out[f, row, column] += weights[f, c, ky, kx] * x[first + c, y, z]
    return out


def pooled(x: Array, size: int, stride_yx: tuple[int, int], padding: int, of: Callable[[list[float]], float]) -> Array:
    channels, *sides = x.shape
    height, width = ((side + padding - size) // s + 1 for side, s in zip(sides, stride_yx, strict=True))
    out = np.zeros((channels, height, width))
    for c, row, column in itertools.product(range(channels), range(height), range(width)):
        inside = []
        for ky, kx in itertools.product(range(size), range(size)):
            y = row * stride_yx[0] - padding // 2 + ky
            z = column * stride_yx[1] - padding // 2 + kx
            if 0 <= y < sides[0] and 0 <= z < sides[1]:
                inside.append(float(x[c, y, z]))
        out[c, row, column] = of(inside)
    return out


def blurred(x: Array, kind: int, stride_yx: tuple[int, int]) -> Array:
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16 if kind == 1 else np.full((2, 2), 0.25)
    weights = np.broadcast_to(kernel, (len(x), 1, *kernel.shape))
    return convolved(x, np.array(weights), stride_yx, 1 if kind == 1 else 0, groups=len(x))


# ---- [convolutional]

GEOMETRIES = [
    ConvGeometry(1),
    ConvGeometry(3, padding=1),
    ConvGeometry(3),
    ConvGeometry(3, padding=1, stride_yx=(2, 2)),
    ConvGeometry(3, padding=1, stride_yx=(2, 1)),
    ConvGeometry(3, padding=1, stride_yx=(1, 3)),
    ConvGeometry(2, padding=1, stride_yx=(2, 2)),  # grows the map
    ConvGeometry(3, padding=2),
    ConvGeometry(3, padding=2, dilation=2),
    ConvGeometry(5, padding=6, dilation=3),
    ConvGeometry(3, padding=1, groups=2),
    ConvGeometry(3, padding=1, groups=4),
    ConvGeometry(1, stride_yx=(2, 2)),
]


@pytest.mark.parametrize("batch_normalize", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_equals_a_plain_loop(geometry, batch_normalize):
    layer = DarknetConv(4, 8, geometry, nn.LeakyReLU(0.1), batch_normalize=batch_normalize).double()
    x = random(4, 9, 12)
    generator = torch.Generator().manual_seed(1)
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    weights = random(*layer.conv.weight.shape, seed=2)
    layer.conv.weight.data.copy_(torch.from_numpy(weights))
    padding = geometry.padding // geometry.dilation
    out = convolved(x, weights, geometry.stride_yx, padding, geometry.dilation, geometry.groups)
    if layer.norm is not None:
        scale, shift, mean, variance = (
            t.detach().numpy()[:, None, None]
            for t in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var)
        )
        out = scale * (out - mean) / np.sqrt(variance + 1e-5) + shift
    else:
        assert layer.conv.bias is not None
        out = out + layer.conv.bias.detach().numpy()[:, None, None]
    found = run(layer, x)
    assert found.shape == out.shape
    assert np.abs(found - leaky(out)).max() <= 1e-12


def test_batch_norm_has_the_settings_of_darknet_on_a_gpu():
    norm = DarknetConv(3, 4, ConvGeometry(3), nn.Identity()).norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.eps, norm.momentum) == (1e-5, 0.01)


def test_initial_weights_are_uniform_within_the_square_root_of_two_over_the_fan_in():
    weights = DarknetConv(8, 64, ConvGeometry(3, groups=2), nn.Identity()).conv.weight.detach()
    bound = math.sqrt(2 / (4 * 9))
    assert weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_shared_convolution_has_no_parameters_of_its_own():
    first = DarknetConv(4, 4, ConvGeometry(3, padding=1), nn.Identity())
    second = DarknetConv(4, 4, ConvGeometry(3, padding=2, dilation=2), nn.Identity())
    second.share(first)
    both = nn.ModuleList([first, second])
    assert sum(p.numel() for p in both.parameters()) == sum(p.numel() for p in first.parameters())
    x = random(4, 8, 8)
    weights = first.conv.weight.detach().double().numpy()
    expected = convolved(x, weights, (1, 1), 1, dilation=2) / math.sqrt(1 + 1e-5)
    assert np.abs(run(second, x) - expected).max() <= 1e-12


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("stride_yx", [(2, 2), (1, 2)])
def test_antialiasing_blurs_the_output_at_stride_one(kind, stride_yx):
    geometry = ConvGeometry(3, stride_yx=stride_yx, padding=1)
    layer = BlurredConv(3, 5, geometry, nn.LeakyReLU(0.1), blur=kind, batch_normalize=False).double()
    x = random(3, 8, 10)
    inner = leaky(convolved(x, layer.conv.weight.detach().numpy(), (1, 1), 1))
    assert np.abs(run(layer, x) - blurred(inner, kind, stride_yx)).max() <= 1e-12
    pool = BlurredMaxPool(3, stride_yx, 2, blur=kind, channels=3)
    expected = blurred(pooled(x, 3, (1, 1), 2, max), kind, stride_yx)
    assert np.abs(run(pool, x) - expected).max() <= 1e-6  # the kernel in sixteenths and its float32 sums are exact
    assert set(layer.state_dict()) == {"conv.weight", "conv.bias"}


# ---- pools

POOLS = [
    *((size, (s, s), size - 1) for size, s in itertools.product((1, 2, 3, 4, 5), (1, 2, 3))),
    (13, (1, 1), 12),
    (3, (2, 2), 0),
    (3, (2, 2), 1),
    (3, (2, 2), 4),
    (3, (2, 1), 2),
    (2, (1, 2), 1),
]


@pytest.mark.parametrize(("size", "stride_yx", "padding"), POOLS)
@pytest.mark.parametrize("image_hw", [(13, 14), (16, 15)])
def test_pool_equals_a_plain_loop(size, stride_yx, padding, image_hw):
    x = random(2, *image_hw) - 3  # mostly negative, so that padding with zeros would be noticed
    expected = pooled(x, size, stride_yx, padding, max)
    found = run(MaxPool(size, stride_yx, padding), x)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
    expected = pooled(x, size, stride_yx, padding, lambda inside: math.fsum(inside) / len(inside))
    assert np.abs(run(LocalAvgPool(size, stride_yx, padding), x) - expected).max() <= 1e-12


@pytest.mark.parametrize(("side", "size", "stride", "expected"), [(65, 2, 2, 33), (64, 2, 1, 64), (13, 5, 1, 13)])
def test_default_padding_gives_one_cell_per_started_stride(side, size, stride, expected):
    found = MaxPool(size, (stride, stride), size - 1)(torch.zeros(1, 1, side, side))
    assert found.shape[2:] == (expected, expected)


def test_global_pool_is_the_mean():
    x = random(3, 5, 7)
    assert np.abs(run(GlobalAvgPool(), x) - x.mean(axis=(1, 2), keepdims=True)).max() <= 1e-15


# ---- [upsample], [route], [shortcut], products


@pytest.mark.parametrize(("stride", "scale"), [(2, 1.0), (3, 2.0), (4, 0.5)])
def test_upsampling_repeats_cells(stride, scale):
    x = random(2, 3, 4)
    expected = scale * x.repeat(stride, axis=1).repeat(stride, axis=2)
    assert np.array_equal(run(Upsample(stride, scale), x), expected)


def test_negative_upsampling_stride_sums_blocks():
    x = random(2, 4, 6)
    expected = 1.5 * sum(x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1))
    assert np.abs(run(Upsample(-2, 1.5), x) - expected).max() <= 1e-12


def test_route_slices_each_source_before_it_concatenates():
    a, b = random(4, 2, 3), random(8, 2, 3, seed=1)
    assert np.array_equal(run(Route(), a, b), np.concatenate([a, b]))
    assert np.array_equal(run(Route(2, 1), a), a[2:])
    assert np.array_equal(run(Route(4, 2), a, b), np.concatenate([a[2:3], b[4:6]]))


@pytest.mark.parametrize("channels", [(4,), (2,), (6,), (4, 2, 6)])
def test_shortcut_adds_the_channels_that_both_have(channels):
    x, sources = random(4, 3, 3), [random(c, 3, 3, seed=c) for c in channels]
    expected = x.copy()
    for source in sources:
        both = min(4, len(source))
        expected[:both] += source[:both]
    assert np.abs(run(Shortcut(nn.LeakyReLU(0.1)), x, *sources) - leaky(expected)).max() <= 1e-15


@pytest.mark.parametrize("normalization", ["none", "relu", "softmax"])
@pytest.mark.parametrize("channels", [None, 4])
def test_weighted_shortcut_normalises_over_its_inputs(normalization, channels):
    inputs = [random(c, 3, 3, seed=c) for c in (4, 2, 6)]
    layer = WeightedShortcut(nn.Identity(), 3, channels, normalization)
    weights = random(*layer.weights.shape, seed=5)
    weights.flat[0], weights.flat[1] = -0.7, 0.0005  # both count as 0.001 with relu normalisation
    layer.weights.data = torch.from_numpy(weights)
    expected = np.zeros((4, 3, 3))
    for c in range(4):
        column = weights if channels is None else weights[:, c]
        shares = list(column)
        if normalization != "none":
            is_relu = normalization == "relu"
            parts = [(w if w > 0.001 else 0.001) if is_relu else math.exp(w - max(column)) for w in column]
            shares = [part / (1e-4 + sum(parts)) for part in parts]
        for share, x in zip(shares, inputs, strict=True):
            expected[c] += share * (x[c] if c < len(x) else 0.0)
    assert np.abs(run(layer, *inputs) - expected).max() <= 1e-9  # 0.001 and 0.0001 are float32 constants in the layer


def test_product_scales_channels_or_cells_or_every_value():
    x = random(3, 4, 5)
    for shape in ((3, 1, 1), (1, 4, 5), (3, 4, 5)):
        factor = random(*shape, seed=3)
        assert np.abs(run(Product(nn.LeakyReLU(0.1)), factor, x) - leaky(factor * x)).max() <= 1e-15


# ---- reorganisation


def test_reorg3d_keeps_the_channels_of_a_grid_together():
    x = random(2, 4, 6)
    out = np.zeros((8, 2, 3))
    for dy, dx, c in itertools.product(range(2), range(2), range(2)):
        out[(dy * 2 + dx) * 2 + c] = x[c, dy::2, dx::2]
    assert np.array_equal(run(Reorg3d(2), x), out)
    assert not np.array_equal(out, nn.PixelUnshuffle(2)(torch.from_numpy(x)).numpy())


def test_reorg_is_the_historical_permutation():
    channels, height, width, s = 8, 4, 6, 2
    x = random(channels, height, width)
    few = channels // s**2
    read = x.reshape(few, height * s, width * s)
    flat = np.zeros(x.size)
    for k, j, i in itertools.product(range(channels), range(height), range(width)):
        value = read[k % few, j * s + (k // few) // s, i * s + (k // few) % s]
        flat[(k * height + j) * width + i] = value
    found = run(Reorg(s), x)
    assert np.array_equal(found, flat.reshape(channels * s**2, height // s, width // s))
    assert not np.array_equal(found, run(Reorg3d(s), x))
    last = torch.from_numpy(x)[None].to(
        memory_format=torch.channels_last
    )  # the result must not depend on the memory format
    assert np.array_equal(Reorg(s)(last)[0].numpy(), found)


# ---- gradients


def test_every_layer_passes_gradcheck():
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    geometry = ConvGeometry(3, stride_yx=(2, 2), padding=1)
    layers: list[tuple[nn.Module, int]] = [
        (BlurredConv(4, 4, geometry, nn.Tanh(), blur=1, batch_normalize=False), 1),
        (BlurredMaxPool(2, (2, 2), 1, blur=2, channels=4), 1),
        (LocalAvgPool(3, (2, 2), 2), 1),
        (Upsample(2, 0.5), 1),
        (Upsample(-2), 1),
        (Route(2, 1), 2),
        (Shortcut(nn.Tanh()), 2),
        (WeightedShortcut(nn.Tanh(), 2, 4, "relu"), 2),
        (WeightedShortcut(nn.Tanh(), 2, None, "softmax"), 2),
        (Product(nn.Tanh()), 2),
        (Reorg3d(2), 1),
        (Reorg(2), 1),
    ]
    for layer, num_inputs in layers:
        torch.autograd.gradcheck(layer.double(), (x, y)[:num_inputs])
