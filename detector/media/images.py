"""The only reader and the only writer of image files.

The header is read first, by `detector.media.headers`, so that files which are too large, have another pixel type or are
not images are refused before they are decoded. Files are then read completely and decoded from memory: OpenCV's file
reader returns a half-grey image for a truncated JPEG, fails on a rotated TIFF and cannot open every file name, but its
memory decoder has none of these faults. Damage that the decoder does not report is not noticed: a JPEG with changed
compressed bits mostly decodes to other pixels without an error.
"""

from __future__ import annotations

import codecs
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from detector.errors import MediaError
from detector.io.folders import hint_for_missing
from detector.io.remote import read_remote
from detector.io.tar_members import member_of, read_member
from detector.media import tiff
from detector.media.headers import ImageHeader, read_header
from detector.media.tiff import HeaderError
from detector.media.truncation import completed_jpeg, has_end, pixels_of_png

# Lower-case suffixes of files that count as images when a folder is listed. Files of any name can be read.
_MAX_JPEG_SIDE = 65_500  # pixels; libjpeg's JPEG_MAX_DIMENSION
IMAGE_SUFFIXES: frozenset[str] = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".apng")
)
# Largest number of pixels, 400 MB as RGB. The largest images in common use, Sentinel-2 tiles, have 10980 x 10980.
MAX_PIXELS = 2**27
_MAX_FILE_BYTES = 8 * MAX_PIXELS  # four planes of 16 bits, not compressed

_HTML_MARKS = (b"<!doctype html", b"<html", b"<head", b"<body")
_NUM_SNIFFED_BYTES = 1024

# EXIF orientation -> (transpose first, then flip vertically, then flip horizontally); EXIF 2.32, tag 0x0112.
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


Pixel = TypeVar("Pixel", bound=np.generic)

# OpenCV's flag for decoding at a fraction of the size; together with IMREAD_COLOR_RGB it decodes in colour.
_REDUCED_FLAGS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_REDUCED_FLAGS[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8


@dataclass(frozen=True)
class LoadedImage:
    """Image read from a file.

    Attributes:
        pixels: uint8 (H, W, C), contiguous, 0..255, upright; RGB if C is 3.
        source_hw: height and width of the image in its file, upright; the size of `pixels` unless it is reduced.
        warnings: oddities of the file, each a sentence that names the file.
    """

    pixels: npt.NDArray[np.uint8]
    source_hw: tuple[int, int]
    warnings: tuple[str, ...] = ()


class _Quiet:
    """Number of threads that are decoding, and the log level to restore when none is."""

    lock = threading.Lock()
    depth = 0
    previous_level = 0

    @classmethod
    def reset(cls) -> None:
        """Reset after a fork: a child forked while a thread of the parent held the lock would wait forever."""
        cls.lock, cls.depth = threading.Lock(), 0


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_Quiet.reset)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own log off stderr inside the block, where every failure must be reported as an error instead.

    The log level applies to the whole process, so it is restored when the last thread leaves the block.
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


def image_hw(path: Path) -> tuple[int, int]:
    """Return height and width of an image as in `read_image`, turned upright, from the header of its file alone.

    Raises:
        MediaError: the file cannot be read or is not a supported image. Only the header is checked.
    """
    return image_header(path).image_hw


