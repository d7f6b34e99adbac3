"""The Dockerfiles: what can be checked without a daemon."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from detector.cli.main import build_parser

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "containers").glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the words and arguments of a Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_container_serves_as_a_user_without_rights(path: Path) -> None:
    given = instructions(path)
    words = [word for word, _ in given]
    last = dict(given)
    assert set(words) <= {"FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert int(last["USER"]) > 0
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert not any(word in ("RUN", "COPY") for word in words[words.index("USER") :])
    assert all(
        re.match(r"python:\d\.\d+-slim-\w+( AS build)?$", argument) for word, argument in given if word == "FROM"
    )
    assert not any("curl" in argument or "wget" in argument for _, argument in given)
    command = [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]
    assert command[:2] == ["detector", "serve"]
    parsed = build_parser(command[1:]).parse_args(command[1:])
    assert (parsed.host, str(parsed.port)) == ("0.0.0.0", last["EXPOSE"])
    assert f"127.0.0.1:{parsed.port}/healthz" in last["HEALTHCHECK"]


@pytest.mark.skipif(tomllib is None, reason="Python 3.10 has no reader of TOML")
def test_container_installs_the_bounds_and_files_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    cpu = (ROOT / "containers/cpu.Dockerfile").read_text(encoding="utf-8")
    for requirement in project["project"]["dependencies"]:
        if requirement.startswith("torch"):
            assert f'"{requirement}"' in cpu
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for source in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]:
        assert any(Path(source).match(pattern) or source == pattern for pattern in kept), source


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="there is no hadolint")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_linter_of_dockerfiles_finds_nothing(path: Path) -> None:
    done = subprocess.run(["hadolint", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
