from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap

import pytest

from detector.export.signal_stack import kept_signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="alternate signal stacks of Linux")


def test_process_survives_signals_after_another_thread_released_the_plugin() -> None:
    pytest.importorskip("openvino")
    program = """
        import gc, signal, subprocess, sys, threading
        import numpy as np
        import openvino
        from openvino import opset13
        from detector.export.signal_stack import kept_signal_stack

        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        images = opset13.parameter([1, 3, 8, 8], np.float32)
        held = [openvino.Core()]
        with kept_signal_stack():
            held.append(held[0].compile_model(openvino.Model([opset13.relu(images)], [images]), "CPU"))
        held[1](np.zeros((1, 3, 8, 8), np.float32))
        del images
        release = threading.Thread(target=lambda: (held.clear(), gc.collect()))
        release.start()
        release.join()
        for _ in range(3):
            subprocess.run([sys.executable, "-c", "pass"], check=True)
        print("alive")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_signal_stack_that_was_set_within_the_block_is_replaced_by_the_previous_one() -> None:
    class Stack(ctypes.Structure):
        _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    def current() -> tuple[int | None, int, int]:
        stack = Stack()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
        return stack.sp, stack.flags, stack.size

    before = current()
    memory = ctypes.create_string_buffer(1 << 16)
    other = Stack(ctypes.addressof(memory), 0, len(memory))
    with kept_signal_stack():
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert current() != before
    assert current() == before
