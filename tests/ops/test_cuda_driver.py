"""Loading and launching with a fake driver that records its calls."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.ops import cuda, cuda_driver, nvrtc
from detector.ops.native import KernelsUnavailableError


class Recorder:
    """A driver whose kernels do nothing."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.loaded: list[bytes] = []
        self.launches: list[tuple[str, int, int, int | None, bytes]] = []  # name, blocks, threads, stream, arguments
        self.bound: list[int] = []
        self.statuses: list[int] = []  # of the next launches; 0 afterwards
        self.load_status = 0

    def cuLibraryLoadData(self, library: Any, code: bytes, *options: object) -> int:  # noqa: N802 - the driver's name
        self.loaded.append(code)
        library._obj.value = 1000 * len(self.loaded)
        return self.load_status

    def cuLibraryGetKernel(self, kernel: Any, library: ctypes.c_void_p, name: bytes) -> int:  # noqa: N802
        kernel._obj.value = (library.value or 0) + cuda_driver.KERNELS.index(name.decode()) + 1
        self.names[kernel._obj.value] = name.decode()
        return 0

    def cuKernelGetFunction(self, function: Any, kernel: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, index: int) -> int:  # noqa: N802
        context._obj.value = 70 + index
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:  # noqa: N802
        self.bound.append((context.value or 0) - 70)
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:  # noqa: N802
        name._obj.value = b"CUDA_ERROR_OF_A_KIND"
        return 0

    def cuLaunchKernel(self, kernel: int, blocks: int, y: int, z: int, threads: int, *rest: Any) -> int:  # noqa: N802
        stream, parameters, extra = rest[3:]
        assert extra is None
        arguments = ctypes.string_at(ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0], 192)
        self.launches.append((self.names[kernel], blocks, threads, stream, arguments))
        return self.statuses.pop(0) if self.statuses else 0


