import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.ops import native
from detector.ops.norm_mish import bias_mish_, norm_mish

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler: the fused kernels cannot be built")

# Channels below, at and above a vector, odd ones, and numbers of rows that no power of two divides.
SHAPES = [(4, 16, 9, 9), (2, 24, 7, 5), (3, 64, 8, 8), (1, 3, 5, 5), (4, 100, 4, 4), (2, 1, 3, 7), (1, 257, 3, 4)]
# Relative to the largest value of the reference: float32 arithmetic throughout, bfloat16 storage of activations, where
# a gradient is rounded twice (2^-9 each), once before and once after the norm's share is taken off.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def _norm(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def _input(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    offset: float = 0.0,
    layout: torch.memory_format = torch.channels_last,
) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) * 3 + offset
    return x.to(dtype).contiguous(memory_format=layout)


def _is_fused(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_NormMishBackward"


def _error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_equals_batch_norm_and_mish_in_float64(
    shape: tuple[int, ...], with_residual: bool, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    norm = _norm(shape[1])
    reference = copy.deepcopy(norm).double()
    x = _input(shape, dtype, layout=layout).requires_grad_()
    residual = _input(shape, dtype, offset=1.0).requires_grad_() if with_residual else None
    wanted_x = x.detach().double().requires_grad_()
    y = norm_mish(x, norm, residual)
    assert _is_fused(y)
    wanted = F.mish(reference(wanted_x))
    if residual is not None:
        wanted = residual.detach().double() + wanted
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(grad)  # a gradient in another memory format than the input
    wanted.backward(grad.double())
    tolerance = TOLERANCES[dtype]
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    assert _error(y, wanted) <= tolerance
    assert x.grad is not None
    assert wanted_x.grad is not None
    assert _error(x.grad, wanted_x.grad) <= tolerance
    if residual is not None:
        assert residual.grad is not None
        assert torch.equal(residual.grad, grad)
    for name in ("weight", "bias"):
        assert _error(getattr(norm, name).grad, getattr(reference, name).grad) <= 5e-6
    for name in ("running_mean", "running_var"):
        assert _error(getattr(norm, name), getattr(reference, name)) <= 5e-6
    assert norm.num_batches_tracked == 1


def test_mean_far_above_the_deviation_does_not_cancel() -> None:
    norm = _norm(8)
    reference = copy.deepcopy(norm).double()
    x = _input((4, 8, 16, 16), torch.float32, offset=4000.0)
    assert _error(norm_mish(x, norm), F.mish(reference(x.double()))) <= 2e-5


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_evaluation_equals_the_two_operators(dtype: torch.dtype) -> None:
    norm = _norm(24).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = _input((2, 24, 7, 5), dtype)
    with torch.no_grad():
        assert _error(norm_mish(x, norm), F.mish(copy.deepcopy(norm).double()(x.double()))) <= TOLERANCES[dtype]
    assert norm.num_batches_tracked == 0


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    found = []
    for num_threads in (1, 2, 1):
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        try:
            norm = _norm(48)
            x = _input((4, 48, 20, 20), torch.bfloat16).requires_grad_()
            y = norm_mish(x, norm)
            gradients = torch.autograd.grad(y.float().square().sum(), (x, norm.weight, norm.bias))
            found.append((y.detach(), *gradients))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("with_residual", [False, True])
def test_the_second_derivative_is_that_of_float64(with_residual: bool) -> None:
    found = []
    for dtype, function in ((torch.float32, norm_mish), (torch.float64, None)):
        norm = _norm(8).to(dtype)
        x = _input((2, 8, 6, 6), torch.float32).to(dtype).requires_grad_()
        residual = x * 2 if with_residual else None
        if function is not None:
            y = function(x, norm, residual)
            assert _is_fused(y)
        else:
            y = F.mish(norm(x)) + (0 if residual is None else residual)
        (grad,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, norm.weight, norm.bias]))
    for ours, wanted in zip(*found, strict=True):
        assert _error(ours, wanted) <= 1e-5  # the sums of a second derivative cancel: ten times a first one's error


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_passes_torch_s_own_check(
    dtype: torch.dtype, with_residual: bool, layout: torch.memory_format
) -> None:
    norm = _norm(24)
    x = _input((2, 24, 7, 5), dtype, layout=layout).requires_grad_()
    residual = torch.randn_like(x).requires_grad_() if with_residual else None
    torch.library.opcheck(torch.ops.detector.norm_mish.default, (x, residual, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_and_mish_work_in_place(
    shape: tuple[int, ...], dtype: torch.dtype, with_residual: bool, layout: torch.memory_format
) -> None:
    x, bias = _input(shape, dtype, layout=layout), torch.randn(shape[1])
    residual = _input(shape, dtype, offset=1.0) if with_residual else None
    wanted = F.mish(x.double() + bias[:, None, None].double()) + (0 if residual is None else residual.double())
    with torch.no_grad():
        y = bias_mish_(x, bias, residual)
    assert y is x
    assert _error(y, wanted) <= TOLERANCES[dtype]


def test_tensor_of_neither_layout_is_converted() -> None:
    x = _input((2, 8, 6, 6), torch.float32).mT.contiguous().mT
    y = norm_mish(x.requires_grad_(), _norm(8))
    assert _is_fused(y)
    assert torch.allclose(y, F.mish(_norm(8)(x)), atol=2e-6)


def test_one_value_per_channel_is_refused_as_batch_norm_does() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm_mish(torch.zeros(1, 4, 1, 1).contiguous(memory_format=torch.channels_last), _norm(4))


def test_unsupported_tensors_run_the_two_operators() -> None:
    x, norm = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True), _norm(8).double()
    y = norm_mish(x, norm, x)
    assert not _is_fused(y)
    assert torch.allclose(y, x + F.mish(copy.deepcopy(norm)(x)), atol=1e-12)


def test_only_the_input_and_vectors_are_saved_for_backward() -> None:
    x = _input((2, 16, 8, 8), torch.bfloat16).requires_grad_()
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        norm_mish(x, _norm(16))
    assert sorted(sizes) == [16, 16, 16, 16, x.numel()]
