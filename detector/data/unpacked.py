"""Archives of data sets, unpacked once into the user's cache; nothing is written beside them."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from detector.data.path_contents import shown_path
from detector.errors import DatasetError, DetectorError
from detector.io.announcements import announce
from detector.io.archive import unpack
from detector.io.folders import user_cache

_MOST_BYTES = 2**38  # 256 GB unpacked; the free space of the disk is checked as well
_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def cache_folder() -> Path:
    """Return the user's folder of unpacked archives, `~/.cache/detector/data` or below `XDG_CACHE_HOME`."""
    return user_cache() / "data"


def is_archive(path: Path) -> bool:
    """Tell whether the name of a file is that of an archive that can be unpacked."""
    return path.is_file() and path.name.lower().endswith(_SUFFIXES)


def unpacked(archive: Path) -> Path:
    """Return the folder with the content of an archive; it is unpacked if this version of it was not before.

    Raises:
        DatasetError: the archive is damaged, has links or names that lead out of the folder, or does not fit.
    """
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    folder = cache_folder() / f"{archive.name.partition('.')[0][:60]}-{key.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    place = shown_path(archive)
    with archive.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DatasetError(f"{place}: expected an archive, got a web page; download it again")
    if not zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
        raise DatasetError(f"{place} cannot be unpacked, it is damaged or no archive; download it again")
    announce(f"{place}: unpacking to {folder}, which may be deleted at any time")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    except OSError as error:
        raise DatasetError(f"{folder.parent}: cannot be written, {error.strerror}; set XDG_CACHE_HOME") from error
    try:
        unpack(archive, partial, max_bytes=_MOST_BYTES)
        partial.rename(folder)
    except DetectorError as error:
        reason = str(error).replace(str(archive), place)
        raise DatasetError(re.sub("; remove it$", "; download it again", reason)) from error
    except OSError:  # another process was faster
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
