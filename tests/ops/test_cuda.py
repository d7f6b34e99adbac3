"""The GPU kernels, reductions included, against float64; they run on the CPU, see conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops import cuda, cuda_driver, nvrtc

DTYPES = list(nvrtc.STORAGE)
# Whole cells and odd ones, one and many tiles of a block, several images, channels that fill no block and many blocks.
SHAPES = [
    (2, 16, 8, 8),
    (3, 24, 7, 9),
    (5, 3, 4, 4),
    (2, 1, 6, 8),
    (1, 257, 3, 5),
    (2, 8, 90, 96),
    (2, 5, 61, 67),
    (7, 40, 1, 1),
    (3, 148, 2, 3),
    (40, 48),
    (2, 16, 48),
    (2, 16, 3, 4, 4),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "misaligned": lambda t: torch.cat([t.new_full((1,), torch.nan), t.flatten()])[1:].view(t.shape),
    "misaligned channels_last": lambda t: LAYOUTS["misaligned"](t.movedim(1, -1)).movedim(-1, 1),
    "within NaN": lambda t: F.pad(t.flatten(), (32, 32), value=torch.nan)[32 : 32 + t.numel()].view(t.shape),
    "every other": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


class Case:
    """Inputs of every operation, and their results in float64."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, offset: float = 0.0) -> None:
        self.x, self.grad = random(shape, dtype, 1) + offset, random(shape, dtype, 2)
        self.residual = random(shape, dtype, 3)
        self.scale, self.bias, self.constant, self.slope = torch.randn(
            (4, shape[1]), generator=torch.Generator().manual_seed(4)
        )
        self.axes = [axis for axis in range(len(shape)) if axis != 1]
        self.mean = self.x.double().mean(self.axes).float()
        self.variance = self.x.double().var(self.axes, unbiased=False)

    def wide(self, per_channel: Tensor) -> Tensor:
        return per_channel.double().view(-1, *[1] * (len(self.axes) - 1))

    def reference(self) -> dict[str, Tensor]:
        centred = self.x.double() - self.wide(self.mean)
        z = (self.wide(self.scale) * centred + self.wide(self.bias)).requires_grad_()
        (g,) = torch.autograd.grad(F.mish(z), z, self.grad.double())
        return {
            "forward": F.mish(z).detach(),
            "sum_g": g.sum(self.axes),
            "sum_gx": (g * centred).sum(self.axes),
            "backward": self.wide(self.scale) * (g - self.wide(self.constant) - centred * self.wide(self.slope)),
            "bias": F.mish(self.x.double() + self.wide(self.bias)),
            "size_of_sums": (g * centred).abs().sum(self.axes) + g.abs().sum(self.axes),
        }


