"""Clock for CPU and GPU, tables and buffers of `benchmark_mish.py`."""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The activations of a CSP-Darknet53 at 608 pixels, batch 16.
SHAPES = [(16, 32, 608, 608), (16, 64, 304, 304), (16, 128, 152, 152), (16, 128, 76, 76), (16, 256, 38, 38)]
SHAPES += [(16, 512, 19, 19), (1, 512, 19, 19)]
SMOKE_SHAPES = [(2, 16, 20, 20), (1, 3, 9, 9)]
COLD_BYTES = 256 * 2**20
PLANES = torch.contiguous_format
Call = Callable[[], object]
Function = Callable[..., Tensor]  # of x and a residual or None


@dataclass
class Bench:
    """Settings of a benchmark on one machine.

    Attributes:
        device: device that is measured.
        rounds: measurements of each variant.
        smoke: whether sizes are tiny, to check that everything runs.
        compiles: whether torch.compile is measured too.
        stops_at: the time, of time.monotonic, after which no variant is started.
        copy_bytes_s: bytes per second that a copy reads and writes.
    """

    device: torch.device
    rounds: int
    smoke: bool
    compiles: bool
    stops_at: float
    copy_bytes_s: float = 0.0

    @property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Shapes of activations."""
        return SMOKE_SHAPES if self.smoke else SHAPES

    def sets_of(self, num_bytes: int) -> int:
        """Return the number of sets of buffers of a size that together exceed the cache."""
        return 2 if self.smoke else max(2, -(-COLD_BYTES // max(1, num_bytes)))

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, calls: Sequence[Call]) -> float:
        """Return the median time of one call; each call has buffers of its own, and they alternate."""
        for call in calls:
            call()
        self.sync()
        num_calls = max(len(calls), self.rounds)
        if self.device.type != "cuda":
            times = []
            for i in range(num_calls):
                started = time.perf_counter()
                calls[i % len(calls)]()
                times.append(time.perf_counter() - started)
            return statistics.median(times)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(num_calls + 1)]  # type: ignore[no-untyped-call]  # torch's own
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # about 25 ms, in which the queue fills
        events[0].record()
        for i in range(num_calls):
            calls[i % len(calls)]()
            events[i + 1].record()
        self.sync()
        spans: list[float] = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]
        return statistics.median(spans)

    def memory(self, forward: Callable[[], Tensor], backward: Callable[[Tensor], object]) -> tuple[float, float]:
        """Return the bytes that forward keeps besides its result, and the peak of forward and backward."""
        if self.device.type != "cuda":
            return float("nan"), float("nan")
        self.sync()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        y = forward()
        saved = torch.cuda.memory_allocated(self.device) - before - y.numel() * y.element_size()
        backward(y)
        return float(saved), float(torch.cuda.max_memory_allocated(self.device) - before)

    def out_of_time(self) -> bool:
        """Return true if no more variants may be started."""
        return time.monotonic() > self.stops_at


class Table:
    """Rows of one section as Markdown."""

    def __init__(self, *columns: str) -> None:
        self.lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]

    def add(self, *cells: object) -> None:
        """Add a row and print it."""
        self.lines.append(f"| {' | '.join(map(str, cells))} |")
        print(self.lines[-1], flush=True)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def random(bench: Bench, shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Return normally distributed values of standard deviation 2."""
    return (torch.randn(*shape, device=bench.device) * 2).to(dtype).contiguous(memory_format=layout)


def arguments_of(
    bench: Bench, shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format, shortcut: bool
) -> tuple[Tensor, Tensor | None]:
    """Return both arguments of a variant: x, and a residual or None."""
    x = random(bench, shape, dtype, layout)
    return x, random(bench, shape, dtype, layout) if shortcut else None


def named(shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format) -> str:
    """Return a case in words."""
    return f"{'x'.join(map(str, shape))} {str(dtype)[6:]}" + (" NCHW" if layout == PLANES else "")


def cells_of(bench: Bench, spans: Sequence[float], ideal: Sequence[float]) -> list[str]:
    """Return the cells of times and of their shares of the bandwidth of a copy, for the ideal bytes."""
    cells = []
    for seconds, num_bytes in zip(spans, ideal, strict=True):
        share = f"{100 * num_bytes / seconds / bench.copy_bytes_s:.0f}" if bench.copy_bytes_s else "-"
        cells += [f"{seconds * 1e6:.1f}", f"{num_bytes / seconds / 1e9:.0f}", share]
    return cells


def prepared(bench: Bench, name: str, function: Function) -> Function | None:
    """Return the function of a variant, compiled if its name begins with compile; None if it is left out."""
    if bench.out_of_time() or (name.startswith("compile") and not bench.compiles):
        return None
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False) if name.startswith("compile") else function


def graphed(bench: Bench, call: Call, record: bool) -> Call:
    """Return the call as a CUDA graph if one is requested and possible, else the call."""
    if not record or bench.device.type != "cuda":
        return call
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
    with torch.cuda.stream(side):
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def convolution_share(step: Call) -> float:
    """Return the share of the GPU's time that convolutions take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    spans = [(event.key.lower(), event.self_device_time_total) for event in profile.key_averages()]
    words = ("conv", "gemm", "xmma", "cutlass", "fprop", "dgrad", "wgrad", "implicit")
    convolutions = sum(span for key, span in spans if any(word in key for word in words))
    return float(convolutions / sum(span for _, span in spans))


def machine(bench: Bench) -> str:
    """Return a line about the machine and the versions."""
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else platform.processor() or "CPU"
    return f"{name}, {platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}"


def merged(existing: str, sections: dict[str, str], head: str, order: Sequence[str]) -> str:
    """Return the text of a file with some sections replaced, all of them in the given order."""
    parts = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in existing.split("\n## ")[1:]}
    parts |= sections
    ordered = [name for name in order if name in parts]
    return f"# Mish, measured\n\n{head}\n\n" + "\n\n".join(f"## {name}\n\n{parts[name]}" for name in ordered) + "\n"
