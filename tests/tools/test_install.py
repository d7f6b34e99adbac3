"""The installation of `make`, and the files of exact versions that it reads."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# The package itself, and the extras that `make` does not install into .venv: for logs, Ray, phones and documents.
NOT_LOCKED = (
    *("detector-toolkit", "mlflow-skinny", "ncnn", "pnnx", "ray", "tensorboard", "wandb"),
    *("ai-edge-litert", "fsspec", "litert-torch", "mkdocs-material", "mkdocstrings", "s3fs"),
)
sys.path.insert(0, str(ROOT / "tools"))

import install  # noqa: E402

LOCKED, LOWEST = ROOT / "requirements/locked.txt", ROOT / "requirements/lowest.txt"
LINUX = "linux-x86_64"
EDITABLE = ["--no-deps", "--no-build-isolation", "--editable", "."]


def requirements(path: Path) -> list[Requirement]:
    """Return the requirements of a file of exact versions."""
    text = path.read_text("utf-8")
    return [Requirement(line.rstrip(" \\")) for line in text.splitlines() if line[0] not in "# "]


def declared() -> dict[str, Requirement]:
    """Return the requirements of pyproject.toml for users and for development, by name."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    words = re.findall(r'"([A-Za-z][\w.-]*[<>=][^"]*)"', text[text.index("\ndependencies = [") : text.index("[tool.")])
    return {canonicalize_name(each.name): each for each in map(Requirement, words)}


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_locked_versions_are_installed_with_hashes_and_without_isolated_build(minor: int) -> None:
    locked, editable = install.installations("locked", minor, LINUX)
    assert locked == ["--require-hashes", "--only-binary=:all:", "--requirement", "requirements/locked.txt"]
    assert editable == EDITABLE


@pytest.mark.parametrize(("minor", "platform"), [(15, LINUX), (12, "macosx-14.0-arm64"), (11, "linux-aarch64")])
def test_system_without_locked_versions_gets_ranges(minor: int, platform: str) -> None:
    assert install.installations("locked", minor, platform) == [["--editable", ".[dev]"]]


def test_newest_versions_are_installed_by_ranges() -> None:
    (only,) = install.installations("newest", 13, LINUX)
    assert only == ["--upgrade", "--upgrade-strategy=eager", "--editable", ".[dev]"]


def test_documentation_needs_the_extra_for_it_alone() -> None:
    assert install.installations("docs", 12, LINUX)[0][:2] == [
        "mkdocs-material>=9.6,<10",
        "mkdocstrings[python]>=1,<2",
    ]


@pytest.mark.parametrize(("minor", "platform"), [(11, LINUX), (10, "win-amd64")])
def test_lowest_versions_for_another_system_are_refused(minor: int, platform: str) -> None:
    assert install.installations("lowest", 10, LINUX)[0][-1] == "requirements/lowest.txt"
    with pytest.raises(LookupError, match=rf"expected Python 3\.10 on {LINUX}, got 3\.{minor} on {platform}"):
        install.installations("lowest", minor, platform)


def test_unknown_word_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["oldest"]) == 2
    assert capsys.readouterr().err == "install: expected locked, lowest, newest or docs, got oldest\n"


def test_failure_of_pip_stops_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def failing(words: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(words)
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(subprocess, "run", failing)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "macosx-14.0-arm64")
    assert install.main([]) == 1
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".[dev]"]]
    captured = capsys.readouterr()
    assert captured.out.startswith(f"No locked versions for Python 3.{sys.version_info.minor} on macosx-14.0-arm64")
    assert "pip could not install the dependencies" in captured.err


@pytest.mark.parametrize("path", [LOCKED, LOWEST], ids=lambda path: path.name)
def test_every_version_is_exact_with_hashes_and_no_index_is_named(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^ *-(?!-hash=)", text, re.MULTILINE)
    blocks = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert all(re.match(r"[\w.-]+==[\w.]+( ; .+)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n?)+$", b) for b in blocks)


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_locked_versions_keep_the_declared_bounds(minor: int) -> None:
    environment = {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "platform_python_implementation": "CPython",
    }
    chosen = [each for each in requirements(LOCKED) if not each.marker or each.marker.evaluate(environment)]
    versions: dict[str, str] = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in chosen}
    assert len(versions) == len(chosen)
    for name, wanted in declared().items():
        if name not in NOT_LOCKED:
            assert wanted.specifier.contains(versions[name]), name
    assert {name for name in versions if name.startswith("nvidia-cu")}  # PyPI's torch for Linux runs on CUDA


def test_lowest_file_holds_the_lower_bounds() -> None:
    versions: dict[str, SpecifierSet] = {canonicalize_name(each.name): each.specifier for each in requirements(LOWEST)}
    for name, wanted in declared().items():
        if name not in NOT_LOCKED:
            (bound,) = (each.version for each in wanted.specifier if each.operator == ">=")
            (exact,) = (each.version for each in versions[name])
            assert exact == bound or exact.startswith(f"{bound}."), name


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    for name, wanted in declared().items():
        assert {">=", "<"} <= {each.operator for each in wanted.specifier}, name
