"""The CPU kernels: compiled for this processor at the first op, kept on disk, called through ctypes.

The library is plain C++ that knows nothing of torch, so one second of compiling serves every torch and every Python. It
shares torch's own OpenMP threads, whose library is already loaded under the same name. Where there is no compiler the
ops use torch's operators, and one warning says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class KernelsUnavailableError(RuntimeError):
    """The kernels cannot be had on this machine; the text says why."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$XDG_CACHE_HOME/detector`, by default `~/.cache/detector`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detector"


def _processor() -> str:
    """What the compiled code depends on besides the source: a cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _compile(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [compiler, *_FLAGS, str(_SOURCES / "cpu_kernels.cpp"), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise KernelsUnavailableError(
                f"{compiler} failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
            )
        os.replace(built, library)  # another process may have built the same file meanwhile


@functools.cache
def _library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        KernelsUnavailableError: no compiler, or it fails.
    """
    if sys.platform != "linux":
        raise KernelsUnavailableError(f"they are built on Linux only, this is {sys.platform}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise KernelsUnavailableError("no C++ compiler was found; install g++ for faster training on the CPU")
    try:
        source = b"".join(path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.suffix in (".h", ".cpp"))
        key = hashlib.sha256(source + "\0".join((compiler, *_FLAGS, _processor())).encode()).hexdigest()[:16]
        library = cache_folder() / f"cpu_kernels-{key}.so"
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailableError(str(error)) from error


def choice() -> str:
    """What the variable `DETECTOR_MISH` asks for: auto, native (no kernels) or fused (kernels, or an error).

    Raises:
        KernelsUnavailableError: it says something else.
    """
    asked = os.environ.get("DETECTOR_MISH", "auto")
    if asked not in ("auto", "native", "fused"):
        raise KernelsUnavailableError(f"DETECTOR_MISH wants auto, native or fused, found {asked!r}")
    return asked


@functools.cache
def available() -> bool:
    """Whether the kernels run here; compiles them on the first call. `DETECTOR_MISH` may say native or fused.

    Raises:
        KernelsUnavailableError: `DETECTOR_MISH=fused` demands them and they cannot be had.
    """
    if choice() == "native":
        return False
    try:
        _library()
    except KernelsUnavailableError as error:
        if choice() == "fused":
            raise
        warnings.warn(f"Mish runs without its fused CPU kernels: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


def supports(x: Tensor) -> bool:
    """Whether the kernels take this tensor: on the CPU, float32 or bfloat16, not empty."""
    return x.device.type == "cpu" and x.dtype in _SUFFIXES and x.numel() > 0


# The arguments of each kernel: p an address or None, l a 64-bit integer, d a double.
_SIGNATURES = {
    "mish_forward": "ppl",
    "mish_backward": "pppl",
    "norm_mish_forward": "ppplllppp",
    "norm_mish_train": "ppplllppdpp",
    "norm_mish_backward": "ppplllppppdpp",
    "bias_mish": "ppplll",
}
_C_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "d": ctypes.c_double}


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(_library(), f"detector_{name}_{_SUFFIXES[dtype]}")
    function.restype = None
    function.argtypes = [_C_TYPES[letter] for letter in _SIGNATURES[name]]
    return function  # type: ignore[no-any-return]  # ctypes functions are untyped


def call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Calls a kernel on the numbers and the addresses of the first elements of the tensors given."""
    _function(name, dtype)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])
