import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROBE = """
import warnings
from detector.ops import native
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(native.available(), native.available())
print(len(caught), *(str(w.message) for w in caught))
"""


def _probe(tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _PROBE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
    )


def test_without_a_compiler_one_warning_says_why(tmp_path: Path) -> None:
    found = _probe(tmp_path, PATH=str(tmp_path), CXX="", DETECTOR_MISH="auto")
    assert found.stdout.splitlines()[0] == "False False"
    assert found.stdout.splitlines()[1].startswith("1 Mish runs without its fused CPU kernels: no C++ compiler")


def test_a_compiler_that_fails_is_named_in_the_warning(tmp_path: Path) -> None:
    found = _probe(tmp_path, CXX="false", DETECTOR_MISH="auto")
    assert found.stdout.splitlines()[0] == "False False"
    assert "false failed" in found.stdout


def test_insisting_on_kernels_that_cannot_be_had_raises(tmp_path: Path) -> None:
    found = _probe(tmp_path, PATH=str(tmp_path), CXX="", DETECTOR_MISH="fused")
    assert found.returncode != 0
    assert "KernelsUnavailableError" in found.stderr


def test_native_never_compiles(tmp_path: Path) -> None:
    assert _probe(tmp_path, DETECTOR_MISH="native").stdout.splitlines() == ["False False", "0"]
    assert not list(tmp_path.iterdir())


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    assert "auto, native or fused" in _probe(tmp_path, DETECTOR_MISH="fast").stderr


def test_a_compiled_library_is_kept_and_used_again(tmp_path: Path) -> None:
    if _probe(tmp_path).stdout.splitlines()[0] != "True True":
        pytest.skip("no C++ compiler here")
    (library,) = (tmp_path / "detector").glob("*.so")
    written = library.stat().st_mtime_ns
    assert _probe(tmp_path).stdout.splitlines()[0] == "True True"
    assert library.stat().st_mtime_ns == written
    assert [p.name for p in (tmp_path / "detector").iterdir()] == [library.name]
