"""Child processes import nothing from the working folder."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detector.io.child_process import detector_program, safe_path

PLANTED = ("sitecustomize", "torch", "argparse", "detector", "multiprocessing", "json")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with modules that leave a mark when they are imported; return the mark."""
    mark = tmp_path / "mark"
    folder = tmp_path / "data"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    return mark


def test_the_command_line_in_a_child_process_imports_nothing_from_the_working_folder(planted: Path) -> None:
    done = subprocess.run([*detector_program(), "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("detector "), done.stderr
    assert not planted.exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path for its own child processes")
def test_a_spawned_process_imports_nothing_from_the_working_folder(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    with safe_path():
        process.start()
    process.join()
    assert process.exitcode == 0
    assert "PYTHONSAFEPATH" not in os.environ
    assert not planted.exists()
