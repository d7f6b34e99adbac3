"""The scalar formulas of `mish_math.h`, as the CPU and as the GPU computes them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops import nvrtc

HOST = """
#include <cstdint>
#include "mish_math.h"
extern "C" void evaluate(const float *x, float *y, int64_t num, int which) {
    for (int64_t i = 0; i < num; ++i)
        y[i] = which == 0 ? mish_forward(x[i]) : which == 1 ? mish_gradient(x[i]) : mish_second(x[i]);
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The results of the formulas in a C++ program."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("mish_math")
    (folder / "host.cpp").write_text(HOST)
    include = f"-I{Path(nvrtc.__file__).parent / 'csrc'}"
    flags = ["-std=c++17", "-O2", "-Wall", "-Werror", "-fPIC", "-shared", include]
    subprocess.run([compiler, *flags, str(folder / "host.cpp"), "-o", str(folder / "host.so")], check=True)
    return ctypes.CDLL(str(folder / "host.so"))


def derivatives(x: Tensor) -> list[Tensor]:
    x = x.double().requires_grad_()
    y = F.mish(x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return [y.detach(), first.detach(), second]


def evaluated(library: ctypes.CDLL, x: Tensor, which: int) -> Tensor:
    y = torch.empty_like(x)
    library.evaluate(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel()), which)
    return y


@pytest.fixture(params=["host", "gpu"])
def formulas(request: pytest.FixtureRequest, host: ctypes.CDLL, emulation: Callable[[str], ctypes.CDLL]) -> ctypes.CDLL:
    return host if request.param == "host" else emulation("float")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_formula_is_within_1e_6_of_float64(which: int, formulas: ctypes.CDLL) -> None:
    x = torch.linspace(-120, 60, 300_001, dtype=torch.float64).float()
    found, wanted = evaluated(formulas, x, which).double(), derivatives(x)[which]
    assert ((found - wanted).abs() <= 1e-6 * wanted.abs().clamp(min=1)).all()
    if which == 0:
        assert ((found - wanted).abs() <= 1e-6 * wanted.abs() + 1e-37).all()


def test_special_values_are_as_the_header_says(formulas: ctypes.CDLL) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, -3.4e38, 0.0, -0.0])
    y, first, second = (evaluated(formulas, x, which) for which in range(3))
    for values in (y, first, second):
        assert values[0].isnan()
        assert values[3:].isfinite().all()
    assert y[1] == torch.inf
    assert y[2].isnan()
    assert y[3:].tolist() == [x[3], 0, 0, 0]
    assert y.signbit()[5:].tolist() == [False, True]
    assert torch.allclose(first[[1, 3, 4, 5, 6]], torch.tensor([1, 1, 0, 0.6, 0.6]), rtol=0, atol=5e-7)
    assert torch.allclose(second[[1, 3, 4, 5, 6]], torch.tensor([0, 0, 0, 0.64, 0.64]), rtol=0, atol=5e-7)


def test_the_extremes_are_where_the_literature_has_them(formulas: ctypes.CDLL) -> None:
    x = torch.linspace(-6, 6, 1_200_001)
    y, first, second = (evaluated(formulas, x, which) for which in range(3))
    assert y.min().item() == pytest.approx(-0.308843413, abs=1e-7)
    assert x[y.argmin()].item() == pytest.approx(-1.192431, abs=2e-3)
    assert first.min().item() == pytest.approx(-0.112526, abs=1e-6)
    assert first.max().item() == pytest.approx(1.088498, abs=1e-6)
    assert second.max().item() == pytest.approx(0.644205, abs=1e-6)
