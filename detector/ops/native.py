"""The CPU kernels: compiled for this processor at the first call, kept on disk, called through ctypes.

The library is plain C++ without torch, so that one compilation of about a second serves every version of torch and
Python. It shares torch's OpenMP threads, because their library is already loaded under the same name. Without a
compiler the operations use torch's operators, and one warning says why.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from detector.io.folders import user_cache

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
    """Error that says why the kernels are not available on this machine."""


def cache_folder() -> Path:
    """Return the folder of compiled kernels: `$XDG_CACHE_HOME/detector`, by default `~/.cache/detector`.

    If other users can write there, or it cannot be made, a warning says so, and the folder is a private temporary one
    of this process: whoever writes a library there decides what this process executes.
    """
    folder = user_cache()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(folder):
            return folder
        reason = f"it is writable by others; run chmod go-w {folder}, or remove it if another user owns it"
    except OSError as error:
        reason = error.strerror or str(error)
    return _temporary_folder(f"the folder of compiled kernels {folder} is not used: {reason}")


@functools.cache
def _temporary_folder(warning: str) -> Path:
    warnings.warn(warning, RuntimeWarning, stacklevel=3)
    folder = Path(tempfile.mkdtemp(prefix="detector-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_private(path: Path) -> bool:
    """Return true for a file or folder, not a link, that only this user can write."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    return os.name != "posix" or (status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _processor() -> str:
    """Return the features of the processor, which select the compiled code; machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [compiler, *_FLAGS, str(_SOURCES / "cpu_kernels.cpp"), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise KernelsUnavailableError(
                f"{compiler} failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
            )
        content = built.read_bytes()
        with built.open("ab") as file:  # a loader ignores what follows the last section of a library
            file.write(hashlib.sha256(content).digest())
        built.chmod(0o700)
        os.replace(built, library)  # another process may have built the same file meanwhile


def _is_intact(library: Path) -> bool:
    """Return true for a library that `_compile` wrote and nobody else can have changed since."""
    try:
        content = library.read_bytes()
        return is_private(library) and hashlib.sha256(content[:-32]).digest() == content[-32:]
    except OSError:
        return False


@functools.cache
def _library() -> ctypes.CDLL:
    """Return the loaded library, compiled first if it is not on disk.

    Raises:
        KernelsUnavailableError: there is no compiler, or it fails.
    """
    if sys.platform != "linux":
        raise KernelsUnavailableError(f"they are built on Linux only, got {sys.platform}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise KernelsUnavailableError("there is no C++ compiler; install g++ for faster training on the CPU")
    try:
        source = b"".join(path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.suffix in (".h", ".cpp"))
        key = hashlib.sha256(source + "\0".join((compiler, *_FLAGS, _processor())).encode()).hexdigest()[:16]
        library = cache_folder() / f"cpu_kernels-{key}.so"
        if not _is_intact(library):
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailableError(str(error)) from error


def choice() -> str:
    """Return the value of the variable `DETECTOR_MISH`: auto, native (no kernels) or fused (kernels, or an error).

    Raises:
        KernelsUnavailableError: it has another value.
    """
    asked = os.environ.get("DETECTOR_MISH", "auto")
    if asked not in ("auto", "native", "fused"):
        raise KernelsUnavailableError(f"DETECTOR_MISH: expected auto, native or fused, got {asked!r}")
    return asked


@functools.cache
def available() -> bool:
    """Return true if the kernels run here; compile them on the first call. `DETECTOR_MISH` can overrule it.

    Raises:
        KernelsUnavailableError: `DETECTOR_MISH=fused` requires them and they are not available.
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
    """Return true for tensors that the kernels accept: on the CPU, float32 or bfloat16, not empty."""
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
_C_TYPES: dict[str, type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double]] = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "d": ctypes.c_double,
}


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = _library()[f"detector_{name}_{_SUFFIXES[dtype]}"]
    function.restype = None
    function.argtypes = [_C_TYPES[letter] for letter in _SIGNATURES[name]]
    return function


def call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Call a kernel with numbers and the addresses of the first elements of tensors."""
    _function(name, dtype)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])
