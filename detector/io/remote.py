"""Files at s3://, gs://, hf:// and https://, opened only below addresses that the user has permitted.

A path that `detector.io.addresses.address_of` knows stands for a remote file. Nothing is opened unless `permit` was
called in this process for the address or one above it. Objects are kept in a folder with a limit of its size, each with
its SHA-256; one that is damaged there is fetched again. s3, gs and hf are the file systems of fsspec, which take
credentials from their own environment variables and files; https is that of `detector.io.download`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import math
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from detector.errors import ConfigError, DatasetError, DetectorError, MediaError
from detector.io.addresses import PACKAGES, WEB, address_of, require_plain_address, without_secrets
from detector.io.download import answer
from detector.io.files import sha256_of_files, write_whole

_MOST_BYTES = 2**30  # of an object that is read into memory
_CHUNK_BYTES = 2**20
_ATTEMPTS, _FIRST_WAIT_S = 4, 0.5  # waits of 0.5, 1 and 2 s
_MAGIC = b"DETREM1\n"
_DIGEST_BYTES = 32
# A process lists the cache after it has written this share of the limit, and makes room down to that share.
_SHARE_BETWEEN_LISTINGS, _SHARE_KEPT = 64, 7 / 8
_TOUCHED_S, _LEFTOVER_S, _KEPT_COPY_S = 60, 3600, 24 * 3600
_COPIES = "annotations"

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteCache:
    """Folder of fetched objects.

    Attributes:
        folder: the folder, shared by all processes of a machine and created when it is needed.
        limit_bytes: its largest size. Up to eight processes that write keep it; each further one may exceed it by 1/64.
    """

    folder: Path
    limit_bytes: int


_permitted: dict[str, RemoteCache | None] = {}
_room_bytes: dict[Path, int] = {}  # that this process may write before it lists the folder again


class PermittedAddresses:
    """The addresses that this process may open; a process that unpickles the object may open them too."""

    def __init__(self) -> None:
        self._permitted = dict(_permitted)

    def __setstate__(self, state: dict[str, dict[str, RemoteCache | None]]) -> None:
        self.__dict__.update(state)
        _permitted.update(self._permitted)


def permit(path: str | Path, cache: RemoteCache | None) -> None:
    """Permit this process to open an address and all below it, with a cache or none. Only the user's own words may.

    Raises:
        ConfigError: the address has a password or query, or the package for it is missing.
    """
    address = address_of(path)
    if address is None:
        return
    require_plain_address(str(path))
    scheme = address.partition(":")[0]
    if scheme != WEB:
        _file_system(scheme, os.getpid())
    _permitted[address.rstrip("/")] = cache


def may_open(path: Path) -> bool:
    """Tell whether a path stands for a remote file or folder that this process may open."""
    return bool(_permitted) and _root_of(path) is not None


def _root_of(path: Path) -> str | None:
    """Return the permitted address that a path is or lies below, else None."""
    address = address_of(path)
    if address is None or ".." in path.parts:
        return None
    holders = (address[:end] for end in range(len(address), 0, -1) if end == len(address) or address[end] == "/")
    return next((holder for holder in holders if holder in _permitted), None)


def read_remote(path: Path) -> bytes | None:
    """Return the bytes of a remote file, from the cache if they are there; None where the path is not permitted.

    Raises:
        MediaError: it cannot be read after several attempts, or is too large.
    """
    root = _root_of(path) if _permitted else None
    address = address_of(path)
    if root is None or address is None:
        return None
    cache = _permitted[root]
    kept = None if cache is None else _kept(_entry_of(cache, address))
    if kept is not None:
        return kept
    content = _tried(address, lambda: _content(address), MediaError)
    if len(content) > _MOST_BYTES:
        raise MediaError(f"{address} cannot be read: it has more bytes than the limit of {_MOST_BYTES}")
    if cache is not None:
        _keep(cache, address, content)
    return content


def names_in(folder: Path) -> set[str] | None:
    """Return the names of the files in a permitted folder; None where the server cannot list it.

    Raises:
        DatasetError: it cannot be listed after several attempts.
    """
    address = address_of(folder) or ""
    scheme = address.partition(":")[0]
    if scheme == WEB:
        return None
    system = _file_system(scheme, os.getpid())

    def listed() -> set[str]:
        try:
            found = system.ls(address, detail=True)
        except FileNotFoundError:  # an empty folder does not exist
            return set()
        return {entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file"}

    return _tried(address, listed, DatasetError)


def files_below(folder: Path) -> list[Path]:
    """Return the files in a permitted folder and below it, or the file itself, sorted.

    Raises:
        MediaError: it cannot be listed after several attempts.
    """
    address = address_of(folder) or ""
    scheme = address.partition(":")[0]
    system = _file_system(scheme, os.getpid())
    found: list[str] = _tried(address, lambda: list(system.find(address)), MediaError)
    return sorted(Path(f"{scheme}:/{name.lstrip('/')}") for name in found)


def local_copy(path: Path) -> Path:
    """Return a copy of a permitted file in the cache, which is fetched if the one there is another version or damaged.

    Raises:
        DatasetError: it cannot be fetched, or the disk refuses.
    """
    address, root = address_of(path), _root_of(path)
    cache = None if root is None else _permitted[root]
    if address is None or cache is None:
        raise ValueError(f"local_copy: expected a permitted address with a cache, got {without_secrets(str(path))}")

    def copied() -> Path:
        with _opened(address) as (version, num_bytes, file):
            key = hashlib.sha256(f"{address}\n{version}".encode()).hexdigest()[:32]
            own = cache.folder / _COPIES / key / Path(address).name
            if not _is_whole(own):
                _copy(file, own, num_bytes, cache)
            return own

    return _tried(address, copied, DatasetError)


class _ServerError(Exception):
    """Fault of a server, in words without an address."""


# --- servers ---------------------------------------------------------------------------------------------------------


def _tried(address: str, action: Callable[[], Result], kind: type[DetectorError]) -> Result:
    """Return the result of an action on a server, which is repeated after a failure that may pass.

    The exceptions of libraries may hold signed addresses and are not shown.

    Raises:
        DetectorError: of the kind given; it failed.
    """
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            return action()
        except DetectorError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            reason = "there is no such file; check the address"
            break
        except Exception as error:  # each library has classes of its own
            name = str(error) if isinstance(error, _ServerError) else type(error).__name__
            if isinstance(error, PermissionError) or "Credential" in name:
                reason = f"access is denied ({name}); check the credentials of the environment"
                break
            reason = f"the server failed {_ATTEMPTS} times, the last time with {name}; try again later"
    raise kind(f"{address} cannot be read: {reason}") from None


@functools.lru_cache(maxsize=16)
def _file_system(scheme: str, process_id: int) -> Any:
    """Return the file system of a scheme for a process; threads share it.

    Raises:
        ConfigError: its package is missing.
    """
    try:
        # Listings are used once, and may have millions of names.
        return importlib.import_module("fsspec").filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        package = PACKAGES[scheme]
        extra = "'detector-toolkit[remote]'" if scheme == "s3" else package
        raise ConfigError(
            f"{scheme}://: {package} cannot be imported ({error}); install it with: pip install {extra}"
        ) from error


def _content(address: str) -> bytes:
    """Return the bytes of a remote file, at most one more than the limit."""
    scheme = address.partition(":")[0]
    if scheme == WEB:
        with _opened(address) as (_, num_bytes, file):
            content: bytes = file.read(_MOST_BYTES + 1)
            if num_bytes is not None and len(content) < min(num_bytes, _MOST_BYTES):
                raise _ServerError("an answer that ended early")
            return content
    fetched: bytes = _file_system(scheme, os.getpid()).cat_file(address, start=0, end=_MOST_BYTES + 1)
    return fetched


@contextlib.contextmanager
def _opened(address: str) -> Iterator[tuple[str, int | None, Any]]:
    """Yield what tells the version of a remote file, its length or None, and the open file."""
    scheme, _, rest = address.partition("://")
    if scheme == WEB:
        with contextlib.ExitStack() as stack:
            try:
                response = stack.enter_context(answer(f"{WEB}://{quote(rest, safe='/:%')}", schemes=(WEB,)))
            except DetectorError:  # its message has the address of the redirect, which may be signed
                raise _ServerError("a redirect that is refused") from None
            if response.status in (404, 410):
                raise FileNotFoundError
            if response.status in (401, 403):
                raise PermissionError
            if response.status != 200:
                raise _ServerError(f"status {response.status}")
            version = [response.headers.get(key, "") for key in ("ETag", "Last-Modified", "Content-Length")]
            yield repr(version), response.length, response
        return
    system = _file_system(scheme, os.getpid())
    about = system.info(address)
    keys = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "updated", "mtime", "created", "size")
    with system.open(address, "rb", block_size=8 * _CHUNK_BYTES) as file:
        yield repr([str(about.get(key)) for key in keys]), about.get("size"), file


# --- cache -----------------------------------------------------------------------------------------------------------


def _entry_of(cache: RemoteCache, address: str) -> Path:
    name = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
    return cache.folder / name[:2] / f"{name[2:32]}.object"


def _kept(entry: Path) -> bytes | None:
    """Return the content of an entry; None where it is missing or damaged."""
    try:
        with entry.open("rb") as file:
            status, stored = os.fstat(file.fileno()), file.read()
    except OSError:
        return None
    start = len(_MAGIC) + _DIGEST_BYTES
    content = stored[start:]
    if stored[:start] != _MAGIC + hashlib.sha256(content).digest():
        return None
    _touch(entry, status)
    return content


def _touch(path: Path, status: os.stat_result) -> None:
    """Note that a file was used; the system may not do so."""
    if time.time() - status.st_atime > _TOUCHED_S:
        with contextlib.suppress(OSError):  # it was removed meanwhile, or belongs to someone else
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))


def _keep(cache: RemoteCache, address: str, content: bytes) -> None:
    """Write an entry; warn once where the disk refuses."""
    if len(content) > cache.limit_bytes // 2:
        return
    entry, header = _entry_of(cache, address), _MAGIC + hashlib.sha256(content).digest()
    try:
        _make_room(cache, len(header) + len(content))
        entry.parent.mkdir(parents=True, exist_ok=True)

        def write(file: BinaryIO) -> None:
            file.write(header)
            file.write(content)

        write_whole(entry, write, durable=False)
    except OSError as error:
        warnings.warn(
            f"data.remote_cache: {cache.folder} cannot hold more files ({error.strerror}); they are fetched each time",
            RuntimeWarning,
            stacklevel=2,
        )


def _make_room(cache: RemoteCache, num_bytes: int) -> None:
    """Remove the files of the cache that were not used for longest where it would grow beyond its limit."""
    _room_bytes[cache.folder] = _room_bytes.get(cache.folder, 0) - num_bytes
    if _room_bytes[cache.folder] >= 0:
        return
    listed = sorted(_listed(cache.folder), reverse=True)
    excess = sum(size for _, size, _ in listed) + num_bytes - int(cache.limit_bytes * _SHARE_KEPT)
    for idle_s, size, path in listed:
        if idle_s < math.inf and (excess <= 0 or idle_s < 0):
            break
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size
    _room_bytes[cache.folder] = cache.limit_bytes // _SHARE_BETWEEN_LISTINGS


def _listed(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield the seconds since the last use, the size and the path of each file of a cache.

    The seconds are negative for a file in use, and infinite for one that a killed process has left.
    """
    now_s = time.time()
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except OSError:  # another process was faster
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        idle_s = now_s - status.st_atime
        if path.suffix == ".tmp":
            idle_s = math.inf if now_s - status.st_mtime > _LEFTOVER_S else -1.0
        elif path.relative_to(folder).parts[0] == _COPIES and idle_s < _KEPT_COPY_S:  # a run may still read it
            idle_s = -1.0
        yield idle_s, status.st_size, path


