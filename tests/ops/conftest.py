"""The functions of `detector.ops.cuda` on CPU tensors: the real kernels and arguments on an emulated GPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.ops import cuda_driver, nvrtc
from detector.ops.native import KernelsUnavailableError

TESTS = Path(__file__).parent
SOURCES = Path(nvrtc.__file__).parent / "csrc"


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The kernels of a storage type as a library for this processor."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the kernels for the CPU")
    folder = tmp_path_factory.mktemp("gpu_on_cpu")
    built: dict[str, ctypes.CDLL] = {}

    def of(storage: str) -> ctypes.CDLL:
        if storage not in built:
            library = folder / f"{storage}.so"
            flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
            command = [compiler, *flags, f"-DSTORAGE={storage}", f"-I{SOURCES}", str(TESTS / "gpu_on_cpu.cpp")]
            subprocess.run([*command, "-o", str(library)], check=True, timeout=300)
            built[storage] = ctypes.CDLL(str(library))
            built[storage].find_kernel.restype = ctypes.c_void_p
            built[storage].find_kernel.argtypes = [ctypes.c_char_p]
            built[storage].launch_kernel.argtypes = [
                *[ctypes.c_void_p] * 1,
                *[ctypes.c_uint] * 2,
                ctypes.c_void_p,
                ctypes.c_int,
            ]
        return built[storage]

    return of


@pytest.fixture(scope="session")
def machine_code() -> Callable[[str, str], bytes]:
    """The kernels of a storage type as NVRTC compiles them for an architecture; skips the test without NVRTC."""
    try:
        nvrtc.version()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))
    return functools.cache(nvrtc.compiled)


class Driver:
    """The functions of NVIDIA's driver that the package calls, all of which succeed."""

    def __init__(self, emulation: Callable[[str], ctypes.CDLL]) -> None:
        self.emulation = emulation
        self.falling = False  # the order of threads and blocks
        self.libraries: list[ctypes.CDLL] = []
        self.owners: dict[int, ctypes.CDLL] = {}
        self.launches: list[tuple[int, int, int]] = []  # kernel, blocks, threads

    def cuLibraryLoadData(self, library: Any, code: bytes, *options: object) -> int:  # noqa: N802 - the driver's name
        self.libraries.append(self.emulation(code.decode()))
        library._obj.value = len(self.libraries)
        return 0

    def cuLibraryGetKernel(self, kernel: Any, library: ctypes.c_void_p, name: bytes) -> int:  # noqa: N802
        assert library.value is not None
        owner = self.libraries[library.value - 1]
        kernel._obj.value = owner.find_kernel(name)
        assert kernel._obj.value, f"no kernel {name!r}"
        self.owners[kernel._obj.value] = owner
        return 0

    def cuKernelGetFunction(self, function: Any, kernel: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, index: int) -> int:  # noqa: N802
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuLaunchKernel(  # noqa: N802
        self, kernel: int, x: int, y: int, z: int, threads: int, *rest: int | None
    ) -> int:
        assert (y, z, *rest[:3]) == (1, 1, 1, 1, 0)
        self.launches.append((kernel, x, threads))
        status: int = self.owners[kernel].launch_kernel(kernel, x, threads, rest[4], self.falling)
        return status


@pytest.fixture
def device() -> cuda_driver.Device:
    """A small GPU: few blocks at a time, so that even small tensors take several tiles."""
    return cuda_driver.Device((9, 0), 2)


@pytest.fixture
def gpu_on_cpu(
    emulation: Callable[[str], ctypes.CDLL], device: cuda_driver.Device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Driver]:
    """Makes `detector.ops.cuda` take CPU tensors; fresh memory is full of NaN."""
    driver = Driver(emulation)
    monkeypatch.setattr(cuda_driver, "_driver", lambda: driver)
    monkeypatch.setattr(cuda_driver, "device_of", lambda index: device)
    monkeypatch.setattr(cuda_driver, "current_device", lambda: -1)
    monkeypatch.setattr(cuda_driver, "capturing", lambda: False)
    monkeypatch.setattr(cuda_driver, "_stream", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(nvrtc, "code", lambda storage, capability: storage.encode())
    cuda_driver._library.cache_clear()
    kept = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # stub gap
    yield driver
    torch.use_deterministic_algorithms(kept)
    cuda_driver._library.cache_clear()
