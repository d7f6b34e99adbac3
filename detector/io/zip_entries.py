"""Zip archives of untrusted origin: read by one parser, checked byte by byte, and written anew for any other parser.

Two zip readers can see different entries in one file, so a check made with one says nothing about what another loads.
A caller therefore checks the entries that `read_entries` returns and gives the archive that `pack` makes of them to the
other reader. Source of the layout: PKWARE, .ZIP File Format Specification (APPNOTE.TXT) 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_NUM_END_BYTES = 22  # of the end of central directory record without a comment
_NUM_ZIP64_END_BYTES = 56 + 20  # of the zip64 end of central directory record and its locator
_HAS_DESCRIPTOR = 1 << 3  # general purpose bit: checksum and sizes follow the data
_IS_FOLDER = 0x10  # MS-DOS attribute; torch returns uninitialised memory for such an entry
_NAMING_OPCODES = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
_NAME = re.compile(r"(?!.*\.\./)[\w.+-]+(/[\w.+-]+)*", re.ASCII)


def read_entries(content: bytes, *, may_compress: bool = False, max_extra_bytes: int = 0) -> dict[str, bytes]:
    """Return the content of every entry by name, each checked against its CRC-32.

    Args:
        content: the archive.
        may_compress: whether entries may be compressed (deflate).
        max_extra_bytes: how many bytes more than the archive itself all entries may hold together.

    Raises:
        zipfile.BadZipFile: the archive is damaged, has data before, between or after its entries, two entries whose
            names differ at most in case, a name that is not a relative path of ASCII words, a folder, a compression
            that is not allowed, or too large entries.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if may_compress else (zipfile.ZIP_STORED,)
        names = {entry.filename.lower() for entry in entries}
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > len(content) + max_extra_bytes or any(entry.compress_type not in methods for entry in entries):
            raise zipfile.BadZipFile(f"it unpacks to {unpacked} bytes")
        if len(names) < len(entries):  # torch ignores the case of names
            raise zipfile.BadZipFile("two entries have the same name")
        for entry in entries:
            if entry.external_attr & _IS_FOLDER or _NAME.fullmatch(entry.orig_filename) is None:
                raise zipfile.BadZipFile(f"it has an entry {entry.orig_filename[:80]!r}")
        _require_no_gap(content, entries, archive.start_dir)
        return {entry.filename: archive.read(entry) for entry in entries}


def pickled_names(pickled: bytes) -> set[str]:
    """Return the classes and functions that a pickle names, as module and name, without unpickling it.

    An instruction that takes its name from the stack or from a registry is returned in place of the name.
    """
    opcodes = pickletools.genops(pickled)
    return {str(argument or opcode.name) for opcode, argument, _ in opcodes if opcode.name in _NAMING_OPCODES}


def pack(entries: Mapping[str, bytes]) -> io.BytesIO:
    """Return an archive of the entries, not compressed, positioned at its start."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    packed.seek(0)
    return packed


def _require_no_gap(content: bytes, entries: list[zipfile.ZipInfo], directory_offset: int) -> None:
    """Reject data that belongs to no entry, in which another reader might see an archive."""
    offset = 0
    for entry in entries:
        if entry.header_offset != offset:
            raise zipfile.BadZipFile(f"data that belongs to no entry lies before {entry.filename[:80]!r}")
        header = _LOCAL_HEADER.unpack_from(content, offset)
        offset += _LOCAL_HEADER.size + header[9] + header[10] + entry.compress_size
        offset += _num_descriptor_bytes(content, entry, offset) if header[2] & _HAS_DESCRIPTOR else 0
    after = _after_directory(content, entries, directory_offset)
    if offset != directory_offset or len(content) - after not in (
        _NUM_END_BYTES,
        _NUM_ZIP64_END_BYTES + _NUM_END_BYTES,
    ):
        raise zipfile.BadZipFile("data that belongs to no entry lies behind the entries")
    if content[after : after + 4] not in (b"PK\x05\x06", b"PK\x06\x06"):
        raise zipfile.BadZipFile("its directory does not end as it should")


def _after_directory(content: bytes, entries: list[zipfile.ZipInfo], offset: int) -> int:
    """Return the offset behind the central directory."""
    for _ in entries:
        lengths = struct.unpack_from("<3H", content, offset + 28)  # of name, extra field and comment
        offset += 46 + sum(lengths)
    return offset


def _num_descriptor_bytes(content: bytes, entry: zipfile.ZipInfo, offset: int) -> int:
    """Return the length of the data descriptor at an offset, whose sizes have 4 bytes, or 8 in zip64."""
    for layout in ("<4sLLL", "<4sLQQ"):
        if content[offset : offset + struct.calcsize(layout)] == struct.pack(
            layout, b"PK\x07\x08", entry.CRC, entry.compress_size, entry.file_size
        ):
            return struct.calcsize(layout)
    raise zipfile.BadZipFile(f"the descriptor of {entry.filename[:80]!r} disagrees with the directory")