def image_header(path: Path) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        MediaError: the file cannot be read or is not a supported image. Only the header is checked.
    """
    with _opened(path) as file:
        return _header(path, file)


def read_encoded(path: Path) -> bytes:
    """Return the bytes of an image file, which are not decoded.

    Raises:
        MediaError: the file cannot be read.
    """
    with _opened(path) as file:
        return file.read()


def read_image(path: Path, channels: int = 3, reduction: int = 1) -> npt.NDArray[np.uint8]:
    """Return the pixels of `load_image`: uint8 (H, W, channels)."""
    return load_image(path, channels, reduction=reduction).pixels


def load_image(
    path: Path, channels: int = 3, listed_hw: tuple[int, int] | None = None, reduction: int = 1
) -> LoadedImage:
    """Read an image file and turn it upright once, by its EXIF orientation.

    Of several frames or pages only the first is read, with a warning. A JPEG without an end marker is read, with a
    warning, if all of its pixels are there.

    Args:
        path: the file; its suffix does not matter.
        channels: 3 for RGB (grey and palette images are expanded, alpha is dropped), 1 for grey, any other count for
            all planes of a file that has exactly that many (2 is grey and alpha, 4 RGBA; TIFF holds any number). Alpha
            is not composited, except that OpenCV returns the colours of an RGBA TIFF multiplied by alpha.
        listed_hw: height and width in the annotation file; None or (0, 0) if it has none.
        reduction: 1, 2, 4 or 8. Each block of reduction x reduction pixels of a JPEG, with 1 or 3 `channels`, becomes
            one pixel, which is faster than decoding it completely; an incomplete block at the right or lower edge
            becomes a pixel too. Other images are read at full size.

    Returns:
        The image with uint8 pixels (H, W, channels); 16-bit images keep their high byte.

    Raises:
        MediaError: the file is missing, a folder, unreadable, empty, truncated, not an image, or has more than
            `MAX_PIXELS` pixels, another pixel type, another size than listed (exchanged height and width only give a
            warning) or, if `channels` is neither 1 nor 3, another number of planes.
        ValueError: `channels` is below 1, or `reduction` is none of the values above.
    """
    if channels < 1:
        raise ValueError(f"load_image: expected at least 1 channel, got {channels}")
    if reduction not in _REDUCED_FLAGS:
        raise ValueError(f"load_image: expected a reduction of 1, 2, 4 or 8, got {reduction}")
    with _opened(path) as file:
        return _load(path, file, channels, listed_hw, reduction)


def encoded_header(name: str, encoded: bytes) -> ImageHeader:
    """Read the header of an image like `image_header`, from the bytes of a file that messages call `name`."""
    return _header(Path(name), BytesIO(encoded))


def load_encoded(name: str, encoded: bytes, channels: int = 3) -> LoadedImage:
    """Read an image like `load_image`, from the bytes of a file that messages call `name`."""
    return _load(Path(name), BytesIO(encoded), channels, None, 1)


def _load(path: Path, file: BinaryIO, channels: int, listed_hw: tuple[int, int] | None, reduction: int) -> LoadedImage:
    header = _header(path, file)
    _require_decodable(path, header, channels)
    file.seek(0)
    encoded = file.read()
    warnings = []
    if header.has_more_frames:
        frames = "more than one page" if header.format == "TIFF" else "more than one frame"
        warnings.append(f"{path} has {frames}, only the first is used")
    if header.format == "JPEG" and not has_end(encoded, header.scan_start):
        completed = completed_jpeg(encoded)
        if completed is None:
            raise MediaError(f"{path} cannot be decoded: it is a truncated JPEG; replace or remove it")
        encoded = completed
        warnings.append(f"{path} is a JPEG without end marker, all of its pixels are there")
    warning = None if listed_hw is None else size_warning(path, header.image_hw, listed_hw)
    if warning is not None:
        warnings.append(warning)
    if header.format != "JPEG" or channels not in (1, 3):
        reduction = 1
    return LoadedImage(_pixels(path, encoded, header, channels, reduction), header.image_hw, tuple(warnings))


def size_warning(path: Path, image_hw: tuple[int, int], listed_hw: tuple[int, int]) -> str | None:
    """Compare the upright size of an image with the listed one, (0, 0) for none; return a warning if exchanged.

    Raises:
        MediaError: the sizes differ, other than by exchanged width and height.
    """
    if not any(listed_hw) or listed_hw == image_hw:
        return None
    sizes = [f"{width} x {height}" for height, width in (image_hw, listed_hw)]
    mismatch = f"{path} has {sizes[0]} pixels, but its annotation file says {sizes[1]}"
    if listed_hw != image_hw[::-1]:
        raise MediaError(f"{mismatch}; its boxes are not rescaled: correct the annotation file or the image")
    return f"{mismatch}: width and height are assumed to be exchanged, and the boxes to fit the upright image"


def _require_decodable(path: Path, header: ImageHeader, channels: int) -> None:
    """Refuse a file whose header shows that it cannot be read."""
    require_decodable_size(path, header.largest_hw)
    pixel_type = "uint8" if header.directory is None else header.directory.pixel_type
    if not pixel_type.startswith("uint") or header.bits > 16:
        raise MediaError(f"{path}: expected pixels of 8 or 16 bits, got {pixel_type}; convert it")
    if header.num_planes > 4 and header.num_planes != channels:
        raise MediaError(_wrong_channels(path, header.num_planes, channels))


def require_decodable_size(name: str | Path, image_hw: tuple[int, int]) -> None:
    """Reject an image or a video by the size in its header, before a decoder allocates it.

    Raises:
        MediaError: it has more than `MAX_PIXELS` pixels.
    """
    height, width = image_hw
    if height * width > MAX_PIXELS:
        raise MediaError(
            f"{name} cannot be decoded: its header claims {width} x {height} = {height * width} pixels > limit of "
            f"{MAX_PIXELS}; cut it into tiles or shrink it"
        )


def _wrong_channels(path: Path, found: int, expected: int) -> str:
    return f"{path}: expected {expected} channels, got {found}; convert it or change the channel count"


def _pixels(path: Path, encoded: bytes, header: ImageHeader, channels: int, reduction: int) -> npt.NDArray[np.uint8]:
    """Decode an image: uint8 (H, W, channels), upright."""
    reason = f"a truncated, damaged or unsupported {header.format}"
    try:
        with quiet_opencv():
            sound = pixels_of_png(encoded) if header.format == "PNG" else encoded
            image = None if sound is None else _decode(sound, header, channels, reduction)
    except cv2.error:
        image = None
    except HeaderError as error:
        reason, image = str(error) or reason, None
    if image is None:
        raise MediaError(f"{path} cannot be decoded: it is {reason}; replace or remove it")
    if image.dtype not in (np.uint8, np.uint16):
        raise MediaError(f"{path}: expected pixels of 8 or 16 bits, got {image.dtype}; convert it")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] != channels:
        raise MediaError(_wrong_channels(path, image.shape[2], channels))
    height, width = (-(-side // reduction) for side in header.image_hw)
    if image.shape[:2] != (height, width):
        mismatch = f"it holds {image.shape[1]} x {image.shape[0]} pixels, but its header says {width} x {height}"
        raise MediaError(f"{path} cannot be decoded: {mismatch}; replace or remove it")
    if header.max_value not in (0, 255, 65535):  # only Netpbm defines the number for white
        image = (image.astype(np.uint32).clip(0, header.max_value) * 255 + header.max_value // 2) // header.max_value
    elif image.dtype == np.uint16:
        image = np.right_shift(image, 8)
    return np.ascontiguousarray(image, dtype=np.uint8)


def picture_suffix(picture: npt.NDArray[np.uint8]) -> str:
    """Return the suffix of the file of a picture (H, W, C): .jpg, or .png if a side is too long for a JPEG."""
    return ".jpg" if max(picture.shape[:2]) <= _MAX_JPEG_SIDE else ".png"


def write_image(path: Path, image_rgb: npt.NDArray[np.uint8]) -> None:
    """Write an image in the format that the suffix of `path` names.

    Args:
        path: the file to write; an existing one is replaced, its folder must exist.
        image_rgb: uint8 (H, W, 3), RGB, 0..255.

    Raises:
        MediaError: the suffix is unknown, or the file cannot be written.
        ValueError: the array has another shape or dtype.
    """
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or not image_rgb.size:
        raise ValueError(f"write_image: expected uint8 (H, W, 3), got {image_rgb.dtype} {image_rgb.shape}")
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


def with_channels(pixels: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8] | None:
    """Return pixels in memory with another number of channels, as `load_image` does for files.

    Args:
        pixels: uint8 (H, W, C): grey, grey and alpha, RGB or RGBA for C of 1 to 4.
        channels: the number of channels to return: 3 for RGB or 1 for grey, any other only if C is equal.

    Returns:
        uint8 (H, W, channels): grey is repeated, colours become grey, alpha is dropped; None if there is no such way.
    """
    num_given = pixels.shape[2]
    if num_given == channels:
        return pixels
    if channels not in (1, 3) or num_given > 4:
        return None
    colours = pixels[..., : 1 if num_given < 3 else 3]
    if colours.shape[2] == channels:
        return np.ascontiguousarray(colours)
    if channels == 3:
        return np.repeat(colours, 3, axis=2)
    grey = cv2.cvtColor(np.ascontiguousarray(colours), cv2.COLOR_RGB2GRAY)
    return np.asarray(grey, np.uint8)[..., None]


def within_side(image: npt.NDArray[np.uint8], max_side_px: int) -> npt.NDArray[np.uint8]:
    """Return an image (H, W, C) whose longer side has at most so many pixels, reduced if it has more."""
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def as_png(image_rgb: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 (H, W, 3), RGB, as the bytes of a PNG file."""
    return bytes(cv2.imencode(".png", np.ascontiguousarray(image_rgb[:, :, ::-1]))[1])


