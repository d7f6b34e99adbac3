"""Headers of image files: format, size, orientation, planes and frames.

They are read without a decoder, because a decoder allocates the size in the header, and a file of some bytes may claim
gigabytes. The formats: PNG (W3C, third edition), JPEG (ITU-T T.81, annex B), EXIF 2.32, GIF89a, BMP (Windows bitmap
headers), WebP (RFC 9649), Netpbm; TIFF in `detector.media.tiff`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

from detector.media import tiff
from detector.media.tiff import HeaderError, TiffDirectory, take

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x0112
_EXIF_MARK = b"Exif\0\0"
_PLANES_OF_PNG = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_MAX_STEPS = 2**18  # largest number of chunks, segments or blocks; no real file has a tenth of it
_MAX_STRAY_BYTES = 2**16  # between two segments of a JPEG
_PNM_HEAD_BYTES = 2**16
_PNM_TOKEN = re.compile(rb"(?:\s+|#[^\r\n]*[\r\n])*([0-9]{1,10})(?=[\s#]|$)")

# First bytes, at an offset, of formats that are not supported, so that the message can name the format.
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftypavis", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftypmif1", "a HEIF"),
    (4, b"ftyp", "a video"),
    (4, b"jP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"#?RADIANCE", "a Radiance HDR"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR"),
    (0, b"PF", "a PFM"),
    (0, b"Pf", "a PFM"),
    (0, b"P7\n", "a PAM"),
    (0, b"8BPS", "a Photoshop"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\3\4", "a zip"),
    (0, b"\x1f\x8b", "a gzip"),
    (0, b"\x93NUMPY", "a NumPy"),
)


@dataclass(frozen=True)
class ImageHeader:
    """Header of an image file.

    Attributes:
        format: `JPEG`, `PNG`, `GIF`, `BMP`, `WebP`, `TIFF` or `PNM`.
        stored_hw: height and width as the pixels are stored.
        orientation: 1..8, the rotation and flip that turn the pixels upright (EXIF tag 0x0112).
        num_planes: numbers per pixel as stored; 1 for a palette.
        bits: bits per number.
        max_value: the number for white; 0 if the format fixes it.
        has_more_frames: whether other frames or pages follow the first.
        scan_start: offset of the compressed pixels of a JPEG.
        directory: the directory of a TIFF.
    """

    format: str
    stored_hw: tuple[int, int]
    orientation: int = 1
    num_planes: int = 3
    bits: int = 8
    max_value: int = 0
    has_more_frames: bool = False
    scan_start: int = 0
    directory: TiffDirectory | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        height, width = self.stored_hw
        return (width, height) if self.orientation >= 5 else (height, width)

    @property
    def largest_hw(self) -> tuple[int, int]:
        """Height and width that a decoder allocates at most; a TIFF may have tiles larger than its image."""
        if self.directory is None:
            return self.stored_hw
        tile_hw = self.directory.number(tiff.TILE_HEIGHT, 1), self.directory.number(tiff.TILE_WIDTH, 1)
        return max(self.stored_hw, tile_hw, key=lambda hw: hw[0] * hw[1])


def read_header(file: BinaryIO) -> ImageHeader:
    """Read the header of an image file, whatever its name, without decoding it.

    Args:
        file: a seekable file; it is read from its start.

    Raises:
        HeaderError: the file is not a supported image; its text completes "it is ...", or is empty for an unknown file.
    """
    file.seek(0)
    start = file.read(16)
    for signature, format_name, read in _READERS:
        if re.match(signature, start, re.DOTALL):
            file.seek(0)
            try:
                header = read(file)
                if min(header.stored_hw) < 1:
                    raise HeaderError(
                        f"a {format_name} that claims {header.stored_hw[1]} x {header.stored_hw[0]} pixels"
                    )
            except (HeaderError, struct.error, OverflowError) as error:
                reason = str(error) if isinstance(error, HeaderError) else ""
                raise HeaderError(reason or f"a truncated, damaged or unsupported {format_name}") from error
            return header
    for offset, signature, name in _FOREIGN:
        if start[offset:].startswith(signature):
            raise HeaderError(f"{name} file, which is not supported (use PNG or JPEG)")
    raise HeaderError


def orientation_of(exif: bytes) -> int:
    """Return the orientation 1..8 in an EXIF block (a TIFF header and its first directory); 1 if it has none."""
    exif = exif.removeprefix(_EXIF_MARK)

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], "little" if exif.startswith(b"II") else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(exif)), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            orientation = number(entry + 8, 2)
            return orientation if 1 <= orientation <= 8 else 1
    return 1


def _jpeg(file: BinaryIO) -> ImageHeader:
    header, orientation = None, 1
    take(file, 2)
    for _ in range(_MAX_STEPS):
        marker = _next_marker(file)
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            continue
        if marker == 0xD9:
            break
        length = int.from_bytes(take(file, 2), "big") - 2
        if length < 0:
            break
        end = file.tell() + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, num_planes = struct.unpack(">BHHB", take(file, 6))
            header = header or ImageHeader("JPEG", (height, width), num_planes=num_planes, bits=bits)
        elif marker == 0xE1 and orientation == 1:
            block = file.read(length)
            orientation = orientation_of(block) if block.startswith(_EXIF_MARK) else 1
        elif marker == 0xDA and header is not None:
            return replace(header, orientation=orientation, scan_start=end)
        file.seek(end)
    raise HeaderError


def _next_marker(file: BinaryIO) -> int:
    """Return the next marker of a JPEG; like decoders, skip bytes between segments and repeated 0xFF."""
    byte = previous = b""
    for _ in range(_MAX_STRAY_BYTES):
        byte, previous = take(file, 1), byte
        if previous == b"\xff" and byte != b"\xff":
            return byte[0]
    raise HeaderError


def _png(file: BinaryIO) -> ImageHeader:
    take(file, len(PNG_SIGNATURE))
    if take(file, 8) != b"\0\0\0\x0dIHDR":
        raise HeaderError
    width, height, bits, colour_type = struct.unpack(">IIBB", take(file, 10))
    take(file, 7)  # the rest of the chunk and its checksum
    orientation, has_more_frames = 1, False
    for _ in range(_MAX_STEPS):
        start = file.read(8)
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if len(start) < 8 or kind == b"IEND":
            break
        end = file.tell() + length + 4
        if kind == b"eXIf":
            orientation = orientation_of(file.read(length))
        elif kind == b"acTL":
            has_more_frames = int.from_bytes(file.read(4), "big") > 1
        file.seek(end)
    num_planes = _PLANES_OF_PNG.get(colour_type, 0)
    return ImageHeader("PNG", (height, width), orientation, num_planes, bits, has_more_frames=has_more_frames)


def _gif(file: BinaryIO) -> ImageHeader:
    take(file, 6)
    width, height, flags = struct.unpack("<HHBxx", take(file, 7))
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), 1)  # the global palette
    num_frames = 0
    for _ in range(_MAX_STEPS):
        kind = file.read(1)
        if kind == b"\x2c":
            num_frames += 1
            place = file.read(9)
            if num_frames == 2 or len(place) < 9:
                break
            if place[8] & 0x80:
                file.seek(3 << ((place[8] & 7) + 1), 1)
            file.seek(1, 1)
        elif kind == b"\x21":
            file.seek(1, 1)
        else:
            break
        for _ in range(_MAX_STEPS):
            size = file.read(1)
            if size in (b"", b"\0"):
                break
            file.seek(size[0], 1)
        else:
            break
    return ImageHeader("GIF", (height, width), num_planes=1, has_more_frames=num_frames > 1)


def _bmp(file: BinaryIO) -> ImageHeader:
    take(file, 14)
    (size,) = struct.unpack("<I", take(file, 4))
    if size == 12:
        width, height = struct.unpack("<HH", take(file, 4))
    elif 16 <= size <= 256:
        width, height = struct.unpack("<ii", take(file, 8))
    else:
        raise HeaderError
    return ImageHeader("BMP", (abs(height), width))


def _webp(file: BinaryIO) -> ImageHeader:
    take(file, 12)
    kind, length = take(file, 4), take(file, 4)
    if kind == b"VP8 ":
        width, height = struct.unpack("<6xHH", take(file, 10))
        return ImageHeader("WebP", (height & 0x3FFF, width & 0x3FFF))
    if kind == b"VP8L":
        signature, packed = struct.unpack("<BI", take(file, 5))
        if signature != 0x2F:
            raise HeaderError
        return ImageHeader("WebP", ((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1), num_planes=4)
    if kind != b"VP8X":
        raise HeaderError
    fields = take(file, 10)
    width, height = (int.from_bytes(fields[at : at + 3], "little") + 1 for at in (4, 7))
    file.seek(20 + int.from_bytes(length, "little"))
    orientation, num_frames = 1, 0
    for _ in range(_MAX_STEPS):
        start = file.read(8)
        if len(start) < 8:
            break
        length_in_bytes = int.from_bytes(start[4:], "little")
        end = file.tell() + length_in_bytes + length_in_bytes % 2
        if start.startswith(b"EXIF"):
            orientation = orientation_of(file.read(length_in_bytes))
        num_frames += start.startswith(b"ANMF")
        file.seek(end)
    return ImageHeader("WebP", (height, width), orientation, 4, has_more_frames=num_frames > 1)


def _tiff(file: BinaryIO) -> ImageHeader:
    directory = tiff.read_directory(file)
    orientation = directory.number(tiff.ORIENTATION, 1)
    return ImageHeader(
        "TIFF",
        (directory.number(tiff.HEIGHT, 0), directory.number(tiff.WIDTH, 0)),
        orientation if 1 <= orientation <= 8 else 1,
        directory.number(tiff.SAMPLES, 1),
        directory.number(tiff.BITS, 1),
        has_more_frames=directory.has_more,
        directory=directory,
    )


def _pnm(file: BinaryIO) -> ImageHeader:
    text = file.read(_PNM_HEAD_BYTES)
    numbers, end = [], 2
    is_bilevel = text[1:2] in b"14"
    for _ in range(2 if is_bilevel else 3):
        token = _PNM_TOKEN.match(text, end)
        if token is None:
            raise HeaderError
        numbers.append(int(token[1]))
        end = token.end()
    max_value = 1 if is_bilevel else numbers[2]
    if not 1 <= max_value <= 65535:
        raise HeaderError
    num_planes = 3 if text[1:2] in b"36" else 1
    bits = 16 if max_value > 255 else 8
    return ImageHeader("PNM", (numbers[1], numbers[0]), 1, num_planes, bits, 0 if is_bilevel else max_value)


_READERS: tuple[tuple[bytes, str, Callable[[BinaryIO], ImageHeader]], ...] = (
    (rb"\xff\xd8\xff", "JPEG", _jpeg),
    (re.escape(PNG_SIGNATURE), "PNG", _png),
    (rb"GIF8[79]a", "GIF", _gif),
    (rb"RIFF....WEBP", "WebP", _webp),
    (rb"II[*+]\0|MM\0[*+]", "TIFF", _tiff),
    (rb"BM.*\0", "BMP", _bmp),  # a header has a zero byte, and a text has none
    (rb"P[1-6](#|\s+[#0-9])", "PNM", _pnm),
)
