"""Names of files of results: what an image or a video is called there, never twice."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from detector.media.sources import ImageSource

_MAX_STREAM_STEM = 80
_MAX_STEM_BYTES = 200  # file systems take 255 for a name; numbers and a suffix come behind


class FileNames:
    """File names for what is written of each image: never twice, never that of a source in the folder of results."""

    def __init__(self, folder: Path, sources: Iterable[Path] = ()) -> None:
        """Takes the folder of results and the files of all sources."""
        inside = folder.resolve()
        self._taken = {key_of(path.stem) for path in sources if path.resolve().is_relative_to(inside)}

    def of(self, source: ImageSource) -> str:
        """A new name without suffix: that of the source's file, with a number behind it where it is taken."""
        name = Path(source.name if source.frame is None else source.frame.video.name).stem
        return self.free(name, "" if source.frame is None else f"_{source.frame.index:06d}")

    def free(self, stem: str, end: str = "") -> str:
        """A new name without suffix: a stem that file systems take, its end, and a number where that is taken."""
        stem = stem.strip(". ") or "image"
        while len(os.fsencode(stem)) > _MAX_STEM_BYTES:
            stem = stem[:-1]
        number, name = 1, stem + end
        while key_of(name) in self._taken:
            number += 1
            name = f"{stem}{end}_{number}"
        self._taken.add(key_of(name))
        return name


def stem_of(name: str) -> str:
    """A file name for a video: that of its file, or its address in letters that every system takes."""
    if "://" in name or name.startswith("camera:"):
        return re.sub(r"[^\w.-]+", "_", name.partition("://")[2] or name).strip("_.")[:_MAX_STREAM_STEM] or "stream"
    return Path(name).stem


def key_of(stem: str) -> str:
    """Equal for names that some file system takes for one: macOS and Windows ignore case, macOS composes letters."""
    return unicodedata.normalize("NFC", stem).casefold()
