"""Contents of a file or folder that may be a data set: names, first bytes and keys, each looked at once."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from detector.io.folders import files_below
from detector.media.images import IMAGE_SUFFIXES

MOST_FILES = 2_000_000  # COCO has 123,000 images; a folder with more is a disk, not a data set
_HEAD_BYTES = 65_536
_MOST_JSON_BYTES = 2**24  # larger JSON files are judged by their first bytes alone
_NUM_SAMPLES = 5
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)


class PathContents:
    """A path and what is below it.

    Names are relative to the path, with slashes, sorted; a file has one name, its own. Hidden files are left out.

    Attributes:
        path: the absolute path.
        is_folder: true for a folder.
        root: the folder that names are relative to.
        names: names of all files.
        images: those of image files, by their suffix.
        given_images: the folder of the images of an annotation file, where the user names it.
    """

    given_images: Path | None = None

    def __init__(self, path: Path, names: Sequence[str] | None = None) -> None:
        """List a path; `names` are given where they are known."""
        self.path = path.absolute()
        self.is_folder = self.path.is_dir()
        self.root = self.path if self.is_folder else self.path.parent
        if names is None:
            found = files_below(self.path, MOST_FILES) if self.is_folder else [self.path]
            names = [file.relative_to(self.root).as_posix() for file in found]
            names = [name for name in names if not (self.is_folder and _is_hidden(name))]
        self.names = tuple(names)
        self.images = tuple(name for name in self.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)
        self._heads: dict[str, str] = {}

    def below(self, folder: str) -> PathContents:
        """Return the contents of a subfolder."""
        start = f"{folder}/"
        return PathContents(self.path / folder, [n.removeprefix(start) for n in self.names if n.startswith(start)])

    def ending(self, *suffixes: str) -> list[str]:
        """Return the names that end in a suffix, such as `.xml`, in any case."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def head(self, name: str) -> str:
        """Return the first 64 KiB of a file as text, with odd bytes replaced; empty where it cannot be read."""
        if name not in self._heads:
            try:
                with (self.root / name).open("rb") as file:
                    self._heads[name] = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")
            except (OSError, ValueError):
                self._heads[name] = ""
        return self._heads[name]

    def samples(self, names: Sequence[str]) -> list[str]:
        """Return a few names, spread over all, by which a format is judged."""
        return list(names[:: max(1, len(names) // _NUM_SAMPLES)][:_NUM_SAMPLES])

    def keys(self, name: str) -> tuple[frozenset[str], ...]:
        """Return the keys in the first 64 KiB of a JSON file by depth: those of the outermost objects first.

        Lists do not count as depth: the keys of `[{"image": ..., "boxes": [{"x": 1}]}]` are {image, boxes}, {x}.
        """
        levels: list[set[str]] = []
        depth, text = 0, ""
        for match in _TOKEN.finditer(self.head(name)):
            token = match[0]
            if token == "{":
                depth += 1
                levels += [set()] * (depth > len(levels))
            elif token == "}":
                depth = max(0, depth - 1)
            elif token == ":" and text and depth:
                levels[depth - 1].add(text[1:-1])
            text = token if token[0] == '"' else ""
        return tuple(map(frozenset, levels))

    def json(self, name: str) -> object:
        """Return the content of a JSON file of at most 16 MiB; None for a larger one and one that is not JSON."""
        return _json_of(self.root / name)


def shown_path(path: Path) -> str:
    """Return a path as a message shows it: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, num_bytes: int, changed_ns: int) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def _json_of(path: Path) -> object:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return _parsed(path, stat.st_size, stat.st_mtime_ns) if stat.st_size <= _MOST_JSON_BYTES else None


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
