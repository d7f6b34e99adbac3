from __future__ import annotations

import builtins
import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from detector.ops import nvrtc
from detector.ops.native import KernelsUnavailableError

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
MachineCode = Callable[[str, str], bytes]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernels_compile_for_every_gpu_since_turing(architecture: str, machine_code: MachineCode) -> None:
    assert machine_code("BFloat16", architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("storage", ["float", "Float16"])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_every_storage_type_compiles_for_old_and_new_gpus(
    architecture: str, storage: str, machine_code: MachineCode
) -> None:
    assert machine_code(storage, architecture).startswith(b"\x7fELF")


@pytest.mark.nightly
@pytest.mark.parametrize("storage", ["float", "Float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_storage_type_compiles_for_every_gpu(architecture: str, storage: str, machine_code: MachineCode) -> None:
    assert machine_code(storage, architecture).startswith(b"\x7fELF")


def test_a_gpu_newer_than_the_compiler_gets_portable_code(machine_code: MachineCode) -> None:
    architecture = nvrtc.target((99, 0))
    assert architecture.startswith("compute_")
    portable = machine_code("BFloat16", "compute_90")
    assert b".entry norm_mish_sums_last" in portable
    assert portable.endswith(b"\0")


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), "sm_75"), ((8, 9), "sm_89"), ((9, 0), "sm_90"), ((9, 9), "sm_90")]
)
def test_the_target_is_the_nearest_older_architecture_of_the_same_generation(
    capability: tuple[int, int], wanted: str, machine_code: MachineCode
) -> None:
    assert nvrtc.target(capability) == wanted


def test_a_gpu_that_is_too_old_is_refused_by_name(machine_code: MachineCode) -> None:
    with pytest.raises(KernelsUnavailableError, match=r"7\.5 or more, got \(6, 1\)"):
        nvrtc.target((6, 1))


def test_source_that_does_not_compile_is_reported_with_the_compilers_message(machine_code: MachineCode) -> None:
    with pytest.raises(KernelsUnavailableError, match=r"(?s)NVRTC_ERROR_COMPILATION.*NoSuchType"):
        nvrtc.compiled("NoSuchType", "sm_90")


def test_without_cuda_bindings_the_reason_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *rest: Any) -> Any:
        if name.startswith("cuda"):
            raise ImportError("No module named 'cuda'")
        return real(name, *rest)

    nvrtc._nvrtc.cache_clear()
    monkeypatch.setattr(builtins, "__import__", importing)
    try:
        with pytest.raises(KernelsUnavailableError, match="pip install cuda-bindings"):
            nvrtc._nvrtc()
    finally:
        nvrtc._nvrtc.cache_clear()


# ---- the cache


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_code: MachineCode) -> list[str]:
    """The architectures that a fake compiler was called for; the cache is an empty folder."""
    done: list[str] = []

    def compiled(storage: str, architecture: str) -> bytes:
        done.append(architecture)
        return f"{storage} for {architecture} ".encode() * 1000

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compiled", compiled)
    return done


def test_code_is_compiled_once_and_read_afterwards(compilations: list[str], tmp_path: Path) -> None:
    first = nvrtc.code("BFloat16", (9, 0))
    assert nvrtc.code("BFloat16", (9, 0)) == first == b"BFloat16 for sm_90 " * 1000
    assert compilations == ["sm_90"]
    (file,) = (tmp_path / "detector").iterdir()
    assert file == nvrtc.cached_file("BFloat16", "sm_90")


def test_storage_types_and_architectures_are_kept_apart(compilations: list[str]) -> None:
    for _ in range(2):
        assert nvrtc.code("float", (9, 0)) == b"float for sm_90 " * 1000
        assert nvrtc.code("float", (8, 0)) == b"float for sm_80 " * 1000
        assert nvrtc.code("Float16", (8, 0)) == b"Float16 for sm_80 " * 1000
    assert compilations == ["sm_90", "sm_80", "sm_80"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_compiled_again_and_replaced(damage: str, compilations: list[str]) -> None:
    wanted = nvrtc.code("float", (9, 0))
    file = nvrtc.cached_file("float", "sm_90")
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    file.write_bytes({"cut": whole[:-1], "flipped": bytes(changed), "empty": b"", "foreign": b"x" * 4096}[damage])
    assert nvrtc.code("float", (9, 0)) == wanted
    assert file.read_bytes() == whole
    assert compilations == ["sm_90", "sm_90"]


@pytest.mark.parametrize("changed", ["mish_kernels.cu", "mish_math.h"])
def test_another_source_or_compiler_has_another_file(
    changed: str, compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nvrtc.cached_file("float", "sm_90")
    sources = tmp_path / "csrc"
    sources.mkdir()
    for name in ("mish_kernels.cu", "mish_math.h"):
        (sources / name).write_bytes((nvrtc._SOURCES / name).read_bytes() + (b"\n" if name == changed else b""))
    monkeypatch.setattr(nvrtc, "_SOURCES", sources)
    after = nvrtc.cached_file("float", "sm_90")
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 9))
    assert len({before, after, nvrtc.cached_file("float", "sm_90")}) == 3


def test_cache_that_cannot_be_written_is_replaced_by_a_folder_of_the_process(
    compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder can be made here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="is not used: Not a directory") if not compilations else nullcontext():
            assert nvrtc.code("float", (9, 0)) == b"float for sm_90 " * 1000
    assert compilations == ["sm_90"]


def test_unfinished_file_is_removed(compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: str, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", replace)
    assert nvrtc.code("float", (9, 0)) == b"float for sm_90 " * 1000
    assert list((tmp_path / "detector").iterdir()) == []


def _share(letter: str, seen: Any) -> None:
    nvrtc.compiled = lambda storage, architecture: (letter * 300_000).encode()
    for _ in range(50):
        seen.put(hashlib.sha256(nvrtc.code("float", (9, 0))).hexdigest())
        nvrtc.cached_file("float", "sm_90").unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_processes_that_share_a_cache_see_whole_files_only(compilations: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    seen = context.SimpleQueue()
    running = [context.Process(target=_share, args=(letter, seen)) for letter in "abc"]
    for process in running:
        process.start()
    hashes = [seen.get() for _ in range(150)]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert set(hashes) <= {hashlib.sha256((letter * 300_000).encode()).hexdigest() for letter in "abc"}


def test_neither_a_toolkit_nor_a_compiler_is_needed(tmp_path: Path, machine_code: MachineCode) -> None:
    bare = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    probe = "from detector.ops import nvrtc; print(len(nvrtc.code('float', (9, 0))))"
    root = Path(nvrtc.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", probe], env=bare, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000


def test_importing_needs_neither_a_gpu_nor_cuda_bindings() -> None:
    probe = """
import sys
sys.modules["cuda"] = None
import detector.ops.cuda, torch
assert "cuda.bindings" not in sys.modules
print(torch.cuda.is_initialized(), detector.ops.cuda.supports(torch.ones(3)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
