"""Loading and launching of kernels through the CUDA driver: loaded once per device, launched on torch's stream.

A launch is one call of the driver through ctypes, with one structure of arguments that stays in place; it takes about
two microseconds. Nothing here runs before there is a CUDA tensor, and importing the module needs no driver.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detector.ops import nvrtc
from detector.ops.native import KernelsUnavailableError

THREADS = 256  # in a block, as in the kernels
FLAT_KERNELS = {"mish_forward": 4, "mish_backward": 2}  # cells of each input that a thread holds at once
# The same, and the blocks of 256 threads that their registers allow on a multiprocessor.
CHANNEL_KERNELS = {
    "norm_statistics": (4, 4),
    "norm_mish_sums": (2, 3),
    "norm_mish_forward": (4, 4),
    "norm_mish_residual": (2, 4),
    "norm_mish_backward": (2, 3),
    "bias_mish": (4, 4),
    "bias_mish_residual": (2, 4),
}
PART_KERNELS = ("add_parts", "join_statistics")
KERNELS = (
    *(f"{name}_{kind}" for name in FLAT_KERNELS for kind in ("cells", "odd")),
    *(f"{name}_{layout}" for name in CHANNEL_KERNELS for layout in ("last", "planes", "odd")),
    *PART_KERNELS,
)
_INVALID_CONTEXT = 201


@functools.cache
def _driver() -> ctypes.CDLL:
    """Return the library of the driver, which torch has loaded already."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        launching, loading = library.cuLaunchKernel, library.cuLibraryLoadData
    except (OSError, AttributeError) as error:
        raise KernelsUnavailableError(f"there is no NVIDIA driver for CUDA 12 or later: {error}") from error
    address, number = ctypes.c_void_p, ctypes.c_uint
    launching.argtypes = [address, *[number] * 7, address, address, address]
    loading.argtypes = [address, ctypes.c_char_p, address, address, number, address, address, number]
    return library


def _check(status: int, what: str, error: type[RuntimeError] = RuntimeError) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise error(f"{what} failed: CUDA error {status} ({(name.value or b'unknown').decode()})")


def _bind(index: int) -> None:
    """Set the context that torch uses on a device in this thread; threads of the autograd engine may have none."""
    context = ctypes.c_void_p()
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), index), "retaining the CUDA context")
    _check(_driver().cuCtxSetCurrent(context), "setting the CUDA context")


@dataclass(frozen=True)
class Device:
    """A GPU of this machine with the handles of the kernels that are loaded on it."""

    capability: tuple[int, int]
    num_multiprocessors: int
    kernels: dict[tuple[str, torch.dtype], int] = field(default_factory=dict)


@functools.cache
def device_of(index: int) -> Device:
    """Return the GPU with torch's index."""
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


def _stream(index: int) -> int:
    return torch._C._cuda_getCurrentRawStream(index)


def current_device() -> int:
    """Return the index of this thread's current device."""
    return torch._C._cuda_getDevice()


def capturing() -> bool:
    """Return true while a CUDA graph is being recorded on this thread's stream."""
    return torch.cuda.is_current_stream_capturing()


_loading = threading.Lock()


@functools.cache
def _library(code: bytes) -> int:
    """Load machine code as a library, which belongs to no context and serves every device of its architecture."""
    library = ctypes.c_void_p()
    status = _driver().cuLibraryLoadData(ctypes.byref(library), code, None, None, 0, None, None, 0)
    _check(status, "loading the compiled kernels", KernelsUnavailableError)
    assert library.value is not None  # for the type checker: a handle that was just written
    return library.value


def load(index: int, dtype: torch.dtype) -> None:
    """Load every kernel of a storage type on a device.

    Raises:
        KernelsUnavailableError: they are not available, or a graph is being recorded.
    """
    device = device_of(index)
    with _loading:
        if (PART_KERNELS[-1], dtype) in device.kernels:  # another thread was first
            return
        if capturing():
            raise KernelsUnavailableError(
                "a CUDA graph is being recorded and the Mish kernels are not loaded yet; "
                "call detector.ops.cuda.warmup() before"
            )
        library = ctypes.c_void_p(_library(nvrtc.code(nvrtc.STORAGE[dtype], device.capability)))
        driver = _driver()
        with torch.cuda.device(index):
            _bind(index)
            for name in KERNELS:
                kernel, function = ctypes.c_void_p(), ctypes.c_void_p()
                status = driver.cuLibraryGetKernel(ctypes.byref(kernel), library, name.encode())
                _check(status, f"finding {name}", KernelsUnavailableError)
                # Loads the kernel now: with lazy loading, its first launch would, possibly while a graph is recorded.
                status = driver.cuKernelGetFunction(ctypes.byref(function), kernel)
                _check(status, f"loading {name}", KernelsUnavailableError)
                assert kernel.value is not None  # for the type checker: a handle that was just written
                device.kernels[name, dtype] = kernel.value


class Frame(threading.local):
    """Arguments of the current launch of a thread: one structure, which the driver copies."""

    def __init__(self) -> None:
        self.content = bytearray(256)
        self._view = (ctypes.c_char * len(self.content)).from_buffer(self.content)
        self._parameters = (ctypes.c_void_p * 1)(ctypes.addressof(self._view))
        self.address = ctypes.addressof(self._parameters)


frame = Frame()


def launch(x: Tensor, name: str, num_blocks: int, num_threads: int = THREADS) -> None:
    """Launch a kernel with the arguments in `frame`."""
    index = x.get_device()
    device = device_of(index)
    kernel = device.kernels.get((name, x.dtype))
    if kernel is None:
        load(index, x.dtype)
        kernel = device.kernels[name, x.dtype]
    if index != current_device():
        with torch.cuda.device(index):
            return launch(x, name, num_blocks, num_threads)
    call = _driver().cuLaunchKernel
    stream = _stream(index)
    status = call(kernel, num_blocks, 1, 1, num_threads, 1, 1, 0, stream, frame.address, None)
    if status == _INVALID_CONTEXT:
        _bind(index)
        status = call(kernel, num_blocks, 1, 1, num_threads, 1, 1, 0, stream, frame.address, None)
    if status:
        _check(status, f"launching {name}")
