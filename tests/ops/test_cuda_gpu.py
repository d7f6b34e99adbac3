"""Tests on a real GPU, which `make gpu` runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops import cuda, nvrtc
from detector.ops.mish import mish
from detector.ops.norm_mish import bias_mish_, norm_mish

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.version.cuda is None, reason="no CUDA device"),
]
DTYPES = list(nvrtc.STORAGE)
GPU = torch.device("cuda", 0)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "misaligned": lambda t: torch.cat([t.new_full((1,), torch.nan), t.flatten()])[1:].view(t.shape),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
}
SHAPES = [
    (2, 16, 8, 8),
    (16, 32, 152, 152),
    (4, 512, 19, 19),
    (3, 257, 7, 9),
    (2, 3, 61, 67),
    (1, 1, 5, 5),
    (9, 40, 1, 1),
]


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    cuda.warmup(GPU)


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(GPU).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=GPU) * 3).to(dtype)


def close(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for one rounding to the storage type, and float32 arithmetic in front of it."""
    rounding = torch.finfo(found.dtype).eps / 2 * wanted.abs() + torch.finfo(found.dtype).tiny
    return bool(((found.double() - wanted).abs() <= 1.01 * rounding + 3e-6 * wanted.abs().max()).all())


def gradient(x: Tensor, grad: Tensor) -> Tensor:
    x = x.double().requires_grad_()
    (found,) = torch.autograd.grad(F.mish(x), x, grad.double())
    return found


def ulps(found: Tensor, wanted: Tensor) -> Tensor:
    info = torch.finfo(found.dtype)
    normal = wanted.abs() >= info.smallest_normal
    _, exponent = torch.frexp(wanted[normal])
    return (found.double() - wanted)[normal].abs() / torch.ldexp(
        torch.full_like(wanted[normal], info.eps), exponent - 1
    )


# ---- values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_within_half_a_unit_of_the_last_place(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=GPU).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    ones = torch.ones_like(x)
    assert ulps(cuda.mish_forward(x), F.mish(x.double())).max() <= 0.51
    assert ulps(cuda.mish_backward(ones, x), gradient(x, ones)).max() <= 0.51