class Machine:
    """Fake GPUs: tensors on the CPU count as tensors of the GPU `index`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver, self.current, self.capturing, self.guarded = Recorder(), -1, False, list[int]()
        devices: dict[int, cuda_driver.Device] = {}

        @contextmanager
        def device(index: int) -> Iterator[None]:
            self.guarded.append(index)
            kept, self.current = self.current, index
            yield
            self.current = kept

        monkeypatch.setattr(cuda_driver, "_driver", lambda: self.driver)
        monkeypatch.setattr(
            cuda_driver, "device_of", lambda index: devices.setdefault(index, cuda_driver.Device((9, 0), 132))
        )
        monkeypatch.setattr(cuda_driver, "current_device", lambda: self.current)
        monkeypatch.setattr(cuda_driver, "capturing", lambda: self.capturing)
        monkeypatch.setattr(cuda_driver, "_stream", lambda index: 5000 + index)
        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(nvrtc, "code", lambda storage, capability: storage.encode())
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        cuda_driver._library.cache_clear()
        cuda._available.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(monkeypatch)
    cuda_driver._library.cache_clear()
    cuda._available.cache_clear()


# ---- arguments


def test_arguments_have_the_length_that_the_kernels_expect(emulation: Callable[[str], ctypes.CDLL]) -> None:
    library = emulation("float")
    library.argument_bytes.restype = ctypes.c_int64
    padded = cuda._POINTERS.size + cuda._PLAN.size + cuda._EPSILON.size
    sizes = [padded, cuda._FLAT.size, cuda._PART.size]
    assert [library.argument_bytes(which) for which in range(3)] == sizes
    assert max(sizes) <= len(cuda_driver.frame.content)


def test_every_pointer_is_at_the_place_that_the_kernel_reads(machine: Machine) -> None:
    x, grad = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    mean, scale, bias, constant, slope = (torch.randn(16) for _ in range(5))
    out = cuda.norm_mish_backward(grad, x, mean, scale, bias, constant, slope)
    name, blocks, threads, stream, arguments = machine.driver.launches[-1]
    pointers = struct.unpack_from("11P", arguments)
    given = (x, grad, None, out, mean, scale, None, bias, constant, slope, None)
    assert pointers == tuple(0 if tensor is None else tensor.data_ptr() for tensor in given)
    assert (name, stream) == ("norm_mish_backward_planes", 4999)
    extent, images, chunks, columns, lines, tile = struct.unpack_from("6i", arguments, 136)
    assert (extent, images, columns) == (16, 2, 1)  # 64 elements in cells of 4
    assert (threads, lines, tile, chunks) == (32, 32, 64, 1)
    owners, owner_tiles, parts, channels = struct.unpack_from("4i", arguments, 172)
    assert (owners, owner_tiles, channels, blocks) == (16, 16, 16, 16 * parts)


def test_a_flat_kernel_gets_its_tensors_and_their_number(machine: Machine) -> None:
    x, grad = torch.randn(3, 1001, dtype=torch.float64).bfloat16(), torch.randn(3, 1001).bfloat16()
    out = cuda.mish_backward(grad, x)
    name, blocks, threads, _, arguments = machine.driver.launches[-1]
    assert struct.unpack_from("3Pq", arguments) == (x.data_ptr(), grad.data_ptr(), out.data_ptr(), 3003)
    assert (name, blocks, threads) == ("mish_backward_cells", 1, 256)
    cuda.mish_forward(torch.randn(256 * 4 * 4 * 7 + 4))
    assert machine.driver.launches[-1][:3] == ("mish_forward_cells", 8, 256)


def test_one_address_off_16_bytes_takes_the_kernel_of_single_elements(machine: Machine) -> None:
    def off(*shape: int) -> Tensor:
        return torch.zeros(torch.Size(shape).numel() + 1)[1:].view(shape)

    x, c = torch.zeros(2, 16, 4, 4), torch.zeros(16)
    for call in (
        lambda: cuda.mish_forward(off(64)),
        lambda: cuda.mish_backward(off(2, 16, 4, 4), x),
        lambda: cuda.norm_statistics(off(2, 16, 4, 4)),
        lambda: cuda.norm_mish_forward(x, c, c, c, off(2, 16, 4, 4)),
        lambda: cuda.norm_mish_forward(x, off(16), c, c, None),
        lambda: cuda.norm_mish_forward(x, c, off(16), c, None),
        lambda: cuda.norm_mish_forward(x, c, c, off(16), x),
        lambda: cuda.norm_mish_sums(off(2, 16, 4, 4), x, c, c, c),
        lambda: cuda.norm_mish_backward(x, x, c, c, c, off(16), c),
        lambda: cuda.norm_mish_backward(x, x, c, c, c, c, off(16)),
        lambda: cuda.bias_mish_(off(2, 16, 4, 4), c, None),
        lambda: cuda.bias_mish_(x, off(16), None),
        lambda: cuda.bias_mish_(x, c, off(2, 16, 4, 4)),
    ):
        machine.driver.launches.clear()
        call()
        assert machine.driver.launches[0][0].endswith("_odd")
    for call in (lambda: cuda.norm_mish_forward(x, c, c, c, x), lambda: cuda.norm_mish_sums(x, x, c, c, c)):
        machine.driver.launches.clear()
        call()
        assert machine.driver.launches[0][0].endswith("_planes")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((2, 16, 4, 4), "last"), ((2, 6, 4, 4), "odd"), ((2, 16, 1, 1), "last"), ((2, 1, 4, 4), "planes")],
)
def test_layout_selects_the_kernel(shape: tuple[int, ...], kind: str, machine: Machine) -> None:
    cuda.norm_statistics(torch.zeros(shape).contiguous(memory_format=torch.channels_last))
    assert machine.driver.launches[0][0] == f"norm_statistics_{kind}"


def test_more_elements_than_a_32_bit_number_are_addressed(machine: Machine) -> None:
    """The cut of 3.0e9 elements, the first activation of a batch of 256 at 608 pixels."""
    cut = cuda._cut("norm_mish_forward", 256, 32, 608 * 608, True, 2, True, 132)
    assert cut.num_blocks < 2**31
    owner, _, line, cell, _, _ = struct.unpack_from("6q", cut.packed)
    extent, images, chunks, columns, lines, tile = struct.unpack_from("6i", cut.packed, 48)
    assert (owner, line, columns, lines, cell) == (16, 64, 4, 64, 4096)
    assert extent * images == 256 * 608 * 608
    assert chunks * tile >= extent > (chunks - 1) * tile
    for batch in (2000, 4000):  # beyond 2^31 positions every image counts by itself
        cut = cuda._cut("norm_mish_forward", batch, 8, 608 * 608 * 4, True, 2, True, 132)
        extent, images = struct.unpack_from("2i", cut.packed, 48)
        assert (extent, images) == (608 * 608 * 4, batch)
        assert struct.unpack_from("6q", cut.packed)[1] == 608 * 608 * 4 * 16


# ---- loading


def test_a_storage_type_is_loaded_when_it_is_first_used(machine: Machine) -> None:
    for _ in range(2):
        cuda.mish_forward(torch.zeros(8))
    assert machine.driver.loaded == [b"float"]
    cuda.mish_forward(torch.zeros(8, dtype=torch.float16))
    assert machine.driver.loaded == [b"float", b"Float16"]


def test_warmup_loads_everything_on_a_device(machine: Machine) -> None:
    cuda.warmup(3)
    assert sorted(machine.driver.loaded) == [b"BFloat16", b"Float16", b"float"]
    assert len(cuda_driver.device_of(3).kernels) == 3 * len(cuda_driver.KERNELS)
    assert machine.driver.bound == [3, 3, 3]
    cuda.warmup(torch.device("cuda", 4))
    assert len(machine.driver.loaded) == 3  # the same code serves a second device of the same kind
    assert len(cuda_driver.device_of(4).kernels) == 3 * len(cuda_driver.KERNELS)


def test_nothing_is_loaded_while_a_graph_is_recorded(machine: Machine) -> None:
    machine.capturing = True
    with pytest.raises(KernelsUnavailableError, match=r"graph is being recorded.*warmup\(\) before"):
        cuda.mish_forward(torch.zeros(8))
    with pytest.raises(KernelsUnavailableError, match="graph is being recorded"):
        cuda.available(torch.device("cuda", 0))
    machine.capturing = False
    cuda.warmup()
    machine.capturing = True
    cuda.mish_forward(torch.zeros(8))
    assert cuda.available(torch.device("cuda"))


def test_threads_that_start_together_load_once_and_keep_their_own_arguments(machine: Machine) -> None:
    tensors = [torch.zeros(1000 + i) for i in range(8)]
    start = threading.Barrier(len(tensors))

    def work(x: Tensor) -> None:
        start.wait()
        for _ in range(20):
            cuda.mish_forward(x)

    running = [threading.Thread(target=work, args=(x,)) for x in tensors]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert machine.driver.loaded == [b"float"]
    seen = [struct.unpack_from("3Pq", arguments) for *_, arguments in machine.driver.launches]
    numbers = {x.data_ptr(): x.numel() for x in tensors}
    assert len(seen) == 160
    assert all(numbers[x] == num for x, _, _, num in seen)


# ---- launching


def test_tensor_of_another_device_is_computed_on_its_device(machine: Machine) -> None:
    machine.current = 1
    cuda.mish_forward(torch.zeros(8))
    assert machine.guarded[-1] == -1
    assert machine.current == 1
    assert len(machine.driver.launches) == 1


def test_thread_without_a_context_gets_one(machine: Machine) -> None:
    cuda.mish_forward(torch.zeros(8))
    machine.driver.bound.clear()
    machine.driver.statuses = [201]
    cuda.mish_forward(torch.zeros(8))
    assert machine.driver.bound == [-1]
    assert len(machine.driver.launches) == 3


def test_failed_launch_raises_with_the_name_of_the_error(machine: Machine) -> None:
    machine.driver.statuses = [700]
    with pytest.raises(
        RuntimeError, match=r"launching mish_forward_cells failed: CUDA error 700 \(CUDA_ERROR_OF_A_KIND\)"
    ):
        cuda.mish_forward(torch.zeros(8))


# ---- which path


@pytest.mark.parametrize(("choice", "found"), [("auto", True), ("fused", True), ("native", False)])
def test_choice_of_the_user_is_followed(
    choice: str, found: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTOR_MISH", choice)
    assert cuda.available(torch.device("cuda", 0)) is found
    assert bool(machine.driver.loaded) is found


def test_an_unknown_choice_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_MISH", "fast")
    with pytest.raises(KernelsUnavailableError, match="auto, native or fused, got 'fast'"):
        cuda.available(torch.device("cuda", 0))


def test_kernels_that_the_driver_refuses_fall_back_after_one_warning(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTOR_MISH", "auto")
    machine.driver.load_status = 209
    with pytest.warns(
        RuntimeWarning, match="Mish runs without its fused GPU kernels: loading .* CUDA error 209"
    ) as caught:
        assert [cuda.available(torch.device("cuda", 0)) for _ in range(3)] == [False] * 3
    assert len(caught) == 1


def test_fused_without_kernels_raises(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_MISH", "fused")
    machine.driver.load_status = 209
    with pytest.raises(KernelsUnavailableError, match="CUDA error 209"):
        cuda.available(torch.device("cuda", 0))


def test_a_torch_without_cuda_has_no_kernels(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_MISH", "fused")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(KernelsUnavailableError, match="not built for NVIDIA"):
        cuda.available(torch.device("cuda", 0))


def test_cpu_tensors_are_not_supported_on_the_gpu() -> None:
    assert not cuda.supports(torch.zeros(8))
    assert not cuda.supports(torch.zeros(8, device="meta"))
