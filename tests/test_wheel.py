import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this tree and unpack it outside the repository."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


# Commands of the package outside the repository, in one process, because importing torch takes seconds.
SESSION = """
import contextlib, io, json, sys
import detector
from detector.cli.main import run
printed = {"file": detector.__file__}
for words in (["new", "schedule", "my_schedule.py"], ["completion", "bash"]):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run(words) == 0, words
    printed[words[0]] = output.getvalue()
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed(unpacked: Path) -> dict[str, str]:
    """Return the place of the package, and what `detector new` and `detector completion` print."""
    return json.loads(_run(unpacked, "-c", SESSION))


def _run(unpacked: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=unpacked.parent,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_wheel_holds_only_the_package(unpacked: Path) -> None:
    names = {path.relative_to(unpacked).parts[0] for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"detector"}
    tracked = {p.relative_to(ROOT / "detector") for p in (ROOT / "detector").rglob("*.py")}
    assert tracked <= {p.relative_to(unpacked / "detector") for p in unpacked.rglob("*.py")}


def test_wheel_holds_the_kernel_sources(unpacked: Path) -> None:
    sources = {p.name for p in (ROOT / "detector/ops/csrc").iterdir()}
    assert {"cpu_kernels.cpp", "mish_kernels.cu", "mish_math.h"} <= sources
    assert {p.name for p in (unpacked / "detector/ops/csrc").iterdir()} == sources


def test_wheel_holds_the_presets_of_the_repository(unpacked: Path) -> None:
    packed, own = unpacked / "detector/presets", ROOT / "cfg"
    assert {p.relative_to(packed): p.read_text() for p in packed.rglob("*.*")} == {
        p.relative_to(own): p.read_text() for p in own.rglob("*.*")
    }


def test_wheel_holds_the_templates_of_parts_and_the_mark_of_its_types(unpacked: Path, printed: dict[str, str]) -> None:
    packed, own = unpacked / "detector/templates", ROOT / "tests/parts"
    assert {p.name: p.read_text() for p in packed.glob("*.py")} == {p.name: p.read_text() for p in own.glob("*.py")}
    assert (unpacked / "detector/py.typed").is_file()
    assert "my_schedule.py holds a working part" in printed["new"]
    assert '@register("my_schedule")' in (unpacked.parent / "my_schedule.py").read_text()


def test_wheel_holds_the_download_indexes(unpacked: Path) -> None:
    assert (unpacked / "detector/index/weights.yaml").read_text() == (ROOT / "weights/index.yaml").read_text()
    assert (unpacked / "detector/index/data.yaml").read_text() == (ROOT / "data/downloads.yaml").read_text()
    assert "yolov4-tiny" in _run(unpacked, "-m", "detector", "download")


def test_wheel_works_outside_the_repository(unpacked: Path, printed: dict[str, str]) -> None:
    assert Path(printed["file"]).is_relative_to(unpacked)
    assert {f"mish-{size}" for size in "nsmlx"} <= set(printed["completion"].replace("'", " ").split())
