"""Hardware and memory information: the processor, the memory of this process and of the machine."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

import torch

_BUSY_LOAD = 0.75  # processes that run or wait, for each core
_M_MXFAST = 1  # malloc.h


def machine() -> str:
    """Return the processor, the GPU if there is one, the threads and the versions of torch and Python, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return f"{name}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def are_cores_busy() -> bool:
    """Return whether other programs use the cores, by the load average of the last minute; false if it is unknown."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > _BUSY_LOAD * (os.cpu_count() or 1)


@functools.cache
def merge_freed_memory() -> None:
    """Let glibc merge each freed block with its neighbours at once, for the rest of the process.

    torch allocates aligned memory, and glibc cuts small blocks off each such allocation and frees them. It keeps those
    apart ("fast bins") until a large block is freed in the same thread's arena, which does not happen in threads that
    only see small tensors: 12 blocks of 60 bytes per batch then stay for ever.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MXFAST, 0)
    except (OSError, AttributeError, TypeError):  # not glibc
        return


def kibibytes_of(path: Path, key: str) -> int | None:
    """Return the entry `key: N kB` of a file of the proc file system (proc(5)) in bytes, or None if it is missing."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(values[0]) * 1024 if values else None


def resident_bytes() -> int | None:
    """Return the resident memory of this process in bytes, or None if the system is not Linux."""
    return kibibytes_of(Path("/proc/self/status"), "VmRSS")


def peak_bytes(since_bytes: int = 0) -> int | None:
    """Return the peak memory of this process in bytes beyond `since_bytes`, or None if the system does not tell.

    Linux gives the peak of this program alone (VmHWM); elsewhere the number includes the process that started it.
    """
    peak = kibibytes_of(Path("/proc/self/status"), "VmHWM")
    if peak is None:
        try:
            import resource
        except ModuleNotFoundError:  # Windows
            return None
        peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        peak = peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kibibytes
    return peak - since_bytes