def close(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for one rounding to the storage type, and float32 arithmetic in front of it."""
    assert found.shape == wanted.shape
    rounding = torch.finfo(found.dtype).eps / 2 * wanted.abs() + torch.finfo(found.dtype).tiny
    return bool(((found.double() - wanted).abs() <= 1.01 * rounding + 3e-6 * wanted.abs().max()).all())


CASES = [(shape, torch.bfloat16, layout) for shape in SHAPES for layout in LAYOUTS]
CASES += [
    (shape, dtype, layout)
    for shape in SHAPES
    for dtype in (torch.float32, torch.float16)
    for layout in ("contiguous", "channels_last")
]
# More channels than a block has threads for, in cells and one by one: slow here, so once each.
CASES += [((2, 2056, 1), torch.bfloat16, "contiguous"), ((1, 514, 1), torch.bfloat16, "misaligned")]


@pytest.mark.parametrize(("shape", "dtype", "layout"), CASES, ids=str)
def test_every_operation_agrees_with_float64(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, gpu_on_cpu: Any
) -> None:
    case, of = Case(shape, dtype), LAYOUTS[layout]
    wanted, x = case.reference(), of(case.x)
    assert torch.equal(x, case.x)
    # The other tensors have another layout than x.
    grad, residual = LAYOUTS["channels_last"](case.grad), case.residual.contiguous()
    mean, variance = cuda.norm_statistics(x)
    assert torch.allclose(mean.double(), case.mean.double(), rtol=0, atol=1e-6)
    assert torch.allclose(variance.double(), case.variance, rtol=2e-6, atol=1e-6)
    y = cuda.norm_mish_forward(x, case.mean, case.scale, case.bias, None)
    assert close(y, wanted["forward"])
    both = cuda.norm_mish_forward(x, case.mean, case.scale, case.bias, residual)
    assert close(both, wanted["forward"] + case.residual.double())
    for found, name in zip(
        cuda.norm_mish_sums(grad, x, case.mean, case.scale, case.bias), ("sum_g", "sum_gx"), strict=True
    ):
        assert found.dtype == torch.float32
        assert ((found.double() - wanted[name]).abs() <= 1e-6 * wanted["size_of_sums"] + 1e-6).all()
    back = cuda.norm_mish_backward(grad, x, case.mean, case.scale, case.bias, case.constant, case.slope)
    assert close(back, wanted["backward"])
    assert close(cuda.mish_forward(x), F.mish(case.x.double()))
    z = case.x.double().requires_grad_()
    assert close(cuda.mish_backward(grad, x), torch.autograd.grad(F.mish(z), z, case.grad.double())[0])
    for extra in (None, residual):
        changed = of(case.x.clone())
        assert cuda.bias_mish_(changed, case.bias, extra) is changed
        assert close(changed, wanted["bias"] + (0 if extra is None else extra.double()))
    if x.is_contiguous() or (layout == "channels_last" and x.ndim == 4):
        assert y.stride() == both.stride() == back.stride() == x.stride()
    assert torch.equal(x, case.x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_do_not_depend_on_the_order_of_threads_and_are_the_same_in_every_run(
    dtype: torch.dtype, layout: str, gpu_on_cpu: Any
) -> None:
    case = Case((3, 24, 20, 24), dtype)
    x = LAYOUTS[layout](case.x)

    def results() -> list[Tensor]:
        return [
            *cuda.norm_statistics(x),
            *cuda.norm_mish_sums(case.grad, x, case.mean, case.scale, case.bias),
            cuda.norm_mish_forward(x, case.mean, case.scale, case.bias, case.residual),
            cuda.norm_mish_backward(case.grad, x, case.mean, case.scale, case.bias, case.constant, case.slope),
            cuda.mish_forward(x),
        ]

    first, again = results(), results()
    gpu_on_cpu.falling = True
    for one, other, backwards in zip(first, again, results(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, backwards)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 5, 20, 24)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_is_batch_norm_and_mish_in_float64(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str, gpu_on_cpu: Any
) -> None:
    case = Case(shape, dtype)
    weight, epsilon, of = case.scale, 0.03, LAYOUTS[layout]
    x, w, b = (t.double().requires_grad_() for t in (case.x, weight, case.bias))
    wanted = F.mish(F.batch_norm(x, None, None, w, b, True, 0.0, epsilon))
    grad_x, grad_w, grad_b = torch.autograd.grad(wanted, (x, w, b), case.grad.double())
    for residual in (None, case.residual):
        y, mean, variance = cuda.norm_mish_train(of(case.x), residual, weight, case.bias, epsilon)
        assert close(y, wanted.detach() + (0 if residual is None else residual.double()))
        assert torch.allclose(mean.double(), case.mean.double(), rtol=0, atol=1e-6)
        assert torch.allclose(variance.double(), case.variance, rtol=2e-6, atol=0)
    found = cuda.norm_mish_train_backward(case.grad, of(case.x), weight, case.bias, mean, variance, epsilon)
    assert close(found[0], grad_x)
    assert torch.allclose(found[1].double(), grad_w, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found[2].double(), grad_b, rtol=1e-5, atol=1e-5)
    assert len(gpu_on_cpu.launches) == 3 + 3 + 3


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("num_multiprocessors", [1, 3, 132])
def test_every_number_of_parts_gives_the_sums(
    num_multiprocessors: int, layout: str, gpu_on_cpu: Any, device: Any
) -> None:
    object.__setattr__(device, "num_multiprocessors", num_multiprocessors)
    case = Case((5, 16, 24, 40), torch.float32)
    wanted, x = case.reference(), LAYOUTS[layout](case.x)
    mean, variance = cuda.norm_statistics(x)
    assert torch.allclose(mean.double(), case.mean.double(), rtol=0, atol=1e-6)
    assert torch.allclose(variance.double(), case.variance, rtol=2e-6, atol=0)
    sum_g, sum_gx = cuda.norm_mish_sums(case.grad, x, case.mean, case.scale, case.bias)
    assert ((sum_g.double() - wanted["sum_g"]).abs() <= 1e-6 * wanted["size_of_sums"]).all()
    assert ((sum_gx.double() - wanted["sum_gx"]).abs() <= 1e-6 * wanted["size_of_sums"]).all()
    assert close(cuda.norm_mish_forward(x, case.mean, case.scale, case.bias, None), wanted["forward"])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_large_mean_does_not_cancel_the_variance(layout: str, gpu_on_cpu: Any) -> None:
    case = Case((4, 8, 24, 24), torch.float32, offset=3000.0)
    mean, variance = cuda.norm_statistics(LAYOUTS[layout](case.x))
    assert torch.allclose(mean.double(), case.mean.double(), rtol=1e-7, atol=0)
    assert torch.allclose(variance.double(), case.variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_outlier_in_front_does_not_spoil_the_variance(layout: str, gpu_on_cpu: Any) -> None:
    x = Case((4, 8, 24, 24), torch.float32).x
    x[0, :, 0, 0] = 3e3  # a thousand standard deviations, and the value that the first thread takes its differences to
    _, variance = cuda.norm_statistics(LAYOUTS[layout](x))
    assert torch.allclose(variance.double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_values_stay_in_their_channel(bad: float, gpu_on_cpu: Any) -> None:
    for layout in ("contiguous", "channels_last"):
        case = Case((2, 16, 12, 12), torch.bfloat16)
        case.x[1, 5, 7, 7] = bad
        x = LAYOUTS[layout](case.x)
        others = [c for c in range(16) if c != 5]
        sums = cuda.norm_mish_sums(case.grad, x, case.mean.nan_to_num(0, 0, 0), case.scale, case.bias)
        for values in (*cuda.norm_statistics(x)[1:], *(sums if bad != bad else ())):
            assert values[5].isnan()
            assert values[others].isfinite().all()


def test_constant_channels_have_no_variance(gpu_on_cpu: Any) -> None:
    x = torch.full((2, 8, 9, 9), 1e4)
    mean, variance = cuda.norm_statistics(x)
    assert torch.equal(mean, torch.full((8,), 1e4))
    assert torch.equal(variance, torch.zeros(8))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 0, 4, 4)])
def test_empty_tensors_launch_nothing(shape: tuple[int, ...], gpu_on_cpu: Any) -> None:
    x, c = torch.empty(shape), torch.zeros(shape[1])
    assert cuda.mish_forward(x).shape == cuda.mish_backward(x, x).shape == shape
    assert cuda.norm_mish_forward(x, c, c, c, x).shape == cuda.norm_mish_backward(x, x, c, c, c, c, c).shape == shape
    assert cuda.bias_mish_(x, c, None) is x
    assert all(torch.equal(total, c) for total in cuda.norm_mish_sums(x, x, c, c, c))
    assert all(value.isnan().all() for value in cuda.norm_statistics(x))
    assert gpu_on_cpu.launches == []


def test_nothing_is_written_outside_the_result(gpu_on_cpu: Any) -> None:
    for num in (1, 7, 8, 2048, 4099):
        storage = torch.full((num + 64,), 7.0, dtype=torch.bfloat16)
        cuda.bias_mish_(storage[32 : 32 + num].view(1, 1, num), torch.zeros(1), None)
        assert (storage[:32] == 7).all()
        assert (storage[32 + num :] == 7).all()
        assert close(storage[32 : 32 + num], F.mish(torch.full((num,), 7.0, dtype=torch.float64)))


def test_per_channel_values_of_another_type_or_layout_are_taken(gpu_on_cpu: Any) -> None:
    case = Case((2, 16, 4, 4), torch.float32)
    wanted = cuda.norm_mish_forward(case.x, case.mean, case.scale, case.bias, None)
    strided = torch.stack([case.mean, case.mean], dim=1)[:, 0]
    odd = torch.cat([case.scale.new_zeros(1), case.scale])[1:]
    assert torch.equal(cuda.norm_mish_forward(case.x, strided, odd, case.bias.double(), None), wanted)


def test_columns_of_a_block_leave_few_threads_idle() -> None:
    for owners in range(1, 2049):
        columns = cuda._columns(owners)
        assert 1 <= columns <= cuda_driver.THREADS
        used = owners / (-(-owners // columns) * columns) * (cuda_driver.THREADS // columns * columns)
        assert used >= cuda_driver.THREADS / 2 or owners > cuda_driver.THREADS
