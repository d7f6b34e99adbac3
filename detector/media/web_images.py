"""Pictures on web servers: told from streams by the type of content that the server names, and read whole."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager

from detector.errors import DetectorError, MediaError
from detector.io.download import answer

WEB_SCHEMES = ("http", "https")
_TIMEOUT_S = 10.0  # without a byte, as for streams
_MAX_S = 60.0  # for one picture: a server that sends single bytes would otherwise hold the run
_MAX_BYTES = 2**29  # as for an image on stdin
_CHUNK_BYTES = 2**20


def kind_of_content(url: str) -> str | None:
    """Ask a web server for the type of content behind an address.

    Returns:
        The first part of the media type: `image` for a picture, `multipart` for a stream of images, `video`, ...; None
        if the server cannot be reached or refuses, whose reason the reader of the source then tells.
    """
    try:
        with _answer(url) as response:
            return response.headers.get_content_maintype() if response.status == 200 else None
    except MediaError:
        return None


def fetch_picture(url: str, name: str) -> bytes:
    """Return the bytes of a picture on a web server.

    Args:
        url: its address, of http or https.
        name: the address without password, for messages.

    Raises:
        MediaError: the server cannot be reached, refuses, is too slow or sends too much.
    """
    deadline_s = time.monotonic() + _MAX_S
    with _answer(url, name) as response:
        if response.status != 200:
            raise MediaError(
                f"{name} cannot be read: the server answers {response.status} {response.reason}; check the address"
            )
        encoded = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):
            encoded += chunk
            if len(encoded) > _MAX_BYTES:
                raise MediaError(f"{name} cannot be read: it has more bytes than the limit of {_MAX_BYTES}")
            if time.monotonic() > deadline_s:
                raise MediaError(f"{name} cannot be read: it did not arrive within {_MAX_S:g} s; try again later")
        if (announced := response.length) is not None and announced > 0:
            raise MediaError(f"{name} cannot be read: the server closed the connection early; try again later")
    return bytes(encoded)


@contextmanager
def _answer(url: str, name: str = "") -> Iterator[http.client.HTTPResponse]:
    try:
        with answer(url, timeout_s=_TIMEOUT_S, schemes=WEB_SCHEMES) as response:
            yield response
    except MediaError:
        raise
    except (OSError, http.client.HTTPException, ValueError, DetectorError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise MediaError(f"{name} cannot be read: {cause}; check the address") from error
