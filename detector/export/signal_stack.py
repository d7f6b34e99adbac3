"""Protection of the stack that a thread's signal handlers run on against a library that replaces it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux's <signal.h>."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore the thread's alternate signal stack at the end of the block; do nothing on systems other than Linux.

    OpenVINO's CPU plugin installs a signal stack of its own in the thread that loads it, and frees it together with the
    plugin, possibly in another thread. Without this restoration the next signal with a handler, such as Ctrl-C, would
    then end the process.
    """
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None, use_errno=True).sigaltstack
    before = _SignalStack()
    is_known = sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if is_known:
            sigaltstack(ctypes.byref(before), None)
