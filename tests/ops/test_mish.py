from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops import mish as module
from detector.ops import native
from detector.ops.mish import mish

DENSE_NUM = 40_001  # too many for torch's operator, not a whole number of vectors or of slices


@pytest.fixture(params=["compiled", "sliced"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways to compute Mish of a large dense CPU tensor; the test runs on both."""
    if request.param == "sliced":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip("the kernels cannot be compiled here")
    return str(request.param)


both_paths = pytest.mark.usefixtures("path")


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None = None) -> Tensor:
    x = x.detach().requires_grad_()
    y = function(x)
    (grad_x,) = torch.autograd.grad(y, x, torch.ones_like(y) if grad is None else grad)
    return grad_x


def is_native(y: Tensor) -> bool:
    """Return true if torch's own operator made a tensor."""
    return type(y.grad_fn).__name__.startswith("MishBackward")


def every_finite(dtype: torch.dtype) -> Tensor:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[values.isfinite()]


# ---- values


@both_paths
def test_fp32_is_within_1e_6_of_float64() -> None:
    x = torch.linspace(-87, 100, 400_001, dtype=torch.float64).float()
    wanted = F.mish(x.double())
    error = (mish(x).double() - wanted).abs()
    assert (error <= 1e-6 * wanted.abs()).all()


@both_paths
def test_the_fp32_gradient_is_within_2e_6_of_float64() -> None:
    x = torch.linspace(-87, 100, 400_001, dtype=torch.float64).float()
    error = (gradient(mish, x).double() - gradient(F.mish, x.double())).abs()
    assert error.max() <= 2e-6


@both_paths
def test_fp32_below_the_range_of_its_exponential_is_zero_to_1e_36() -> None:
    x = -torch.logspace(1.9, 38.5, DENSE_NUM, dtype=torch.float64).float()
    assert mish(x).abs().max() <= 1e-32
    assert mish(x[x < -87]).abs().max() <= 1e-35
    assert gradient(mish, x).abs().max() <= 1e-32


@both_paths
def test_the_minimum_is_where_the_docstring_says() -> None:
    x = torch.linspace(-1.3, -1.1, DENSE_NUM)
    assert mish(x).min().item() == pytest.approx(-0.30884, abs=5e-6)
    assert gradient(mish, torch.full((DENSE_NUM,), -1.19243)).abs().max() <= 2e-6


# Measured on x86: bfloat16 is rounded correctly for every value, float16 but for 6 (the native operator: but for 2),
# which lie within 0.0002 of the middle between two numbers. Another vector library may move a few such ties.
@both_paths
@pytest.mark.parametrize(("dtype", "num_misrounded"), [(torch.bfloat16, 4), (torch.float16, 16)])
def test_almost_every_16_bit_value_is_rounded_correctly(dtype: torch.dtype, num_misrounded: int) -> None:
    x = every_finite(dtype)
    result, wanted = mish(x), F.mish(x.double())
    assert result.dtype == dtype
    # Below -88.7 float32's exponential overflows and zero may be given for less than 3e-37; a processor that converts
    # to bfloat16 itself gives zero for results below float32's normal range.
    usual = (x > -88.7) & (wanted.abs() >= torch.finfo(torch.float32).tiny)
    assert (result[~usual] - wanted[~usual]).abs().max() <= 3e-37
    result, wanted = result[usual], wanted[usual]
    off = result != wanted.to(dtype)
    assert off.sum() <= num_misrounded
    away = result.double() - wanted
    neighbour = torch.nextafter(result, torch.where(away > 0, -torch.inf, torch.inf).to(dtype)).double()
    assert (away.abs() <= 0.505 * (neighbour - result.double()).abs()).all()


@both_paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_of_every_16_bit_value_is_within_one_rounding(dtype: torch.dtype) -> None:
    x = every_finite(dtype)
    found, wanted = gradient(mish, x).double(), gradient(F.mish, x.double())
    assert ((found - wanted).abs() <= torch.finfo(dtype).eps * 0.51 * wanted.abs().clamp(min=1e-4)).all()


@both_paths
def test_special_values_are_no_less_defined_than_the_native_ones() -> None:
    special = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e30, -1e30, 17.0, 89.0]
    x = torch.tensor(special).repeat(DENSE_NUM // len(special) + 1)
    native = F.mish(x)
    y = mish(x)
    assert torch.equal(y.isnan(), native.isnan())
    assert torch.allclose(y, native, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(y.signbit()[x == 0], native.signbit()[x == 0])
    grad, native_grad = gradient(mish, x), gradient(F.mish, x)
    assert not (grad.isnan() & ~native_grad.isnan()).any()
    defined = ~native_grad.isnan()
    assert torch.allclose(grad[defined], native_grad[defined], rtol=1e-6, atol=1e-37)


# ---- memory


def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to hold a (4, 8, 40, 40) tensor."""
    return {
        "contiguous": lambda t: t.contiguous(),
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "transposed": lambda t: t.mT.contiguous().mT,
        "dense within a larger storage": lambda t: torch.cat([t, t])[4:],
        "every other column": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
        "some of the channels": lambda t: torch.cat([t, t], dim=1)[:, 8:],
    }


@both_paths
@pytest.mark.parametrize("name", layouts())
def test_every_memory_layout_gives_the_same_values_and_keeps_its_strides(name: str) -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 8, 40, 40) * 4
    x = layouts()[name](base).requires_grad_()
    assert torch.equal(x, base)
    y = mish(x)
    assert not is_native(y)
    assert y.stride() == F.mish(x).stride()
    assert torch.allclose(y.double(), F.mish(base.double()), rtol=1e-6, atol=1e-7)


@both_paths
@pytest.mark.parametrize("of_gradient", layouts())
@pytest.mark.parametrize("of_input", ["contiguous", "channels_last"])
def test_gradient_of_any_layout_is_applied_to_its_own_element(of_input: str, of_gradient: str) -> None:
    torch.manual_seed(0)
    base, grad = torch.randn(4, 8, 40, 40) * 4, torch.randn(4, 8, 40, 40)
    x = layouts()[of_input](base)
    found = gradient(mish, x, layouts()[of_gradient](grad))
    wanted = gradient(F.mish, base.double(), grad.double())
    assert found.stride() == x.stride()
    assert (found.double() - wanted).abs().max() <= 1e-5


@both_paths
def test_expanded_gradient_is_read_correctly() -> None:
    x = torch.linspace(-5, 5, DENSE_NUM)
    found = gradient(mish, x, torch.tensor(2.0).expand(DENSE_NUM))
    assert torch.equal(found, 2 * gradient(mish, x))


@both_paths
@pytest.mark.parametrize("num", [module._SLICE - 1, module._SLICE, module._SLICE + 1, 2 * module._SLICE + 5])
def test_slices_join_without_a_visible_border(num: int) -> None:
    x = torch.linspace(-20, 20, num)
    assert torch.allclose(mish(x).double(), F.mish(x.double()), rtol=1e-6, atol=0)
    assert torch.allclose(gradient(mish, x).double(), gradient(F.mish, x.double()), rtol=0, atol=1e-6)


@both_paths
def test_the_input_and_the_incoming_gradient_are_not_modified() -> None:
    x, grad = torch.linspace(-5, 5, DENSE_NUM), torch.linspace(1, 2, DENSE_NUM)
    kept = x.clone(), grad.clone()
    gradient(mish, x, grad)
    assert torch.equal(x, kept[0])
    assert torch.equal(grad, kept[1])


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (), (1,), (module._SMALL - 1,)])
def test_small_and_empty_tensors_take_the_native_path(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 0.5, requires_grad=True)
    y = mish(x)
    assert is_native(y)
    assert torch.equal(y, F.mish(x))
    assert y.shape == shape


def test_float64_takes_the_native_path() -> None:
    x = torch.linspace(-5, 5, DENSE_NUM, dtype=torch.float64, requires_grad=True)
    assert is_native(mish(x))
    assert torch.equal(mish(x), F.mish(x))


@both_paths
def test_without_gradients_the_values_are_the_same() -> None:
    x = torch.linspace(-5, 5, DENSE_NUM, requires_grad=True)
    with torch.no_grad():
        without = mish(x)
    with torch.inference_mode():
        inferred = mish(x.detach())
    assert torch.equal(without, mish(x))
    assert torch.equal(inferred, mish(x))


# ---- derivatives


def test_both_derivatives_pass_gradcheck_in_float64() -> None:
    x = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, x)
    assert torch.autograd.gradgradcheck(mish, x)


def second_derivatives(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, grad = x.detach().requires_grad_(), grad.detach().requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, grad, create_graph=True)
    by_x, by_grad = torch.autograd.grad(first.square().sum(), (x, grad))
    return by_x, by_grad


@both_paths
def test_the_second_derivative_of_large_tensors_is_that_of_float64() -> None:
    x, grad = torch.linspace(-8, 8, DENSE_NUM), torch.linspace(-1, 1, DENSE_NUM)
    assert not is_native(mish(x.clone().requires_grad_()))
    for found, wanted in zip(
        second_derivatives(mish, x, grad), second_derivatives(F.mish, x.double(), grad.double()), strict=True
    ):
        assert (found.double() - wanted).abs().max() <= 2e-6


# ---- who calls it


def test_autocast_keeps_the_format_of_the_convolution_before_it() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    images = torch.randn(1, 3, 80, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = conv(images)
        y = mish(features)
    assert features.dtype == y.dtype == torch.bfloat16
    assert torch.equal(y, mish(features))
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


class Tiny(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mish(x)


def test_export_records_the_native_operator() -> None:
    x = torch.randn(1, 8, 80, 80)
    exported = torch.export.export(Tiny(), (x,))
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.mish.default]
    assert torch.equal(exported.module()(x), F.mish(x))


def test_compile_sees_one_graph_of_operators_that_it_can_fuse() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    x = torch.randn(1, 8, 80, 80) * 8
    compiled = torch.compile(Tiny(), backend=backend, fullgraph=True)
    wanted = F.mish(x.double())
    assert ((compiled(x) - wanted).abs() <= 1e-6 * wanted.abs()).all()
    assert len(graphs) == 1
    assert torch.sigmoid in [node.target for node in graphs[0].graph.nodes]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_records_the_native_operator() -> None:
    traced = torch.jit.trace(Tiny(), torch.randn(1, 8, 80, 80))
    assert [node.kind() for node in traced.graph.nodes()] == ["aten::mish"]


# ---- the operator itself


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["contiguous", "channels_last", "transposed", "every other column"])
def test_the_operators_pass_torch_s_own_check(name: str, dtype: torch.dtype) -> None:
    x = layouts()[name](torch.randn(4, 8, 40, 40).to(dtype)).requires_grad_()
    torch.library.opcheck(torch.ops.detector.mish.default, (x,))
    torch.library.opcheck(torch.ops.detector.mish_backward.default, (torch.randn_like(x), x.detach()))


def test_the_operator_passes_gradcheck_and_gradgradcheck_in_float64() -> None:
    x = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(torch.ops.detector.mish, x)
    assert torch.autograd.gradgradcheck(torch.ops.detector.mish, x)


@both_paths
def test_unaligned_tensor_gives_the_same_values() -> None:
    base = torch.linspace(-6, 6, DENSE_NUM + 1).to(torch.bfloat16)
    x = base[1:]
    assert x.data_ptr() % 4
    assert torch.equal(mish(x), mish(x.clone()))