def _digest_file(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.sha256")


def _is_whole(copy: Path) -> bool:
    """Tell whether a copy is there and has its SHA-256."""
    try:
        expected = _digest_file(copy).read_text("ascii")
        _touch(copy, copy.stat())
        return sha256_of_files([copy]) == expected
    except (OSError, UnicodeDecodeError):
        return False


def _chunk_of(file: Any) -> bytes:
    """Return the next bytes of an open remote file."""
    try:
        chunk: bytes = file.read(_CHUNK_BYTES)
    except OSError as error:
        raise _ServerError(type(error).__name__) from None
    return chunk


def _copy(file: Any, target: Path, num_bytes: int | None, cache: RemoteCache) -> None:
    """Write an open remote file to a path with its SHA-256 beside it."""
    digest = hashlib.sha256()

    def write(out: BinaryIO) -> None:
        num_done = 0
        while chunk := _chunk_of(file):
            out.write(chunk)
            digest.update(chunk)
            num_done += len(chunk)
        if num_bytes is not None and num_done < num_bytes:
            raise _ServerError("an answer that ended early")
        # An index of the file is known by its time, so that all processes that fetch one version give it the same.
        out.flush()
        os.utime(out.name, ns=(time.time_ns(), 0))

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _make_room(cache, num_bytes or 0)
        write_whole(target, write)
        text = digest.hexdigest().encode()
        write_whole(_digest_file(target), lambda out: out.write(text))
    except OSError as error:
        raise DatasetError(
            f"data.remote_cache: {cache.folder} cannot hold {target.name}: {error.strerror}; check the disk, or name "
            "another folder"
        ) from error
