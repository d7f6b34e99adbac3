"""Device, number format of the network's arithmetic, and how the C library treats freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

import torch
from torch import nn

from detector.errors import ConfigError

Module = TypeVar("Module", bound=nn.Module)
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: str) -> torch.device:
    """Return a device by name; `auto` is the first CUDA device or the CPU; `mps`, Apple's, has to be named.

    Raises:
        ConfigError: another name, or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = f"device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(problem) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(problem)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {name!r}: torch has no Apple GPU here; use device=cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        number = torch.cuda.device_count()
        raise ConfigError(f"device {name!r}: torch has {number} CUDA devices here; use device=cpu or auto")
    return device


def on_device(module: Module, device: torch.device) -> Module:
    """Move a module to a device, with its weights in the memory format channels_last; return the module."""
    moved: Module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub gap
    return moved


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 itself, within the limits set to its libraries.

    An emulated format is slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Only private functions of torch tell; a missing one counts as no.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    is_limited = torch.backends.cpu.get_cpu_capability() == "AVX2"  # by the processor, or by ATEN_CPU_CAPABILITY=avx2
    is_native = not is_limited and any(getattr(torch.cpu, check, bool)() for check in checks)
    return device.type == "cpu" and is_native and _has_bf16_in_onednn()


def is_faster_in_bf16(device: torch.device) -> bool:
    """Return whether a network runs faster in bfloat16 than in float32 on the device.

    Without AMX an Intel core multiplies no faster in bfloat16: a training step of mish-n takes 1.1 (two cores) to 1.3
    times (one core) as long as in float32. AMD's cores from Zen 4 on multiply at twice the rate.
    """
    if device.type == "cpu" and "Intel" in str(getattr(torch.cpu, "get_capabilities", str)()):
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
        if not has_amx or {"AVX512_CORE_BF16", "AVX512_CORE_FP16"} & _onednn_limits():
            return False
    return has_native_bf16(device)


def _onednn_limits() -> set[str]:
    return {os.environ.get(name, "").upper() for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")}


def _has_bf16_in_onednn() -> bool:
    """Return whether oneDNN may use instructions for bfloat16, which ONEDNN_MAX_CPU_ISA limits."""
    # The check of oneDNN is true from AVX-512 on, where it emulates the format if these are its limit.
    is_emulated = bool({"AVX512_CORE", "AVX512_CORE_VNNI"} & _onednn_limits())
    return not is_emulated and bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())


class Precision:
    """Autocast and loss scaling for one device.

    Attributes:
        name: fp32, bf16 or fp16.
        dtype: the same as a dtype of torch.
        scaler: the loss scaler; it has no effect unless the format is fp16.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        """Choose the format: `auto` is bf16 if it is faster on the device, fp16 on other GPUs, else fp32.

        Raises:
            ConfigError: fp16 is asked for on the CPU.
        """
        if name == "auto":
            name = "bf16" if is_faster_in_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise ConfigError(f"precision fp16: expected a CUDA device, got {device.type}; use bf16 or fp32 on the CPU")
        self.name = name
        self._device_type = device.type
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the network runs."""
        return torch.autocast(self._device_type, dtype=self.dtype, enabled=self.name != "fp32")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system page by page.

    A training step on the CPU frees and allocates the same hundreds of megabytes; page faults would cost about a fifth
    of the step. It has no effect on other systems.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # <malloc.h>
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)
