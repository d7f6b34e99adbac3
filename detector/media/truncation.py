"""Whether the bytes of an image file are all there, as far as it can be told without the pixels' meaning."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.media.headers import PNG_SIGNATURE

_MAX_CHUNKS = 2**18  # of a PNG; they are rarely less than 8 kB
_JPEG_END = b"\xff\xd9"
# Bits to follow a JPEG that has no end; any will do that hold no marker (0xFF).
_FILLING = bytes(range(1, 255)) * 4


def pixels_of_png(png: bytes) -> bytes | None:
    """A PNG without the chunks that carry no pixels; None if it ends early or a chunk fails its checksum.

    OpenCV refuses damaged ones too, but the PNG library inside it prints to stderr, whatever the log level. The chunks
    of an animation crash OpenCV 5.0 when they are damaged: what it gets is the still image.
    """
    view, start = memoryview(png), len(PNG_SIGNATURE)
    parts = [view[:start]]
    for _ in range(_MAX_CHUNKS):
        if start + 12 > len(png):
            return None
        length, kind = int.from_bytes(view[start : start + 4], "big"), bytes(view[start + 4 : start + 8])
        end = start + 8 + length
        if kind == b"tRNS" or kind[:1].isupper():  # a capital marks what must be understood to see the image
            if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                return None
            parts.append(view[start : end + 4])
        if kind == b"IEND":
            return b"".join(parts)
        start = end + 4
    return None


def has_end(jpeg: bytes, scan_start: int) -> bool:
    """Whether a JPEG has an end marker behind `scan_start`, where its compressed pixels begin."""
    return jpeg.endswith(_JPEG_END) or jpeg.find(_JPEG_END, scan_start) >= 0


def completed_jpeg(jpeg: bytes) -> bytes | None:
    """A JPEG that lacks its end marker, with the marker; None if some of its pixels are missing too.

    A decoder makes missing pixels up from whatever follows the data: if other bits give other pixels, some are missing.
    """
    body = jpeg.rstrip(b"\xff")  # half a marker
    with_end = body + _JPEG_END
    pixels, others = _quietly_decoded(with_end), _quietly_decoded(body + _FILLING + _JPEG_END)
    is_whole = pixels is not None and others is not None and np.array_equal(pixels, others)
    return with_end if is_whole else None


def _quietly_decoded(jpeg: bytes) -> npt.NDArray[Any] | None:
    """The pixels of a JPEG by Pillow, which torchvision brings: on such files OpenCV's decoder prints to stderr."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(jpeg)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error):
        return None  # Pillow raises any of these for a damaged header
