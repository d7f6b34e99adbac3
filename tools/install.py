"""Install the package and its development tools into the Python that runs this file; `make` runs it.

    .venv/bin/python tools/install.py            # the exact versions of requirements/locked.txt
    .venv/bin/python tools/install.py lowest     # the lowest versions that pyproject.toml allows
    .venv/bin/python tools/install.py newest     # the newest versions that pyproject.toml allows
    .venv-docs/bin/python tools/install.py docs  # MkDocs alone, the extra `docs`; `make docs` runs this

The files of requirements/ are for Linux on x86_64. Another system gets the newest versions in place of the locked ones.
Only the standard library is imported, since nothing is installed yet.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLATFORM = "linux-x86_64"
# Minor versions of Python 3 that the files of requirements/ are made for: see `make locks`.
PYTHONS = {"locked": range(10, 15), "lowest": range(10, 11)}
FROM_RANGES = ["--editable", ".[dev]"]


def has_lock(versions: str, minor: int, platform: str) -> bool:
    """Return True if requirements/ holds exact versions for Python 3.`minor` on a platform of `sysconfig`."""
    return versions in PYTHONS and minor in PYTHONS[versions] and platform == PLATFORM


def installations(versions: str, minor: int, platform: str) -> list[list[str]]:
    """Return the arguments of each call of `pip install`, in order.

    The documentation is built without the package and its dependencies, so `docs` installs only that extra.

    Raises:
        LookupError: The lowest versions are asked for where requirements/ does not hold them.
    """
    if versions == "docs":
        extra = re.search(r"^docs = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        return [re.findall(r'"([^"]+)"', extra[1] if extra else "")]
    if has_lock(versions, minor, platform):
        # Wheels only and no isolated build: nothing is fetched that the file does not name with its hash.
        locked = ["--require-hashes", "--only-binary=:all:", "--requirement", f"requirements/{versions}.txt"]
        return [locked, ["--no-deps", "--no-build-isolation", "--editable", "."]]
    if versions == "lowest":
        supported = " or ".join(f"3.{each}" for each in PYTHONS[versions])
        raise LookupError(f"lowest versions: expected Python {supported} on {PLATFORM}, got 3.{minor} on {platform}")
    return [["--upgrade", "--upgrade-strategy=eager", *FROM_RANGES] if versions == "newest" else FROM_RANGES]


def main(words: Sequence[str]) -> int:
    """Install the versions that the first word names; return 1 with a message if pip fails."""
    versions = words[0] if words else "locked"
    if versions not in ("locked", "lowest", "newest", "docs") or len(words) > 1:
        print(f"install: expected locked, lowest, newest or docs, got {' '.join(words)}", file=sys.stderr)
        return 2
    here = (sys.version_info.minor, sysconfig.get_platform())
    try:
        calls = installations(versions, *here)
    except LookupError as error:
        print(f"install: {error}; name it as in `make PYTHON=python3.10 lowest`", file=sys.stderr)
        return 1
    if versions == "locked" and not has_lock(versions, *here):
        print(f"No locked versions for Python 3.{here[0]} on {here[1]}: installing what pyproject.toml allows")
    for arguments in calls:
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], cwd=ROOT, check=False)
        if done.returncode:
            print(
                "make: pip could not install the dependencies: check the connection to the package index "
                "and the free disk space, then run make again",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
