"""What this machine and this process say of themselves: the processor, memory held and memory left."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch


def machine() -> str:
    """The processor (and GPU, where there is one), threads, torch and Python, in words."""
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


def kibibytes_of(path: Path, key: str) -> int | None:
    """An entry `key: N kB` of a file of the proc file system (proc(5)), in bytes; None where it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(values[0]) * 1024 if values else None


def resident_bytes() -> int | None:
    """The memory this process holds now; None where the system is not Linux."""
    return kibibytes_of(Path("/proc/self/status"), "VmRSS")


def peak_bytes(since_bytes: int = 0) -> int | None:
    """The most memory this process has held, beyond `since_bytes`; None where the system does not say.

    Linux says it for this program alone (VmHWM); elsewhere the number covers the process from before it was started.
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