def as_jpeg(image_rgb: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 (H, W, 3), RGB, as the bytes of a JPEG file."""
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(image_rgb[:, :, ::-1]))[1])


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, a member of a tar archive or a permitted remote file.

    Every error of the operating system becomes a `MediaError`.
    """
    try:
        try:
            status = os.stat(path)
        except OSError:
            member = member_of(path)
            content = read_remote(path) if member is None else read_member(member)
            if content is None:
                raise
            yield BytesIO(content)
            return
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{path} cannot be read: it is a folder, not an image; name a file")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device would never end
            raise MediaError(f"{path} cannot be read: it is a pipe or a device, not a file; name a file")
        if status.st_size > _MAX_FILE_BYTES:
            raise MediaError(f"{path} cannot be read: it has {status.st_size} bytes > limit of {_MAX_FILE_BYTES}")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise MediaError(f"{path} cannot be read: there is no such file{hint_for_missing(path)}") from error
    except PermissionError as error:
        raise MediaError(f"{path} cannot be read: no permission; check the rights of the file") from error
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}; check the path and the disk") from error
    except ValueError as error:  # a null byte or a lone surrogate in the name
        raise MediaError(f"{str(path)!r} cannot be read: no file can have that name; correct it") from error


def _header(path: Path, file: BinaryIO) -> ImageHeader:
    try:
        return read_header(file)
    except HeaderError as error:
        file.seek(0)
        reason = str(error) or _kind_of_text(file.read(_NUM_SNIFFED_BYTES)) or "in an unknown image format"
        raise MediaError(f"{path} cannot be decoded: it is {reason}; replace or remove it") from error


