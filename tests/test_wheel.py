import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def build(tree: Path, target: str, folder: Path) -> Path:
    """Build the wheel or sdist of a source tree and return its path."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    (made,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this tree."""
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """Unpack the wheel outside the repository."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist of this tree and unpack it outside the repository."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = (path for path in folder.iterdir() if path.is_dir())
    return tree


# Commands of the package outside the repository, in one process, because importing torch takes seconds.
SESSION = """
import contextlib, io, json, sys
import detector
from detector.cli.main import run
printed = {"file": detector.__file__}
for words in (["new", "schedule", "my_schedule.py"], ["completion", "bash"], ["predict", "street.jpg"]):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run(words) == 0, words
    printed[words[0]] = output.getvalue()
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed(unpacked: Path) -> dict[str, str]:
    """Return the place of the package, and what `detector new`, `detector completion` and `detector predict` print."""
    shutil.copy(ROOT / "docs/images/astronaut.jpg", unpacked.parent / "street.jpg")
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
    for name in ("coco2017.yaml", "bccd.yaml"):
        assert (unpacked / "detector/index" / name).read_text() == (ROOT / "data" / name).read_text()


def test_first_prediction_of_the_readme_works_outside_the_repository(unpacked: Path, printed: dict[str, str]) -> None:
    results = unpacked.parent / "runs/detect/predict"
    assert {path.name for path in results.iterdir()} == {"street.jpg", "predictions.json"}
    (record,) = json.loads((results / "predictions.json").read_text())
    assert record["detections"][0]["name"] == "person"


def test_sdist_holds_the_whole_project_and_builds_the_same_wheel(source_tree: Path, wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    missing = {name for name in tracked if not (source_tree / name).is_file()}
    assert missing <= {".gitignore"}
    again = build(source_tree, "wheel", source_tree.parent / "wheel")
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["wheel", "sdist"])
def test_first_prediction_works_in_an_empty_environment(target: str, tmp_path: Path) -> None:
    made = build(ROOT, target, tmp_path / "dist")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    own = Path(sys.executable).parent.parent / f"lib/python3.{sys.version_info.minor}/site-packages"
    # The libraries are those of this environment; its installation of the package itself is not seen.
    (site,) = (tmp_path / "venv/lib").glob("*/site-packages")
    (site / "libraries.pth").write_text(f"import sys; sys.path.append({str(own)!r})\n")
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", str(made)]
    subprocess.run(install, check=True)
    shutil.copy(ROOT / "docs/images/astronaut.jpg", tmp_path / "street.jpg")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(tmp_path / "venv/bin/detector"), "predict", "street.jpg"]
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert "person" in (tmp_path / "runs/detect/predict/predictions.json").read_text()
    where = "import detector; print(detector.__file__)"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert str(tmp_path).encode() in found.stdout


def test_citation_names_the_version_and_the_licence_of_the_package() -> None:
    import detector

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in declared
    assert f'license = "{citation["license"]}"' in declared
    assert citation["version"] == detector.__version__


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_project_files_are_valid_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_wheel_works_outside_the_repository(unpacked: Path, printed: dict[str, str]) -> None:
    assert Path(printed["file"]).is_relative_to(unpacked)
    assert {f"mish-{size}" for size in "nsmlx"} <= set(printed["completion"].replace("'", " ").split())
