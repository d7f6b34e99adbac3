"""Detection of truncated image files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt

from detector.media.headers import PNG_SIGNATURE

_MAX_CHUNKS = 2**18  # of a PNG; chunks are rarely smaller than 8 kB
_JPEG_END = b"\xff\xd9"
# Bytes to append to a JPEG without an end marker; any bytes except a marker (0xFF) would do.
_FILLING = bytes(range(1, 255)) * 4


def pixels_of_png(png: bytes) -> bytes | None:
    """Return a PNG with only the chunks needed for the pixels; None if it ends early or a checksum is wrong.

    OpenCV refuses damaged files too, but its PNG library prints to stderr, whatever the log level. Damaged chunks of an
    animation crash OpenCV 5.0, so it only gets the still image.
    """
    view, start = memoryview(png), len(PNG_SIGNATURE)
    parts = [view[:start]]
    for _ in range(_MAX_CHUNKS):
        if start + 12 > len(png):
            return None
        length, kind = int.from_bytes(view[start : start + 4], "big"), bytes(view[start + 4 : start + 8])
        end = start + 8 + length
        if kind == b"tRNS" or kind[:1].isupper():  # a capital letter marks a chunk that is necessary for the image
            if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                return None
            parts.append(view[start : end + 4])
        if kind == b"IEND":
            return b"".join(parts)
        start = end + 4
    return None


def has_end(jpeg: bytes, scan_start: int) -> bool:
    """Return True if a JPEG has an end marker after `scan_start`, where its compressed pixels begin."""
    return jpeg.endswith(_JPEG_END) or jpeg.find(_JPEG_END, scan_start) >= 0


def completed_jpeg(jpeg: bytes) -> bytes | None:
    """Add the missing end marker to a JPEG; return None if some of its pixels are missing too.

    A decoder computes missing pixels from the bytes after the data, so pixels are missing if other bytes give another
    image.
    """
    body = jpeg.rstrip(b"\xff")  # drops half of a marker
    with_end = body + _JPEG_END
    pixels, others = _quietly_decoded(with_end), _quietly_decoded(body + _FILLING + _JPEG_END)
    is_whole = pixels is not None and others is not None and np.array_equal(pixels, others)
    return with_end if is_whole else None


def _quietly_decoded(jpeg: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG with Pillow, a dependency of torchvision, because OpenCV prints to stderr for such files."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(jpeg)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error):
        return None  # Pillow raises any of these for a damaged header
