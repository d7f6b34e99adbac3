"""Downloads whose length, checksum and content are checked before the file takes its name.

Nothing here is called unless the user asks for a file by its name. Only https is used, also after a redirect. The proxy
of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) passes encrypted bytes on and cannot read or change them. A
file of another length than the published one is never kept.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import shutil
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from detector.errors import DetectorError
from detector.io.files import put_in_place, sha256_of_files

SCHEMES = ("https",)
MAX_REDIRECTS = 5
MAX_BYTES = 4_000_000_000  # of a file whose length is not published
TIMEOUT_S = 30.0  # without receiving a byte
_CHUNK_BYTES = 2**20
_REDIRECTS = (301, 302, 303, 307, 308)
_UNSATISFIABLE = 416  # the server has no bytes at the position where the partial file ends


def fetch(
    url: str,
    target: Path,
    *,
    num_bytes: int | None,
    sha256: str | None = None,
    check: Callable[[Path], None] = lambda part: None,
    progress: Callable[[int], None] = lambda num_done: None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Download a file of known length and resume an earlier attempt.

    The bytes are collected in a partial file, `target` + `.part`. It takes the name `target` only when its length,
    checksum and content are right.

    Args:
        url: https address of the file.
        target: path of the downloaded file; an existing file of the right length is left unchanged.
        num_bytes: published length, of which no byte more is accepted; None if it is not known: then the server's own
            statement of at most `MAX_BYTES` counts, and an interrupted download starts again.
        sha256: published checksum in hexadecimal digits, or None if there is none.
        check: called with the complete partial file; raises a `DetectorError` if the content is wrong.
        progress: called after each piece with the number of bytes received so far.
        timeout_s: seconds that the server may stay silent.

    Raises:
        DetectorError: the length, checksum or content is wrong, a redirect is refused, or the server or disk fails; the
            message says whether the same command resumes the download.
    """
    if target.exists():
        present = target.stat().st_size
        if not target.is_file() or present != (num_bytes or present):
            raise DetectorError(f"{target} exists: expected {num_bytes} bytes from {url}, got {present}; move it away")
        return
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        num_done = part.stat().st_size if part.exists() and num_bytes else 0
        num_done = num_done if num_done <= (num_bytes or 0) else 0
        _require_space(target.parent, (num_bytes or 0) - num_done, url)
        if num_bytes is None or num_done < num_bytes:
            _receive(url, part, num_done, num_bytes, progress, timeout_s)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not an address
        kept = part.stat().st_size if part.exists() else 0
        total = "an unknown number of" if num_bytes is None else num_bytes
        raise DetectorError(
            f"{url}: the download stopped after {kept} of {total} bytes ({_cause(error)}); run the same command "
            "again to resume it"
        ) from error
    try:
        _require_checksum(part, url, sha256)
        check(part)
    except DetectorError:
        part.unlink()  # it is complete and wrong, so there is nothing to resume
        raise
    put_in_place(part, target)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server stopped answering"
    return " ".join(str(error).split()) or type(error).__name__


