"""The GPU kernels as machine code: compiled by NVRTC, NVIDIA's compiler library, which comes with torch; kept on disk.

Neither a CUDA toolkit nor a C++ compiler nor a GPU is needed, and nothing is looked for in the environment. A file of
the cache holds the code of one storage type for one architecture, behind a checksum: one that is cut short or changed
is compiled again. Its name holds what it was made from, so it never goes stale.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

from detector.io.files import write_whole
from detector.ops.native import KernelsUnavailableError, cache_folder

_SOURCES = Path(__file__).parent / "csrc"
_SOURCE, _HEADER = "mish_kernels.cu", "mish_math.h"
STORAGE = {torch.float32: "float", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
_CHECKSUM_BYTES = hashlib.sha256().digest_size
OLDEST = (7, 5)  # the oldest compute capability that CUDA 13 compiles for


@functools.cache
def _nvrtc() -> Any:
    """The module of cuda-bindings.

    Raises:
        KernelsUnavailableError: it or the compiler's library is not installed.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelsUnavailableError(
            f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings"
        ) from error
    return nvrtc


def _call(name: str, *arguments: Any) -> Any:
    """Calls a function of NVRTC and returns its results without the status."""
    nvrtc = _nvrtc()
    try:
        status, *results = getattr(nvrtc, name)(*arguments)
    except RuntimeError as error:  # cuda-bindings finds libnvrtc at its first call
        raise KernelsUnavailableError(f"NVRTC cannot be loaded: {error}") from error
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelsUnavailableError(f"{name} of NVRTC failed with {status.name}")
    return results[0] if len(results) == 1 else results


@functools.cache
def version() -> tuple[int, int]:
    """The version of NVRTC.

    Raises:
        KernelsUnavailableError: there is none.
    """
    major, minor = _call("nvrtcVersion")
    return major, minor


@functools.cache
def target(capability: tuple[int, int]) -> str:
    """What to compile for a GPU of a compute capability: `sm_90` is machine code, `compute_90` is portable code.

    Machine code also runs on GPUs of the same major and a higher minor number; for GPUs that are newer than the
    compiler, the driver translates portable code when it is loaded.

    Raises:
        KernelsUnavailableError: the GPU is too old, or there is no NVRTC.
    """
    wanted = 10 * capability[0] + capability[1]
    known = sorted(_call("nvrtcGetSupportedArchs"))
    if wanted < 10 * OLDEST[0] + OLDEST[1] or wanted < known[0]:
        raise KernelsUnavailableError(f"a compute capability of 7.5 or more is needed, this GPU has {capability}")
    best = max(number for number in known if number <= wanted)
    return f"sm_{best}" if best // 10 == capability[0] else f"compute_{best}"


def compiled(storage: str, architecture: str) -> bytes:
    """Compiles the kernels.

    Args:
        storage: a value of `STORAGE`.
        architecture: as `target` gives it.

    Raises:
        KernelsUnavailableError: there is no NVRTC, or it fails; the text holds its last words.
    """
    source, header = ((_SOURCES / name).read_bytes() for name in (_SOURCE, _HEADER))
    program = _call("nvrtcCreateProgram", source, _SOURCE.encode(), 1, [header], [_HEADER.encode()])
    try:
        options = [option.encode() for option in _options(storage, architecture)]
        try:
            _call("nvrtcCompileProgram", program, len(options), options)
        except KernelsUnavailableError as error:
            log = bytearray(_call("nvrtcGetProgramLogSize", program))
            _call("nvrtcGetProgramLog", program, log)
            text = log.decode(errors="replace").strip("\0 \n")
            raise KernelsUnavailableError(f"{error}: {text[-2000:]}") from error
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        result = bytearray(_call(f"nvrtcGet{kind}Size", program))
        _call(f"nvrtcGet{kind}", program, result)
        return bytes(result)
    finally:
        _nvrtc().nvrtcDestroyProgram(program)


def _options(storage: str, architecture: str) -> list[str]:
    return [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        f"--define-macro=STORAGE={storage}",
        "--disable-warnings",
    ]


def cached_file(storage: str, architecture: str) -> Path:
    """Where the code is kept: the name holds sources, options and the version of NVRTC."""
    key = hashlib.sha256()
    for part in (*((_SOURCES / name).read_bytes() for name in (_SOURCE, _HEADER)), repr(version()).encode()):
        key.update(len(part).to_bytes(8, "little") + part)
    key.update("\0".join(_options(storage, architecture)).encode())
    return cache_folder() / f"mish_kernels-{storage}-{architecture}-{key.hexdigest()[:16]}.cubin"


def code(storage: str, capability: tuple[int, int]) -> bytes:
    """The kernels for a GPU, from the cache or compiled now.

    Args:
        storage: a value of `STORAGE`.
        capability: the GPU's compute capability.

    Raises:
        KernelsUnavailableError: they are not in the cache and cannot be compiled.
    """
    architecture = target(capability)
    file = cached_file(storage, architecture)
    with contextlib.suppress(OSError):  # no file, or none that can be read: it is compiled
        kept = file.read_bytes()
        checksum, result = kept[:_CHECKSUM_BYTES], kept[_CHECKSUM_BYTES:]
        if checksum == hashlib.sha256(result).digest():
            return result
    result = compiled(storage, architecture)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a second at the next start, no more
        file.parent.mkdir(parents=True, exist_ok=True)
        content = hashlib.sha256(result).digest() + result
        write_whole(file, lambda stream: stream.write(content), durable=False)
    return result
