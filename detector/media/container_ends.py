"""Detection of cut video files by the sizes in their containers, where no header says how long the video itself is.

The duration of a file may be that of its sound, so that it does not tell how many frames there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_NUM_HEAD_BYTES = 2**16
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # its size is followed by an id and the file's


def is_cut(path: Path) -> bool | None:
    """Return True for a video file that ends early, False for a whole one or without an end; None if it does not tell.

    MPEG streams may begin and end anywhere.
    """
    try:
        with path.open("rb") as file:
            head, num_bytes = file.read(_NUM_HEAD_BYTES), file.seek(0, 2)
            if head.startswith(b"\x1a\x45\xdf\xa3"):
                end = _matroska_end(head)
                return None if end is None else num_bytes < end
            if head.startswith(b"FLV"):
                return not _ends_with_a_tag(file, num_bytes)
    except OSError:
        return None
    if head.startswith(b"\x30\x26\xb2\x75") and (place := head.find(_ASF_FILE_PROPERTIES)) >= 0:
        return num_bytes < int.from_bytes(head[place + 40 : place + 48], "little")
    is_mpeg = head.startswith(b"\x00\x00\x01\xba") or any(head[s :: 188 + s][:3] == b"GGG" for s in (0, 4))
    return False if is_mpeg else None


def _matroska_end(head: bytes) -> int | None:
    """Return the end of the first segment (RFC 8794, 4 and 6); None if its size is unknown, as in live recordings."""
    place = 4
    for _ in range(2):
        length = 9 - head[place].bit_length() if place < len(head) and head[place] else 9
        size = int.from_bytes(head[place : place + length], "big") & ((1 << 7 * length) - 1)
        place += length
        if head[place - length - 4 : place - length] == b"\x18\x53\x80\x67":
            return None if size == (1 << 7 * length) - 1 else place + size
        place += size + 4
    return None


def _ends_with_a_tag(file: BinaryIO, num_bytes: int) -> bool:
    """Return True if the last four bytes are the size of the tag before them (Adobe FLV 10.1, annex E.3)."""
    file.seek(max(num_bytes - 4, 0))
    size = int.from_bytes(file.read(4), "big")
    if size + 4 > num_bytes:
        return False
    file.seek(num_bytes - 4 - size + 1)
    return int.from_bytes(file.read(3), "big") == size - 11
