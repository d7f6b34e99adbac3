"""Machine code of the GPU kernels: wide accesses, few instructions, no spilled registers."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from detector.ops import cuda_driver

REGISTERS = 65536  # of a multiprocessor, on every architecture
CELL = {"BFloat16": 8, "Float16": 8, "float": 4}  # elements of 16 bytes
BUILDS = [("BFloat16", "sm_80"), ("BFloat16", "sm_90"), ("BFloat16", "sm_100"), ("BFloat16", "sm_120")]
BUILDS += [("Float16", "sm_90"), ("float", "sm_90")]


@dataclass
class Kernel:
    """The instructions of a kernel and its registers, stack and local memory."""

    instructions: list[tuple[int, str]]
    num_registers: int
    stack_bytes: int
    local_bytes: int

    def count(self, name: str) -> int:
        return sum(name in text for _, text in self.instructions)

    def loops(self) -> list[list[str]]:
        """The bodies of the loops: from the target of a backward branch to the branch."""
        found = []
        for address, text in self.instructions:
            target = re.search(r"BRA.* 0x([0-9a-f]+)", text)
            if target and int(target[1], 16) < address:
                found.append([t for a, t in self.instructions if int(target[1], 16) <= a <= address])
        return found

    def main_loop(self) -> list[str]:
        return max(self.loops(), key=lambda body: sum("LDG.E.128" in text for text in body))


def cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(bundled) if bundled.exists() else found
    if found is None:
        pytest.skip("no cuobjdump, which CUDA and Triton's wheel bring")
    return found


@pytest.fixture(scope="module", params=BUILDS, ids=" ".join)
def build(
    request: pytest.FixtureRequest, machine_code: Callable[[str, str], bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Kernel]]:
    """The storage type, and every kernel by name."""
    storage, architecture = request.param
    program = cuobjdump()
    file = tmp_path_factory.mktemp("code") / f"{storage}-{architecture}.cubin"
    file.write_bytes(machine_code(storage, architecture))

    def dump(flag: str) -> str:
        return subprocess.run([program, flag, str(file)], capture_output=True, text=True, check=True).stdout

    usage = {
        name: (int(registers), int(stack), int(local))
        for name, registers, stack, local in re.findall(
            r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump("-res-usage")
        )
    }
    kernels = {}
    for block in dump("-sass").split("Function : ")[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", block)
        instructions = [(int(address, 16), text) for address, text in lines if not text.startswith("NOP")]
        kernels[block.split()[0]] = Kernel(instructions, *usage[block.split()[0]])
    return storage, kernels


Build = tuple[str, dict[str, Kernel]]


def test_compiled_kernels_are_exactly_those_that_are_launched(build: Build) -> None:
    assert sorted(build[1]) == sorted(cuda_driver.KERNELS)


def test_local_memory_is_not_used(build: Build) -> None:
    for name, kernel in build[1].items():
        assert (kernel.stack_bytes, kernel.local_bytes, kernel.count("LDL"), kernel.count("STL")) == (0, 0, 0, 0), name


def test_number_of_resident_blocks_equals_that_of_the_launches(build: Build) -> None:
    for name, (_, num_resident) in cuda_driver.CHANNEL_KERNELS.items():
        for layout in ("last", "planes", "odd"):
            registers = -(-build[1][f"{name}_{layout}"].num_registers // 8) * 8
            assert REGISTERS // (registers * cuda_driver.THREADS) >= num_resident, (name, layout)


@pytest.mark.parametrize("layout", ["last", "planes"])
@pytest.mark.parametrize("name", cuda_driver.CHANNEL_KERNELS)
def test_cells_are_moved_whole_and_fetched_together(name: str, layout: str, build: Build) -> None:
    body = build[1][f"{name}_{layout}"].main_loop()
    cells, _ = cuda_driver.CHANNEL_KERNELS[name]
    num_inputs = 2 if "residual" in name or "backward" in name or "sums" in name else 1
    loads = [i for i, text in enumerate(body) if "LDG" in text]
    stores = [i for i, text in enumerate(body) if "STG" in text]
    assert all("LDG.E.128" in body[i] for i in loads)
    assert all("STG.E.128" in body[i] for i in stores)
    assert len(loads) == num_inputs * cells
    assert len(stores) == (0 if name in ("norm_statistics", "norm_mish_sums") else cells)
    work = [i for i, text in enumerate(body) if "MUFU" in text or "STG" in text]
    assert not work or max(loads) < min(work)


@pytest.mark.parametrize(("name", "cells", "num_inputs"), [("mish_forward", 4, 1), ("mish_backward", 2, 2)])
def test_flat_kernels_move_whole_cells(name: str, cells: int, num_inputs: int, build: Build) -> None:
    kernel = build[1][f"{name}_cells"]
    assert cuda_driver.FLAT_KERNELS[name] == cells
    assert kernel.count("LDG.E.128") == cells * num_inputs
    assert kernel.count("STG.E.128") == cells


# While it moves memory at its full 4.3 TB/s an H200 can issue 7.8 instructions per byte: 31 per 16-bit element that is
# read and written, 47 with two inputs, 31 for the sums of two inputs, 16 for statistics, and twice that in float32,
# whose exponential takes about eight more. Everything must stay clear of that; these are today's counts, rounded up.
BUDGETS = {"mish_forward": 14, "mish_backward": 24}
CHANNEL_BUDGETS = {
    "norm_statistics": 8,
    "norm_mish_sums": 26,
    "norm_mish_forward": 18,
    "norm_mish_residual": 20,
    "norm_mish_backward": 27,
    "bias_mish": 17,
    "bias_mish_residual": 19,
}
FLOAT_EXTRA = 8


@pytest.mark.parametrize("name", BUDGETS)
def test_a_flat_kernel_takes_few_instructions_per_element(name: str, build: Build) -> None:
    storage, kernels = build
    kernel = kernels[f"{name}_cells"]  # straight-line code: one 2^x per element, including elements that fill no cell
    per_element = len(kernel.instructions) / kernel.count("MUFU.EX2")
    assert kernel.count("MUFU.RCP") == kernel.count("MUFU.EX2")
    assert per_element <= BUDGETS[name] + (FLOAT_EXTRA if storage == "float" else 0)


@pytest.mark.parametrize("layout", ["last", "planes"])
@pytest.mark.parametrize("name", CHANNEL_BUDGETS)
def test_a_loop_takes_few_instructions_per_element(name: str, layout: str, build: Build) -> None:
    storage, kernels = build
    body = kernels[f"{name}_{layout}"].main_loop()
    num_elements = cuda_driver.CHANNEL_KERNELS[name][0] * CELL[storage]
    assert len(body) / num_elements <= CHANNEL_BUDGETS[name] + (FLOAT_EXTRA if storage == "float" else 0)
    if name != "norm_statistics":
        assert sum("MUFU.EX2" in text for text in body) == sum("MUFU.RCP" in text for text in body) == num_elements
