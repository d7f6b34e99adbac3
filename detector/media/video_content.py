"""Recognition of videos and animated images by the content of a file, where its name says nothing or something else."""

from __future__ import annotations

import re
from pathlib import Path

from detector.media.headers import read_header
from detector.media.tiff import HeaderError

_NUM_HEAD_BYTES = 2**16
_ANIMATED = re.compile(rb"GIF8[79]a|RIFF....WEBP|\x89PNG\r\n\x1a\n.*?acTL", re.DOTALL)
# First bytes of video containers. MPEG transport streams have 0x47 every 188 bytes, or 192 with a time code before it
# (ISO/IEC 13818-1, 2.4.3; Blu-ray). The brands of `ftyp` that begin so are those of still images.
_VIDEO = re.compile(
    rb"\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47.{191}\x47"
    rb"|.{4}ftyp(?!avi[fs]|hei|hev|mif1|msf1)|.{4}(?:moov|mdat|wide|skip|free)"
    rb"|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11|OggS|DKIF|YUV4MPEG2 |\.RMF"
    rb"|\x06\x0e\x2b\x34\x02\x05\x01\x01|\x00\x00\x01(?:[\xb3\xba]|[\x27\x47\x67][\x42\x4d\x58\x64\x6e\x7a])"
    rb"|\x00\x00\x00\x01(?:[\x27\x47\x67][\x42\x4d\x58\x64\x6e\x7a]|\x40\x01\x0c)",
    re.DOTALL,
)


def _head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a regular file; none of any other, which could block or have no end."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(num_bytes)
    except (OSError, ValueError):
        return b""


def holds_video(path: Path) -> bool:
    """Return True if a file begins like a container of video."""
    return _VIDEO.match(_head(path, 1024)) is not None


def holds_animation(path: Path) -> bool:
    """Return True if a file is a GIF, PNG or WebP of several frames."""
    if _ANIMATED.match(_head(path, _NUM_HEAD_BYTES)) is None:
        return False
    try:
        with path.open("rb") as file:
            return read_header(file).has_more_frames
    except (HeaderError, OSError):
        return False
