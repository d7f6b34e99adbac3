import ctypes
import hashlib
import os
import platform
import stat
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detector.ops import native
from detector.ops.mish import mish
from detector.ops.norm_mish import norm_mish

Probe = Callable[..., tuple[bool, list[str]]]


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Probe]:
    """Return a function that asks twice, as a new process with these variables, and returns answer and warnings."""
    caches = (native.available, native._library, native._function)

    def ask(**environment: str) -> tuple[bool, list[str]]:
        for cache in caches:
            cache.cache_clear()
        for name, value in {"XDG_CACHE_HOME": str(tmp_path), "DETECTOR_MISH": "auto", **environment}.items():
            monkeypatch.setenv(name, value)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first, second = native.available(), native.available()
        assert first == second
        return first, [str(each.message) for each in caught]

    yield ask
    for cache in caches:
        cache.cache_clear()


def test_without_a_compiler_one_warning_says_why(tmp_path: Path, probe: Probe) -> None:
    is_available, (message,) = probe(PATH=str(tmp_path), CXX="")
    assert not is_available
    assert message.startswith("Mish runs without its fused CPU kernels: there is no C++ compiler")


def test_a_compiler_that_fails_is_named_in_the_warning(probe: Probe) -> None:
    is_available, (message,) = probe(CXX="false")
    assert not is_available
    assert "false failed" in message


def test_fused_without_kernels_raises(tmp_path: Path, probe: Probe) -> None:
    with pytest.raises(native.KernelsUnavailableError, match=r"there is no C\+\+ compiler"):
        probe(PATH=str(tmp_path), CXX="", DETECTOR_MISH="fused")


def test_native_never_compiles(tmp_path: Path, probe: Probe) -> None:
    assert probe(DETECTOR_MISH="native") == (False, [])
    assert not list(tmp_path.iterdir())


def test_an_unknown_choice_is_refused(probe: Probe) -> None:
    with pytest.raises(native.KernelsUnavailableError, match="expected auto, native or fused, got 'fast'"):
        probe(DETECTOR_MISH="fast")


def test_a_compiled_library_is_kept_and_used_again(tmp_path: Path, probe: Probe) -> None:
    if not probe()[0]:
        pytest.skip("no C++ compiler here")
    (library,) = (tmp_path / "detector").glob("*.so")
    written = library.stat().st_mtime_ns
    assert probe() == (True, [])
    assert library.stat().st_mtime_ns == written
    assert [p.name for p in (tmp_path / "detector").iterdir()] == [library.name]


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
def test_a_library_that_others_could_have_written_is_not_intact(tmp_path: Path) -> None:
    content = b"not a library"
    library = tmp_path / "kernels.so"
    library.write_bytes(content + hashlib.sha256(content).digest())
    library.chmod(0o700)
    assert native._is_intact(library)
    (tmp_path / "link.so").symlink_to(library)
    assert not native._is_intact(tmp_path / "link.so")
    assert not native._is_intact(tmp_path / "missing.so")
    for mode in (0o720, 0o702):
        library.chmod(mode)
        assert not native._is_intact(library)
    library.chmod(0o700)
    for damaged in (b"", content, b"N" + library.read_bytes()[1:]):
        library.write_bytes(damaged)
        assert not native._is_intact(library)


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
def test_a_cache_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.cache_folder() == tmp_path / "detector"
    assert stat.S_IMODE((tmp_path / "detector").stat().st_mode) == 0o700
    for mode in (0o770, 0o707):
        (tmp_path / "detector").chmod(mode)
        native._temporary_folder.cache_clear()
        with pytest.warns(RuntimeWarning, match="is not used: it is writable by others"):
            folder = native.cache_folder()
        assert tmp_path not in folder.parents
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert native.cache_folder() == folder
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="is not used: Not a directory"):
        native.cache_folder()


def test_a_damaged_library_is_compiled_again(tmp_path: Path, probe: Probe) -> None:
    if not probe()[0]:
        pytest.skip("no C++ compiler here")
    (library,) = (tmp_path / "detector").glob("*.so")
    library.unlink()  # it is loaded, so its file must not change
    library.write_bytes(b"not a library")
    assert probe() == (True, [])
    assert native._is_intact(library)


# The same source on processors without AVX-512: eight lanes, which the compiler splits as needed.
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the names of the processors are x86's")
@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
def test_kernels_for_an_older_processor_agree_with_float64(
    processor: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if processor == "haswell" and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    flags = [f"-march={processor}" if flag == "-march=native" else flag for flag in native._FLAGS]
    source, built = native._SOURCES / "cpu_kernels.cpp", tmp_path / "kernels.so"
    subprocess.run(["g++", "-w", *flags, str(source), "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))
    native._function.cache_clear()
    monkeypatch.setattr(native, "_library", lambda: library)
    try:
        torch.manual_seed(0)
        tolerance = {torch.float32: 2e-6, torch.bfloat16: 8e-3}[dtype]  # a gradient is rounded to bfloat16 twice
        for shape in [(2, 24, 7, 5), (1, 3, 5, 5), (2, 100, 4, 4)]:
            for layout in (torch.channels_last, torch.contiguous_format):
                x = (torch.randn(shape) * 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
                norm = nn.BatchNorm2d(shape[1])
                reference, wanted_x = nn.BatchNorm2d(shape[1]).double(), x.detach().double().requires_grad_()
                y, wanted = norm_mish(x, norm), F.mish(reference(wanted_x))
                grad = torch.randn(shape)
                y.backward(grad.to(dtype))
                wanted.backward(grad.to(dtype).double())
                assert (y - wanted).abs().max() <= tolerance * wanted.abs().max()
                assert x.grad is not None
                assert wanted_x.grad is not None
                assert (x.grad - wanted_x.grad).abs().max() <= tolerance * wanted_x.grad.abs().max()
        values = torch.linspace(-100, 100, 4001).to(dtype)
        assert ((mish(values) - F.mish(values.double())).abs() <= tolerance * (1 + values.abs().double())).all()
    finally:
        native._function.cache_clear()
