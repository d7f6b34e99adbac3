"""The number format of the network's arithmetic, and what the processor does with freed memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager
from typing import Literal

import torch

from detector.errors import ConfigError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: str) -> torch.device:
    """A device by name; `auto` is the first CUDA device, else the CPU; `mps`, Apple's, is taken where it is named.

    Raises:
        ConfigError: another name, or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = f"device wants auto, cpu, cuda, cuda:N or mps, found {name!r}; use one of them"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(wanted) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(wanted)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {name!r} is wanted, torch finds no Apple GPU here; use device=cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device {name!r} is wanted, torch finds {found} CUDA devices; use device=cpu or auto")
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 itself instead of emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch tells by private functions only; one that is gone counts as no.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


class Precision:
    """Autocast and loss scaling for one device.

    Attributes:
        name: fp32, bf16 or fp16.
        dtype: the same as torch has it.
        scaler: the loss scaler; does nothing unless the format is fp16.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        """`auto` is bf16 where the device computes it natively, fp16 on other GPUs, fp32 elsewhere."""
        if name == "auto":
            name = "bf16" if has_native_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise ConfigError("precision fp16 wants a CUDA device; use bf16 or fp32 on the CPU")
        self.name = name
        self._device_type = device.type
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network runs."""
        return torch.autocast(self._device_type, dtype=self.dtype, enabled=self.name != "fp32")


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next step instead of giving it back page by page.

    A training step on the CPU frees and asks for the same hundreds of megabytes; faulting the pages in again costs
    about a fifth of the step. Has no effect on other systems.
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