def _require_space(folder: Path, num_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DetectorError(f"{what}: {num_bytes} bytes are needed in {folder}, {free} are free; make room")


@contextlib.contextmanager
def answer(
    url: str, num_done: int = 0, timeout_s: float = TIMEOUT_S, schemes: Sequence[str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Yield the response to a request for a file, after following redirects.

    Args:
        url: address of the file; a name and password in it are sent to its own host only.
        num_done: first byte that is asked for.
        timeout_s: seconds that the server may stay silent.
        schemes: schemes of the address and of redirects, `SCHEMES` by default.

    Raises:
        DetectorError: another scheme, or too many redirects.
        OSError: the server cannot be reached.
        http.client.HTTPException: it does not speak HTTP.
        ValueError: the text is no address.
    """
    schemes = schemes or SCHEMES
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname:
            raise DetectorError(f"{url} is refused: expected an address of {' or '.join(schemes)}")
        proxy = _proxy_of(parts)
        connection = _connection(parts, proxy, timeout_s)
        with contextlib.closing(connection):
            headers = {"Accept-Encoding": "identity", "User-Agent": "detector", **_login("Authorization", parts)}
            asked = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
            if proxy and parts.scheme == "http":
                asked = f"http://{parts.netloc.rpartition('@')[2]}{asked}"
                headers |= _login("Proxy-Authorization", proxy)
            if num_done:
                headers["Range"] = f"bytes={num_done}-"
            connection.request("GET", asked, None, headers)
            response = connection.getresponse()
            if response.status not in _REDIRECTS:
                yield response
                return
            url = urljoin(url, response.headers.get("Location", ""))
    raise DetectorError(f"{url} is refused: expected at most {MAX_REDIRECTS} redirects, got more")


def _proxy_of(parts: SplitResult) -> SplitResult | None:
    """Return the proxy that the environment or the system sets for an address, or None."""
    named = getproxies().get(parts.scheme)
    if not named or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        shown = f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
        raise DetectorError(f"{parts.scheme.upper()}_PROXY: expected a proxy such as http://HOST:PORT, got {shown}")
    return proxy


def _connection(parts: SplitResult, proxy: SplitResult | None, timeout_s: float) -> http.client.HTTPConnection:
    """Return a connection to the host of an address or to its proxy; https goes through a tunnel to the host."""
    hostname, port = parts.hostname or "", parts.port
    through = (hostname, port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
    if parts.scheme != "https":
        return http.client.HTTPConnection(*through, timeout=timeout_s)
    context = ssl.create_default_context()
    connection = http.client.HTTPSConnection(*through, timeout=timeout_s, context=context)
    if proxy is not None:
        connection.set_tunnel(hostname, port or 443, _login("Proxy-Authorization", proxy))
    return connection


def _login(header: str, parts: SplitResult) -> dict[str, str]:
    """Return the header with the name and password of an address, or none (RFC 7617)."""
    if parts.username is None:
        return {}
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {header: f"Basic {base64.b64encode(secret).decode()}"}


@contextlib.contextmanager
def opened(
    url: str, name: str, schemes: Sequence[str], timeout_s: float = TIMEOUT_S
) -> Iterator[http.client.HTTPResponse]:
    """Yield the response of a web server; messages call the address `name`, which holds no password.

    Raises:
        DetectorError: the server cannot be reached, does not speak HTTP, or falls silent inside the block.
    """
    try:
        with answer(url, timeout_s=timeout_s, schemes=schemes) as response:
            yield response
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DetectorError(f"{name} cannot be read: {_cause(error)}; check the address") from error


def _receive(
    url: str, part: Path, num_done: int, num_bytes: int | None, progress: Callable[[int], None], timeout_s: float
) -> None:
    """Append the missing bytes to the partial file."""
    with answer(url, num_done, timeout_s) as response:
        if num_done and response.status == _UNSATISFIABLE:
            part.unlink()
            return _receive(url, part, 0, num_bytes, progress, timeout_s)
        if response.status not in (200, 206):
            raise DetectorError(f"{url}: the server answers {response.status} {response.reason}; try again later")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DetectorError(f"{url}: expected the plain file, got a compressed one from the server")
        if response.status == 200:
            num_done = 0  # the server sends the whole file despite the range
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {num_done}-"):
            raise DetectorError(
                f"{url}: expected the bytes from {num_done} on, got another range from the server; remove {part}"
            )
        announced = response.headers.get("Content-Length", "")
        if num_bytes is None:
            num_bytes = int(announced) if announced.isdecimal() else 0
            if not 0 < num_bytes <= MAX_BYTES:
                raise DetectorError(f"{url}: expected a file of 1 to {MAX_BYTES} bytes, got {announced or 'no length'}")
            _require_space(part.parent, num_bytes, url)
        if announced.isdecimal() and int(announced) != num_bytes - num_done:
            length = int(announced) + num_done
            raise DetectorError(f"{url}: expected a file of {num_bytes} bytes, got one of {length} from the server")
        with part.open("r+b" if num_done else "wb") as file:
            file.seek(num_done)
            while chunk := response.read1(
                _CHUNK_BYTES
            ):  # returns as soon as bytes arrive, so that a silent server loses none of them
                num_done += len(chunk)
                if num_done > num_bytes:
                    file.truncate(0)
                    raise DetectorError(f"{url}: expected a file of {num_bytes} bytes, got more from the server")
                file.write(chunk)
                progress(num_done)
            file.flush()
            os.fsync(file.fileno())
    if num_done < num_bytes:
        raise ConnectionError("the server closed the connection")


def _require_checksum(part: Path, url: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    if (found := sha256_of_files([part])) != sha256:
        raise DetectorError(f"{url}: expected a file with SHA-256 {sha256}, got {found}")
