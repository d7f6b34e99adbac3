"""The GPU's formulas for every 16-bit value, with the largest errors of the hardware's approximate instructions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops import cuda, nvrtc

# PTX ISA 9.0: ex2.approx.ftz.f32 has a maximal relative error of 2^-22, rcp.approx.ftz.f32 of 1 ulp, at most 2^-23.
EXP2_ERRORS = (-(2.0**-22), 0.0, 2.0**-22)
RECIPROCAL_ERRORS = (-(2.0**-23), 0.0, 2.0**-23)


def every_finite(dtype: torch.dtype) -> Tensor:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[values.isfinite()]


def gradient(x: Tensor) -> Tensor:
    x = x.double().requires_grad_()
    (result,) = torch.autograd.grad(F.mish(x).sum(), x)
    return result


def ulps(found: Tensor, wanted: Tensor) -> Tensor:
    """The error of each normal result in units of the last place of the reference."""
    info = torch.finfo(found.dtype)
    normal = wanted.abs() >= info.smallest_normal
    _, exponent = torch.frexp(wanted[normal])
    unit = torch.ldexp(torch.full_like(wanted[normal], info.eps), exponent - 1)
    return (found.double() - wanted)[normal].abs() / unit


@pytest.mark.parametrize("reciprocal_error", RECIPROCAL_ERRORS)
@pytest.mark.parametrize("exp2_error", EXP2_ERRORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_result_is_within_half_a_unit_of_the_last_place(
    dtype: torch.dtype,
    exp2_error: float,
    reciprocal_error: float,
    gpu_on_cpu: Any,
    emulation: Callable[[str], ctypes.CDLL],
) -> None:
    library = emulation(nvrtc.STORAGE[dtype])
    x = every_finite(dtype)
    errors = [ctypes.c_double.in_dll(library, name) for name in ("exp2_error", "reciprocal_error")]
    errors[0].value, errors[1].value = exp2_error, reciprocal_error
    try:
        forward, backward = cuda.mish_forward(x), cuda.mish_backward(torch.ones_like(x), x)
    finally:
        errors[0].value = errors[1].value = 0.0
    # At its worst 2^x moves float16's gradient at one value next to its zero, -1.19243, where it is 6e-5 in all.
    worst = 0.501 if exp2_error == 0.0 else 0.51 if dtype == torch.bfloat16 else 0.52
    assert ulps(forward, F.mish(x.double())).max() <= 0.501
    assert ulps(backward, gradient(x)).max() <= worst


@pytest.mark.parametrize("dtype", list(nvrtc.STORAGE))
def test_special_values_are_no_less_defined_than_torch_has_them(dtype: torch.dtype, gpu_on_cpu: Any) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, largest, -largest, 20.5, -87.0, -100.0], dtype=dtype)
    y, wanted = cuda.mish_forward(x), F.mish(x.double()).to(dtype)
    assert torch.equal(y.isnan(), F.mish(x).isnan())
    known = [1, 3, 4, 5, 6, 7]
    assert torch.allclose(y[known], wanted[known], rtol=2e-7, atol=0)
    assert torch.equal(y.signbit()[3:5], x.signbit()[3:5])
    grad = cuda.mish_backward(torch.ones_like(x), x)
    assert grad[0].isnan()
    assert grad[3:].isfinite().all()
    assert torch.allclose(
        grad[known].double(),
        torch.tensor([1, 0.6, 0.6, 1, 0, 1.0]).double(),
        rtol=0,
        atol=torch.finfo(dtype).eps / 2 + 5e-7,
    )


def test_float32_is_within_8_units_and_1e_6_of_float64(gpu_on_cpu: Any) -> None:
    x = torch.linspace(-87, 100, 200_001, dtype=torch.float64).float()
    y, wanted = cuda.mish_forward(x), F.mish(x.double())
    assert ((y.double() - wanted).abs() <= 1e-6 * wanted.abs()).all()
    assert ulps(y, wanted).max() <= 8
    assert (cuda.mish_backward(torch.ones_like(x), x).double() - gradient(x)).abs().max() <= 1e-6