def _kind_of_text(head: bytes) -> str | None:
    """Describe a file that begins with text or is empty; return None for other files."""
    if not head:
        return "empty (0 bytes)"
    if any(mark in head.lower() for mark in _HTML_MARKS):
        return "not an image (HTML)"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # accepts a character that is cut at the end
    except UnicodeDecodeError:
        return None
    is_text = all(character.isprintable() or character in "\t\n\r\f\ufeff" for character in text)
    return "not an image (text)" if is_text else None


def _decode(encoded: bytes, header: ImageHeader, channels: int, reduction: int) -> npt.NDArray[np.generic] | None:
    """Decode the pixels, (H, W) or (H, W, C) with red first, upright; return None for a damaged image."""
    if header.directory is not None and header.num_planes > 1 and channels == header.num_planes:
        is_colour = header.directory.number(tiff.PHOTOMETRIC, 0) == tiff.PHOTOMETRIC_RGB and channels in (3, 4)
        if not is_colour:
            return upright(tiff.read_planes(encoded, header.directory), header.orientation)
    buffer = np.frombuffer(encoded, dtype=np.uint8)
    if channels in (1, 3):
        flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
        flags |= (
            _REDUCED_FLAGS[reduction]
            | cv2.IMREAD_IGNORE_ORIENTATION
            | (cv2.IMREAD_ANYDEPTH if header.bits == 16 else 0)
        )
        image = cv2.imdecode(buffer, flags)
    else:
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if image is not None and image.ndim == 3 and image.shape[2] >= 3:
            is_grey = header.format == "PNG" and header.num_planes == 2  # OpenCV returns grey and alpha as four planes
            image = image[:, :, [0, 3] if is_grey else [2, 1, 0, 3][: image.shape[2]]]
    if image is None or header.format == "TIFF":  # OpenCV's TIFF decoder turns the image upright whatever the flags
        return image
    return upright(image, header.orientation)


def upright(image: npt.NDArray[Pixel], orientation: int) -> npt.NDArray[Pixel]:
    """Return an image (H, W) or (H, W, C) turned upright by its EXIF orientation, 1..8."""
    transpose, flip_vertically, flip_horizontally = _ORIENTATIONS[orientation]
    if transpose:
        image = image.swapaxes(0, 1)
    return image[:: -1 if flip_vertically else 1, :: -1 if flip_horizontally else 1]
