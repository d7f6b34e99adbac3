"""Keeps the stack that a thread's signal handlers run on, where a library would put its own in its place."""

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
    """Gives the thread its alternate signal stack back at the end; does nothing on other systems than Linux.

    OpenVINO's CPU plugin puts a stack of its own in place when it is loaded, and frees it with the plugin, in whichever
    thread that happens: where it is another one, the next signal with a handler, such as Ctrl-C, ends the process.
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
