"""The one reader and the one writer of image files.

Files are read whole and decoded from memory: OpenCV's file reader returns a half-grey picture for a truncated JPEG,
fails on a turned TIFF and cannot open every file name; its memory decoder has none of these faults.
"""

from __future__ import annotations

import codecs
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from detector.errors import MediaError

# Suffixes, in lower case, of files that are taken for images when a folder is listed. Any file name can be read.
IMAGE_SUFFIXES: frozenset[str] = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif")
)

# First bytes by which each format announces itself (the formats' own specifications).
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"RIFF", "WebP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HTML_MARKS = (b"<!doctype html", b"<html", b"<head", b"<body")
_NUM_SNIFFED_BYTES = 1024

# EXIF orientation -> (transpose first, then flip vertically, then flip horizontally); EXIF 2.32, tag 0x0112.
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

# OpenCV's flag for decoding at a fraction of the size; together with IMREAD_COLOR_RGB it decodes in colour.
_REDUCED_FLAGS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_REDUCED_FLAGS[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8


class _Quiet:
    """How many threads are decoding, and the log level to go back to when none is."""

    lock = threading.Lock()
    depth = 0
    previous_level = 0

    @classmethod
    def reset(cls) -> None:
        """Forget the parent's threads: a process forked while one of them held the lock would wait for ever."""
        cls.lock, cls.depth = threading.Lock(), 0


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_Quiet.reset)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own log off stderr inside the block; every failure there must be reported as an error instead.

    The level is one per process, so it goes back to its former value when the last of the threads leaves.
    """
    logging = cv2.utils.logging
    with _Quiet.lock:
        if _Quiet.depth == 0:
            _Quiet.previous_level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        _Quiet.depth += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.depth -= 1
            if _Quiet.depth == 0:
                logging.setLogLevel(_Quiet.previous_level)


def read_image(path: Path, channels: int = 3, reduction: int = 1) -> npt.NDArray[np.uint8]:
    """Read an image file, turned upright by its EXIF orientation exactly once.

    Args:
        path: the file; its suffix does not matter.
        channels: 3 for RGB (grey and palette images are expanded, alpha is dropped), 1 for grey, any other count for
            all planes of a file that has exactly that many (4 is RGBA). Alpha is not composited, except that OpenCV
            hands out the colours of a TIFF with alpha multiplied by it.
        reduction: 1, 2, 4 or 8: in a JPEG of 1 or 3 wanted channels each block of so many pixels a side becomes one
            pixel, in a fraction of the time; a part of a block at the right or lower edge becomes a pixel too. Images
            of other formats and channel counts are read whole.

    Returns:
        uint8 (H, W, channels), contiguous, 0..255; 16-bit images keep their high byte.

    Raises:
        MediaError: the file is missing, a folder, unreadable, empty, truncated, no image, of another pixel type or,
            when `channels` is neither 1 nor 3, of another number of planes.
        ValueError: `channels` below 1 or another `reduction`.
    """
    if channels < 1:
        raise ValueError(f"read_image wants at least 1 channel, found {channels}")
    if reduction not in _REDUCED_FLAGS:
        raise ValueError(f"read_image wants a reduction of 1, 2, 4 or 8, found {reduction}")
    encoded = _read_bytes(path)
    try:
        with quiet_opencv():
            image = None if _is_damaged_png(encoded) else _decode(encoded, channels, reduction)
            if image is None:
                raise MediaError(f"{path} cannot be decoded: it is {_reason(encoded)}; replace or remove it")
    except cv2.error as error:
        raise MediaError(f"{path} cannot be decoded: OpenCV refuses it ({error.err}); replace or remove it") from error
    if image.dtype not in (np.uint8, np.uint16):
        raise MediaError(f"{path} has {image.dtype} pixels where 8 or 16 bits are wanted; convert it")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] != channels:
        raise MediaError(
            f"{path} has {image.shape[2]} channels where {channels} are wanted; convert it or change the channel count"
        )
    if image.dtype == np.uint16:
        image = np.right_shift(image, 8)
    return np.ascontiguousarray(image, dtype=np.uint8)


def write_image(path: Path, image_rgb: npt.NDArray[np.uint8]) -> None:
    """Write an image in the format that the suffix of `path` names.

    Args:
        path: the file to write; an existing one is replaced, its folder must exist.
        image_rgb: uint8 (H, W, 3), RGB, 0..255.

    Raises:
        MediaError: an unknown suffix, or a file that cannot be written.
        ValueError: an array of another shape or dtype.
    """
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or not image_rgb.size:
        raise ValueError(f"write_image wants uint8 (H, W, 3), found {image_rgb.dtype} {image_rgb.shape}")
    try:
        with quiet_opencv():
            ok, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(image_rgb[:, :, ::-1]))
    except cv2.error as error:
        raise MediaError(
            f"{path} cannot be written: OpenCV cannot encode {image_rgb.shape[1]}x{image_rgb.shape[0]} pixels as "
            f"{path.suffix!r} ({error.err}); use .png or .jpg"
        ) from error
    if not ok:
        raise MediaError(f"{path} cannot be written: OpenCV cannot encode {path.suffix!r}; use .png or .jpg")
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror}; choose another folder") from error


def _read_bytes(path: Path) -> bytes:
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        raise MediaError(f"{path} cannot be read: there is no such file; check the path") from error
    except OSError as error:
        if path.is_dir():  # told apart here because Windows reports a folder as a missing permission
            raise MediaError(f"{path} cannot be read: it is a folder, not an image; name a file") from error
        if isinstance(error, PermissionError):
            raise MediaError(f"{path} cannot be read: no permission; check the rights of the file") from error
        raise MediaError(f"{path} cannot be read: {error.strerror}; check the path and the disk") from error
    except ValueError as error:  # a null byte or a lone surrogate in the name
        raise MediaError(f"{str(path)!r} cannot be read: no file can have that name; correct it") from error
    if not encoded:
        raise MediaError(f"{path} cannot be decoded: it is empty (0 bytes); replace or remove it")
    return encoded


def _is_damaged_png(encoded: bytes) -> bool:
    """Whether a PNG ends before its last chunk or a chunk that carries pixels fails its checksum.

    OpenCV refuses such files too, but the PNG library inside it prints to stderr, whatever the log level.
    """
    if not encoded.startswith(_PNG_SIGNATURE):
        return False
    view, start = memoryview(encoded), len(_PNG_SIGNATURE)
    while start + 12 <= len(encoded):
        length, kind = int.from_bytes(view[start : start + 4], "big"), bytes(view[start + 4 : start + 8])
        end = start + 8 + length
        is_critical = kind[:1].isupper()  # the PNG specification's mark of chunks that are no mere comment
        if is_critical and zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return True
        if kind == b"IEND":
            return False
        start = end + 4
    return True


def _decode(encoded: bytes, channels: int, reduction: int) -> npt.NDArray[Any] | None:
    """The pixels, (H, W) or (H, W, C) with red first, upright; None where OpenCV finds no intact image."""
    buffer = np.frombuffer(encoded, dtype=np.uint8)
    if channels in (1, 3):
        reduced = _REDUCED_FLAGS[reduction] if encoded.startswith(b"\xff\xd8") else 0
        return cv2.imdecode(buffer, (cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE) | reduced)
    # All planes exist only without OpenCV's turning. Its TIFF decoder turns even so, and then hands out no EXIF block.
    decoded: tuple[npt.NDArray[Any] | None, Any, Any] = cv2.imdecodeWithMetadata(buffer, flags=cv2.IMREAD_UNCHANGED)
    image, kinds, blocks = decoded
    if image is None:
        return None
    for kind, block in zip(kinds, blocks, strict=True):
        if kind == cv2.IMAGE_METADATA_EXIF:
            image = _upright(image, _orientation_of(block.tobytes()))
    if image.ndim == 3 and image.shape[2] == 3:
        return image[:, :, ::-1]
    if image.ndim == 3 and image.shape[2] == 4:
        return image[:, :, [2, 1, 0, 3]]
    return image


def _orientation_of(exif: bytes) -> int:
    """The orientation 1..8 in an EXIF block (a TIFF header and its first directory); 1 where it says none."""

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], "little" if exif.startswith(b"II") else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            orientation = number(entry + 8, 2)
            return orientation if orientation in _ORIENTATIONS else 1
    return 1


def _upright(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    transpose, flip_vertically, flip_horizontally = _ORIENTATIONS[orientation]
    if transpose:
        image = image.swapaxes(0, 1)
    return image[:: -1 if flip_vertically else 1, :: -1 if flip_horizontally else 1]


def _reason(encoded: bytes) -> str:
    """What a file is that OpenCV finds no 8-bit image in."""
    head = encoded[:_NUM_SNIFFED_BYTES]
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            unchanged = None
            if name == "TIFF":  # the format in which pixels may be floating-point numbers
                unchanged = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
            if unchanged is not None:
                return f"an image of {unchanged.dtype} pixels where 8 or 16 bits are wanted"
            return f"a truncated, damaged or unsupported {name}"
    if any(mark in head.lower() for mark in _HTML_MARKS):
        return "not an image (HTML)"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a character cut at the end is no fault
    except UnicodeDecodeError:
        return "in no image format known here"
    if all(character.isprintable() or character in "\t\n\r\f\ufeff" for character in text):
        return "not an image (text)"
    return "in no image format known here"
