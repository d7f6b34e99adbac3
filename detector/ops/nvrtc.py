"""The GPU kernels as machine code: compiled by NVRTC, NVIDIA's compiler library, which comes with torch; kept on disk.

Compiling needs neither a CUDA toolkit nor a C++ compiler nor a GPU, and reads no environment variables. A cache file
holds the code of one storage type for one architecture after its checksum; a truncated or changed file is compiled
again. Its name is a function of sources, options and compiler version, so that it is never out of date.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from detector.io.files import write_whole
from detector.ops.native import KernelsUnavailableError, cache_folder, is_private

_SOURCES = Path(__file__).parent / "csrc"
_SOURCE, _HEADER = "mish_kernels.cu", "mish_math.h"
STORAGE = {torch.float32: "float", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
_CHECKSUM_BYTES = hashlib.sha256().digest_size
OLDEST = (7, 5)  # the oldest compute capability that CUDA 13 compiles for


@functools.cache
def _nvrtc() -> ModuleType:
    """Return the module of cuda-bindings.

    Raises:
        KernelsUnavailableError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelsUnavailableError(
            f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings"
        ) from error
    module: ModuleType = nvrtc
    return module


def _call(name: str, *arguments: object) -> Any:
    """Call a function of NVRTC and return its results without the status."""
    nvrtc = _nvrtc()
    try:
        status, *results = getattr(nvrtc, name)(*arguments)
    except RuntimeError as error:  # cuda-bindings loads libnvrtc at its first call
        raise KernelsUnavailableError(f"NVRTC cannot be loaded: {error}") from error
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelsUnavailableError(f"{name} of NVRTC failed with {status.name}")
    return results[0] if len(results) == 1 else results


@functools.cache
def version() -> tuple[int, int]:
    """Return the version of NVRTC.

    Raises:
        KernelsUnavailableError: there is none.
    """
    major, minor = _call("nvrtcVersion")
    return major, minor


@functools.cache
def target(capability: tuple[int, int]) -> str:
    """Return the architecture to compile for: `sm_90` stands for machine code, `compute_90` for portable code.

    Machine code also runs on GPUs of the same major and a higher minor number of the compute capability. For GPUs that
    are newer than the compiler, the driver translates portable code when it is loaded.

    Raises:
        KernelsUnavailableError: the GPU is too old, or there is no NVRTC.
    """
    number_of_gpu = 10 * capability[0] + capability[1]
    known = sorted(_call("nvrtcGetSupportedArchs"))
    if number_of_gpu < 10 * OLDEST[0] + OLDEST[1] or number_of_gpu < known[0]:
        raise KernelsUnavailableError(f"expected a GPU of compute capability 7.5 or more, got {capability}")
    best = max(number for number in known if number <= number_of_gpu)
    return f"sm_{best}" if best // 10 == capability[0] else f"compute_{best}"


def compiled(storage: str, architecture: str) -> bytes:
    """Return the compiled kernels.

    Args:
        storage: a value of `STORAGE`.
        architecture: a result of `target`.

    Raises:
        KernelsUnavailableError: there is no NVRTC, or it fails; the message ends with its own.
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
    """Return the cache file of the code; its name depends on sources, options and the version of NVRTC."""
    key = hashlib.sha256()
    for part in (*((_SOURCES / name).read_bytes() for name in (_SOURCE, _HEADER)), repr(version()).encode()):
        key.update(len(part).to_bytes(8, "little") + part)
    key.update("\0".join(_options(storage, architecture)).encode())
    return cache_folder() / f"mish_kernels-{storage}-{architecture}-{key.hexdigest()[:16]}.cubin"


def code(storage: str, capability: tuple[int, int]) -> bytes:
    """Return the kernels for a GPU, from the cache or compiled now.

    Args:
        storage: a value of `STORAGE`.
        capability: the GPU's compute capability.

    Raises:
        KernelsUnavailableError: they are not in the cache and cannot be compiled.
    """
    architecture = target(capability)
    file = cached_file(storage, architecture)
    with contextlib.suppress(OSError):  # a missing or unreadable file is compiled
        kept = file.read_bytes()
        checksum, result = kept[:_CHECKSUM_BYTES], kept[_CHECKSUM_BYTES:]
        if is_private(file) and checksum == hashlib.sha256(result).digest():
            return result
    result = compiled(storage, architecture)
    with contextlib.suppress(OSError):  # without a cache, the next start only takes a second longer
        content = hashlib.sha256(result).digest() + result
        write_whole(file, lambda stream: stream.write(content), durable=False)
    return result
