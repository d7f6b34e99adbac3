"""Small blocks that torch's aligned memory leaves behind are merged, so that threads of a long video do not grow."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Small tensors of many sizes in a thread; then the number of freed blocks that glibc keeps apart.
CODE = """
import ctypes, re, sys, tempfile, threading
import torch
from detector.io.machine import merge_freed_memory

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def work():
    kept = []
    for number in range(4000):
        kept.append(torch.empty(300 + number % 97))
        if len(kept) > 40:
            del kept[::2]

def num_apart():
    with tempfile.NamedTemporaryFile() as file:
        stream = libc.fopen(file.name.encode(), b"w")
        libc.malloc_info(0, ctypes.c_void_p(stream))
        libc.fclose(ctypes.c_void_p(stream))
        return sum(map(int, re.findall(rb'type="fast" count="(\\d+)"', file.read())))

if sys.argv[1] == "merged":
    merge_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(num_apart())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="glibc only")
def test_freed_blocks_are_merged_in_every_thread() -> None:
    kept, merged = (
        int(subprocess.run([sys.executable, "-c", CODE, word], capture_output=True, text=True, check=True).stdout)
        for word in ("kept", "merged")
    )
    assert merged == 0
    assert kept > 100
