"""TIFF: the first directory, and the pixels of files with more planes than OpenCV supports.

The format: TIFF revision 6.0 (Adobe, 1992), sections 2, 8 and 14; BigTIFF (https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 277, 322, 323, 339
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 278, 279, 284, 317
_KNOWN_TAGS = frozenset((256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 322, 323, 339))
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # field type -> unsigned number; no tag above has another type
_MAX_ENTRIES = 4096  # of a directory; real files have some dozens
_MAX_VALUES = 2**20  # of an entry; a strip is rarely smaller than a row
_NO_COMPRESSION, _DEFLATE, _OLD_DEFLATE = 1, 8, 32946
_HORIZONTAL_DIFFERENCES = 2
PHOTOMETRIC_RGB = 2


class HeaderError(ValueError):
    """Header that cannot be read; the text, if any, describes the file."""


def take(file: BinaryIO, num_bytes: int) -> bytes:
    """Read the next bytes of a file.

    Raises:
        HeaderError: the file has fewer bytes.
    """
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise HeaderError
    return data


@dataclass(frozen=True)
class TiffDirectory:
    """First directory of a TIFF.

    Attributes:
        values: tag -> numbers, for the tags used here.
        byte_order: `<` or `>`, as in `struct`.
        has_more: whether another directory follows.
    """

    values: dict[int, tuple[int, ...]]
    byte_order: str
    has_more: bool

    def number(self, tag: int, default: int) -> int:
        """Return the first number of a tag."""
        return self.values.get(tag, (default,))[0]

    @property
    def pixel_type(self) -> str:
        """Type of a sample in NumPy's naming: `uint8`, `float32`; also for widths that NumPy does not have."""
        kind = {2: "int", 3: "float", 5: "complex", 6: "complex"}.get(self.number(SAMPLE_FORMAT, 1), "uint")
        return f"{kind}{self.number(BITS, 1)}"


def read_directory(file: BinaryIO) -> TiffDirectory:
    """Read the first directory of a TIFF from the start of `file`.

    Raises:
        HeaderError: there is no valid directory.
    """
    file.seek(0)
    start = take(file, 4)
    order = "<" if start.startswith(b"II") else ">"
    is_big = start[2:] in (b"+\0", b"\0+")
    if is_big:
        take(file, 4)  # the size of an offset and a zero
    count_code, offset_code, inline = ("Q", "Q", 8) if is_big else ("H", "I", 4)

    def number(code: str) -> int:
        return int(struct.unpack(order + code, take(file, struct.calcsize(order + code)))[0])

    file.seek(number(offset_code))
    num_entries = number(count_code)
    if not 1 <= num_entries <= _MAX_ENTRIES:
        raise HeaderError
    entries = [take(file, 4 + 2 * inline) for _ in range(num_entries)]
    has_more = len(file.read(inline).strip(b"\0")) > 0
    values = {}
    for entry in entries:
        tag, kind = struct.unpack(order + "HH", entry[:4])
        if tag not in _KNOWN_TAGS or kind not in _CODES:
            continue
        count = int(struct.unpack(order + offset_code, entry[4 : 4 + inline])[0])
        num_bytes = count * struct.calcsize(_CODES[kind])
        data = entry[4 + inline :]
        if inline < num_bytes <= 8 * _MAX_VALUES:
            file.seek(struct.unpack(order + offset_code, data)[0])
            data = file.read(num_bytes)
        if 0 < count <= _MAX_VALUES and len(data) >= num_bytes:
            values[tag] = struct.unpack(f"{order}{count}{_CODES[kind]}", data[:num_bytes])
    if WIDTH not in values or HEIGHT not in values:
        raise HeaderError
    return TiffDirectory(values, order, has_more)


def read_planes(encoded: bytes, directory: TiffDirectory) -> npt.NDArray[np.generic]:
    """Read the pixels of a TIFF as its planes, uint8 or uint16 (H, W, planes), as stored and not composited.

    Strips are supported, interleaved or plane by plane, uncompressed or deflated.

    Raises:
        HeaderError: the file has tiles, another compression or another pixel type, or ends early.
    """
    height, width = directory.number(HEIGHT, 0), directory.number(WIDTH, 0)
    planes, compression = directory.number(SAMPLES, 1), directory.number(COMPRESSION, 1)
    predictor = directory.number(_PREDICTOR, 1)
    what = f"a TIFF of {planes} planes"
    if compression not in (_NO_COMPRESSION, _DEFLATE, _OLD_DEFLATE) or predictor > _HORIZONTAL_DIFFERENCES:
        raise HeaderError(
            f"{what} in compression {compression} with predictor {predictor} (expected no compression or deflate, with "
            "predictor 1 or 2)"
        )
    if TILE_WIDTH in directory.values or _STRIP_OFFSETS not in directory.values:
        raise HeaderError(f"{what} in tiles (expected strips)")
    if directory.pixel_type not in ("uint8", "uint16"):
        raise HeaderError(f"{what} of {directory.pixel_type} (expected 8 or 16 bits)")
    dtype = np.dtype(f"{directory.byte_order}u{directory.number(BITS, 8) // 8}")
    is_planar = directory.number(_PLANAR, 1) == 2
    rows_per_strip = min(max(directory.number(_ROWS_PER_STRIP, height), 1), height)
    offsets, counts = (directory.values.get(tag, ()) for tag in (_STRIP_OFFSETS, _STRIP_BYTES))
    num_strips = -(-height // rows_per_strip) * (planes if is_planar else 1)
    if len(offsets) < num_strips or len(counts) < num_strips:
        raise HeaderError

    image = np.empty((height, width, planes), dtype.newbyteorder("="))
    for index in range(num_strips):
        plane, top = divmod(index * rows_per_strip, -(-height // rows_per_strip) * rows_per_strip)
        part = image[top : top + rows_per_strip, :, plane : plane + 1 if is_planar else None]
        num_bytes = part.size * dtype.itemsize
        data = encoded[offsets[index] : offsets[index] + counts[index]]
        if compression != _NO_COMPRESSION:
            try:
                data = zlib.decompressobj().decompress(data, num_bytes)
            except zlib.error as error:
                raise HeaderError from error
        if len(data) < num_bytes:
            raise HeaderError
        strip = np.frombuffer(data, dtype, part.size).reshape(part.shape)
        part[:] = np.cumsum(strip, axis=1, dtype=image.dtype) if predictor == _HORIZONTAL_DIFFERENCES else strip
    return image