def test_float32_is_within_8_units_and_1e_6_of_float64() -> None:
    x = torch.linspace(-87, 100, 4_000_001, dtype=torch.float64, device=GPU).float()
    y, wanted = cuda.mish_forward(x), F.mish(x.double())
    assert ((y.double() - wanted).abs() <= 1e-6 * wanted.abs()).all()
    assert ulps(y, wanted).max() <= 8
    ones = torch.ones_like(x)
    assert (cuda.mish_backward(ones, x).double() - gradient(x, ones)).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_are_no_less_defined_than_torch_has_them(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0, torch.finfo(dtype).max, torch.finfo(dtype).min], device=GPU)
    y = cuda.mish_forward(x.to(dtype))
    assert torch.equal(y.isnan(), F.mish(x.to(dtype)).isnan())
    assert torch.allclose(y[[1, 3, 4, 5]], F.mish(x.to(dtype))[[1, 3, 4, 5]], rtol=1e-6)
    grad = cuda.mish_backward(torch.ones_like(y), x.to(dtype))
    assert grad[0].isnan()
    assert grad[3:].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operation_agrees_with_float64(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x, grad, residual = (random(shape, dtype, seed) for seed in range(3))
    weight, bias = torch.randn((2, shape[1]), generator=torch.Generator().manual_seed(3)).to(GPU).unbind()
    laid, axes, epsilon = LAYOUTS[layout](x), (0, 2, 3), 1e-3
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.mish(F.batch_norm(wide[0], None, None, wide[1], wide[2], True, 0.0, epsilon))
    grads = torch.autograd.grad(wanted, wide, grad.double())
    y, mean, variance = cuda.norm_mish_train(laid, residual, weight, bias, epsilon)
    assert close(y, wanted.detach() + residual.double())
    assert torch.allclose(mean.double(), x.double().mean(axes), rtol=0, atol=2e-6)
    assert torch.allclose(variance.double(), x.double().var(axes, unbiased=False), rtol=1e-5, atol=1e-6)
    found = cuda.norm_mish_train_backward(grad, laid, weight, bias, mean, variance, epsilon)
    assert close(found[0], grads[0])
    for one, other in zip(found[1:], grads[1:], strict=True):
        assert ((one.double() - other).abs() <= 1e-5 * other.abs().max()).all()
    scale = weight * torch.rsqrt(variance + epsilon)
    assert close(cuda.norm_mish_forward(laid, mean, scale, bias, None), wanted.detach())
    sums = cuda.norm_mish_sums(grad, laid, mean, scale, bias)
    assert torch.allclose(sums[0], found[2], rtol=1e-4, atol=1e-3)
    assert close(cuda.mish_forward(laid), F.mish(x.double()))
    assert close(cuda.mish_backward(grad, laid), gradient(x, grad))
    changed = LAYOUTS[layout](x.clone())
    assert cuda.bias_mish_(changed, bias, residual) is changed
    assert close(changed, F.mish(x.double() + bias.double()[:, None, None]) + residual.double())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_run_gives_the_same_bits(dtype: torch.dtype, layout: str) -> None:
    x, grad = (LAYOUTS[layout](random((8, 64, 76, 76), dtype, seed)) for seed in range(2))
    weight, bias = torch.ones(64, device=GPU), torch.zeros(64, device=GPU)

    def results() -> list[Tensor]:
        y, mean, variance = cuda.norm_mish_train(x, None, weight, bias, 1e-3)
        return [y, mean, variance, *cuda.norm_mish_train_backward(grad, x, weight, bias, mean, variance, 1e-3)]

    first = results()
    for _ in range(10):
        assert all(torch.equal(one, other) for one, other in zip(first, results(), strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_elements_than_a_32_bit_number_are_computed(layout: str) -> None:
    needed = 5 * 2**32
    if torch.cuda.mem_get_info(GPU)[0] < needed:
        pytest.skip(f"{needed / 2**30:.0f} GiB of free memory are needed")
    num = 64 * 32 * 1088 * 1088  # 2.42e9 elements
    image = random((1, 32, 1088, 1088), torch.bfloat16, 0)
    x = image.expand(64, -1, -1, -1).contiguous(memory_format=torch.contiguous_format)
    x = x if layout == "contiguous" else x.to(memory_format=torch.channels_last)
    assert x.numel() == num > 2**31
    mean, variance = cuda.norm_statistics(x)
    assert torch.allclose(mean.double(), image.double().mean((0, 2, 3)), rtol=0, atol=1e-5)
    assert torch.allclose(variance.double(), image.double().var((0, 2, 3), unbiased=False), rtol=1e-4, atol=0)
    ones, zeros = torch.ones(32, device=GPU), torch.zeros(32, device=GPU)
    wanted = cuda.mish_forward(image)
    y = cuda.norm_mish_forward(x, zeros, ones, zeros, None)
    assert torch.equal(y[-1:], wanted)
    assert torch.equal(y[31:33], wanted.expand(2, -1, -1, -1))
    del y
    assert torch.equal(cuda.mish_forward(x)[-1:], wanted)


# ---- streams, threads, graphs, devices


def test_the_current_stream_is_used() -> None:
    x = random((64, 64, 128, 128), torch.float32, 0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        x.add_(1)
        y = cuda.mish_forward(x)
        done = torch.cuda.Event()
        done.record()
    assert not done.query()
    torch.cuda.default_stream().synchronize()  # work there does not wait
    stream.synchronize()
    assert torch.equal(y, cuda.mish_forward(x))


def test_threads_without_a_context_of_their_own_launch() -> None:
    x = random((1000,), torch.float32, 0)
    wanted, found = cuda.mish_forward(x), list[Tensor]()
    running = [threading.Thread(target=lambda: found.append(cuda.mish_forward(x))) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(y, wanted) for y in found)


def test_a_graph_replays_what_it_recorded() -> None:
    norm = nn.BatchNorm2d(32, device=GPU)
    x, grad = (LAYOUTS["channels_last"](random((4, 32, 19, 19), torch.bfloat16, seed)) for seed in range(2))
    x.requires_grad_()

    def step() -> Tensor:
        (grad_x,) = torch.autograd.grad(norm_mish(x, norm), x, grad)
        return grad_x

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        x.copy_(random((4, 32, 19, 19), torch.bfloat16, 7))
    graph.replay()
    assert torch.equal(recorded, step())


_COLD = """
import torch
from detector.ops import cuda
from detector.ops.native import KernelsUnavailableError
x = torch.ones(8, device="cuda")
graph = torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(graph):
        cuda.mish_forward(x)
except KernelsUnavailableError as error:
    print(error)
cuda.warmup()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = cuda.mish_forward(x)
x.fill_(3)
graph.replay()
print(y[0].item())
"""


def test_graph_recorded_before_loading_is_refused_and_works_after_warmup() -> None:
    done = subprocess.run([sys.executable, "-c", _COLD], capture_output=True, text=True, check=True)
    refused, value = done.stdout.strip().splitlines()
    assert "call detector.ops.cuda.warmup() before" in refused
    assert float(value) == pytest.approx(2.98653500)


_BARE = """
import time, torch
from detector.ops import cuda
x = torch.ones(8, device="cuda")
start = time.perf_counter()
cuda.mish_forward(x)
print(time.perf_counter() - start)
"""


def test_a_cold_start_takes_2_seconds_and_a_cached_one_50_milliseconds(tmp_path: Path) -> None:
    bare = {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path), "HOME": str(tmp_path)}
    root = Path(nvrtc.__file__).parents[2]

    def seconds() -> float:
        command = [sys.executable, "-c", _BARE]
        return float(subprocess.run(command, env=bare, cwd=root, capture_output=True, text=True, check=True).stdout)

    assert seconds() <= 2.0
    assert min(seconds() for _ in range(3)) <= 0.05


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device only")
def test_second_device_works_with_either_device_current() -> None:
    x = random((2, 16, 8, 8), torch.bfloat16, 0)
    weight, bias = torch.ones(16, device=GPU), torch.zeros(16, device=GPU)
    wanted = cuda.norm_mish_train(x, None, weight, bias, 1e-3)
    for current in (0, 1):
        with torch.cuda.device(current):
            found = cuda.norm_mish_train(x.to("cuda:1"), None, weight.to("cuda:1"), bias.to("cuda:1"), 1e-3)
            assert torch.cuda.current_device() == current
        assert all(one.device.index == 1 and torch.equal(one.to(GPU), w) for one, w in zip(found, wanted, strict=True))


# ---- through the operators


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_operators_use_the_kernels_and_agree_with_float64(layout: str) -> None:
    x = LAYOUTS[layout](random((4, 32, 38, 38), torch.bfloat16, 0)).requires_grad_()
    norm, wide = nn.BatchNorm2d(32, device=GPU), nn.BatchNorm2d(32, device=GPU, dtype=torch.float64)
    assert cuda.supports(x)
    assert cuda.available(x.device)
    y, wanted = norm_mish(x, norm, x.detach()), F.mish(wide(x.detach().double())) + x.detach().double()
    assert close(y.detach(), wanted.detach())
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert wide.running_mean is not None
    assert wide.running_var is not None
    assert torch.allclose(norm.running_mean.double(), wide.running_mean, atol=1e-6)
    assert torch.allclose(norm.running_var.double(), wide.running_var, rtol=1e-5)
    assert close(mish(x).detach(), F.mish(x.detach().double()))
    with torch.no_grad():
        biased = bias_mish_(x.detach().clone(memory_format=torch.preserve_format), norm.bias)
        assert close(biased, F.mish(x.double() + norm.bias.double()[:, None, None]))


def test_only_the_input_is_saved_for_backward() -> None:
    x = LAYOUTS["channels_last"](random((16, 64, 152, 152), torch.bfloat16, 0)).requires_grad_()
    norm = nn.BatchNorm2d(64, device=GPU)
    norm_mish(x, norm)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = norm_mish(x, norm)
    torch.cuda.synchronize()
    own = y.numel() * y.element_size()
    assert torch.cuda.memory_allocated() - before <= own + 2**16
