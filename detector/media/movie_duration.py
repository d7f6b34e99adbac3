"""Duration of the video of an MP4 or MOV file as it is shown, which an edit list may make shorter than its frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MAX_BOX_BYTES = 2**20  # of a header box; real ones have about a hundred bytes


def boxes(file: BinaryIO, start: int, end: int | None) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the body of each box within a range (ISO/IEC 14496-12, 4.2).

    Args:
        file: the file, in binary mode.
        start: place of the first box.
        end: end of the range, or None for the end of the file.
    """
    while end is None or start < end:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return
        size, kind, body = int.from_bytes(head[:4], "big"), head[4:], start + 8
        if size == 1:
            size, body = int.from_bytes(file.read(8), "big"), start + 16
        stop = start + size if size else file.seek(0, 2)  # size 0: up to the end of the file
        if stop < body:
            return
        yield kind, body, stop if end is None else min(stop, end)  # a box may claim more than holds it
        start = stop


def movie_duration_s(path: Path) -> float | None:
    """Return the seconds for which the video track of an MP4 or MOV file is shown; None without such a header."""
    try:
        with path.open("rb") as file:
            if file.read(8)[4:] not in (b"ftyp", b"moov", b"wide", b"mdat", b"free", b"skip"):
                return None
            for kind, start, end in boxes(file, 0, None):
                if kind == b"moov":
                    return _shown_s(file, start, end)
    except OSError:
        return None
    return None


def _body(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(min(end - start, _MAX_BOX_BYTES))


def _shown_s(file: BinaryIO, start: int, end: int) -> float | None:
    """Return the duration of the first video track whose edit list cuts something (ISO/IEC 14496-12, 8.6.6)."""
    scale = 0
    for kind, first, last in boxes(file, start, end):
        if kind == b"mvhd":
            body = _body(file, first, last)
            place = 20 if body[:1] == b"\x01" else 12
            scale = int.from_bytes(body[place : place + 4], "big")
        if kind == b"trak":
            inside = {name: (a, b) for name, a, b in boxes(file, first, last)}
            media = {name: (a, b) for name, a, b in boxes(file, *inside.get(b"mdia", (last, last)))}
            if b"hdlr" in media and _body(file, *media[b"hdlr"])[8:12] == b"vide" and b"edts" in inside:
                edits = {name: (a, b) for name, a, b in boxes(file, *inside[b"edts"])}
                units = _edit_duration(_body(file, *edits[b"elst"])) if b"elst" in edits else 0
                return units / scale if units and scale else None
    return None


def _edit_duration(body: bytes) -> int:
    """Return the sum of the durations of the entries of an edit list, empty ones left out."""
    is_long, count, total = body[:1] == b"\x01", int.from_bytes(body[4:8], "big"), 0
    width = 8 if is_long else 4
    for start in range(8, min(8 + count * (2 * width + 4), len(body)), 2 * width + 4):
        entry = body[start : start + 2 * width]
        if int.from_bytes(entry[width:], "big", signed=True) >= 0:
            total += int.from_bytes(entry[:width], "big")
    return total
