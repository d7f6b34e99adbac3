"""Files of a folder and of all folders below it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def files_below(folder: Path, most: int | None = None) -> list[Path]:
    """Return the files in a folder and below it, sorted, at most so many; links to folders are followed.

    A folder is listed once, however many links lead to it. A link to a folder that contains the link, or the folder
    given, is not followed. Folders that cannot be read are left out, as by `Path.rglob`.
    """
    return sorted(itertools.islice(_walk(folder), most))


def hint_for_missing(path: Path) -> str:
    """Return the end of a message about a missing file.

    It names the file whose name differs in case only, or says that the path is a link that leads nowhere.
    """
    if os.path.islink(path):
        return "; it is a link that leads to no file"
    try:
        names = sorted(name for name in os.listdir(path.parent) if name.casefold() == path.name.casefold())
    except (OSError, ValueError):  # ValueError: a null byte in the name
        names = []
    return f"; did you mean {str(path.with_name(names[0]))!r}?" if names else "; check the path"


def absolute(path: Path) -> Path:
    """Return an absolute path without links; unlike `Path.resolve`, it does not raise for links that form a loop."""
    return Path(os.path.realpath(path))


def found_by_end(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the file or folder below one of some folders whose path is the longest end of a path of elsewhere.

    Of `/home/other/set/images/train` it is `images/train` in a folder that has it. None where there is none.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for folder in folders:
            path = folder.joinpath(*parts[start:])
            if os.path.exists(path):
                return path
    return None


def _walk(folder: Path) -> Iterator[Path]:
    root, listed = os.path.realpath(folder), set[str]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        own = os.path.realpath(parent)
        if own in listed:
            folders.clear()
            continue
        listed.add(own)
        folders[:] = sorted(name for name in folders if _is_followed(os.path.join(parent, name), own, root))
        for name in names:
            yield Path(parent, name)


def _is_followed(path: str, parent: str, root: str) -> bool:
    """Return false for a link to a folder that is listed anyway, or that contains the link or the root."""
    if not os.path.islink(path):
        return True
    target = os.path.realpath(path)
    return not (_is_within(target, root) or _is_within(root, target) or _is_within(parent, target))


def _is_within(path: str, folder: str) -> bool:
    """Return whether a real path is a folder or below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def user_cache() -> Path:
    """Return the user's cache of this package, `~/.cache/detector` or `detector` below `XDG_CACHE_HOME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detector"
