"""The one downloader: what comes from a network is measured, checked and only then put in place.

Nothing here is called unless the user asks for a file by its name. Only https is spoken, also after a redirect; proxy
settings of the environment are not looked at; what has another length than published is never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from detector.errors import DetectorError
from detector.io.files import put_in_place

SCHEMES = ("https",)
MAX_REDIRECTS = 5
TIMEOUT_S = 30.0  # without a byte
_CHUNK_BYTES = 2**20
_REDIRECTS = (301, 302, 303, 307, 308)
_UNSATISFIABLE = 416  # the server has nothing at the place where the part ends


def fetch(
    url: str,
    target: Path,
    *,
    num_bytes: int,
    sha256: str | None = None,
    check: Callable[[Path], None] = lambda part: None,
    progress: Callable[[int], None] = lambda num_done: None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Downloads a file of known length, going on where an earlier attempt stopped.

    The bytes are collected in `target` + `.part`; only a file of the right length, whose checksum and content are as
    they should be, takes the name `target`.

    Args:
        url: where it is, https.
        target: where it goes; a file of the right length there is left as it is.
        num_bytes: its published length; not a byte more is accepted.
        sha256: its checksum in hexadecimal digits, where one is published.
        check: told of the complete part; raises a `DetectorError` where the content is not what it should be.
        progress: told how many bytes are there, after each piece.
        timeout_s: how long the server may be silent.

    Raises:
        DetectorError: another length, checksum or content, a refused redirect, a server or disk that fails; the message
            says whether the same command can go on from there.
    """
    if target.exists():
        found = target.stat().st_size
        if not target.is_file() or found != num_bytes:
            raise DetectorError(
                f"{target} is in the way: {num_bytes} bytes from {url} are wanted, it has {found}; move it"
            )
        return
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        num_done = part.stat().st_size if part.exists() else 0
        num_done = num_done if num_done <= num_bytes else 0
        _require_space(target.parent, num_bytes - num_done, url)
        if num_done < num_bytes:
            _receive(url, part, num_done, num_bytes, progress, timeout_s)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that is none
        kept = part.stat().st_size if part.exists() else 0
        raise DetectorError(
            f"{url}: the download broke off after {kept} of {num_bytes} bytes ({_said(error)}); the same command goes "
            "on from there"
        ) from error
    try:
        _require_checksum(part, url, sha256)
        check(part)
    except DetectorError:
        part.unlink()  # all of it is there and it is wrong: nothing to go on from
        raise
    put_in_place(part, target)


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server stopped answering"
    return " ".join(str(error).split()) or type(error).__name__


def _require_space(folder: Path, num_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DetectorError(f"{what}: {num_bytes} bytes are needed in {folder}, {free} are free; make room")


@contextlib.contextmanager
def _answer(url: str, num_done: int, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for a file from byte `num_done` on, after redirects."""
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise DetectorError(f"{url} is refused: only {' and '.join(SCHEMES)} is downloaded from")
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
        with contextlib.closing(connection):
            headers = {"Accept-Encoding": "identity", "User-Agent": "detector"}
            if num_done:
                headers["Range"] = f"bytes={num_done}-"
            connection.request("GET", parts._replace(scheme="", netloc="", fragment="").geturl() or "/", None, headers)
            response = connection.getresponse()
            if response.status not in _REDIRECTS:
                yield response
                return
            url = urljoin(url, response.headers.get("Location", ""))
    raise DetectorError(f"{url} is refused: it is the end of more than {MAX_REDIRECTS} redirects")


def _receive(
    url: str, part: Path, num_done: int, num_bytes: int, progress: Callable[[int], None], timeout_s: float
) -> None:
    """Adds to the part what is missing."""
    with _answer(url, num_done, timeout_s) as response:
        if num_done and response.status == _UNSATISFIABLE:
            part.unlink()
            return _receive(url, part, 0, num_bytes, progress, timeout_s)
        if response.status not in (200, 206):
            raise DetectorError(f"{url}: the server answers {response.status} {response.reason}; try again later")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DetectorError(f"{url}: the server sends it compressed, though the plain file was asked for")
        if response.status == 200:
            num_done = 0  # it sends all of it, whatever was asked for
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {num_done}-"):
            raise DetectorError(f"{url}: the server sends another part than the one asked for; remove {part}")
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) != num_bytes - num_done:
            found = int(announced) + num_done
            raise DetectorError(f"{url}: a file of {num_bytes} bytes is wanted, the server has one of {found}")
        with part.open("r+b" if num_done else "wb") as file:
            file.seek(num_done)
            while chunk := response.read1(_CHUNK_BYTES):  # what is there, so that silence loses nothing
                num_done += len(chunk)
                if num_done > num_bytes:
                    file.truncate(0)
                    raise DetectorError(f"{url}: a file of {num_bytes} bytes is wanted, the server sends more")
                file.write(chunk)
                progress(num_done)
            file.flush()
            os.fsync(file.fileno())
    if num_done < num_bytes:
        raise ConnectionError("the server closed the connection")


def _require_checksum(part: Path, url: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise DetectorError(f"{url}: a file of SHA-256 {sha256} is wanted, this one has {digest.hexdigest()}")
