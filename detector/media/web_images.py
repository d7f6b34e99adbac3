"""Pictures on web servers: told from streams by the type of content that the server names, and read whole."""

from __future__ import annotations

import time

from detector.errors import DetectorError, MediaError
from detector.io.download import opened

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
        with opened(url, url, WEB_SCHEMES, _TIMEOUT_S) as response:
            return response.headers.get_content_maintype() if response.status == 200 else None
    except DetectorError:
        return None


def fetch_picture(url: str, name: str) -> bytes:
    """Return the bytes of a picture on a web server.

    Args:
        url: its address, of http or https.
        name: the address without password, for messages.

    Raises:
        MediaError: the server cannot be reached, refuses, is too slow or sends too much.
    """
    try:
        return _received(url, name)
    except DetectorError as error:
        raise MediaError(str(error)) from error


def _received(url: str, name: str) -> bytes:
    deadline_s = time.monotonic() + _MAX_S
    with opened(url, name, WEB_SCHEMES, _TIMEOUT_S) as response:
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
        if response.length:
            raise MediaError(f"{name} cannot be read: the server closed the connection early; try again later")
    return bytes(encoded)
