"""Mutated image files give an image or a `MediaError`, in bounded time and memory."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.errors import MediaError
from detector.media.headers import read_header
from detector.media.images import MAX_PIXELS, image_hw, load_image
from detector.media.tiff import HeaderError

resource = pytest.importorskip("resource")  # Windows has none

Y, X = np.mgrid[0:24, 0:40]
PICTURE = np.stack([X * 6, Y * 10, (X + Y) * 2], axis=-1).astype(np.uint8)
INTERESTING = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xd9", b"\xff\xda", b"\x80"]


def encode(form: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(out, form, **options)
    return out.getvalue()


def animation(form: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(pixels) for pixels in (PICTURE, 255 - PICTURE)]
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def planes_tiff(planes: int) -> bytes:
    values = {256: 40, 257: 24, 258: 8, 259: 1, 262: 1, 273: 8, 277: planes, 278: 24, 279: 960 * planes}
    directory = struct.pack("<H", len(values))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + 960 * planes) + bytes(range(240)) * 4 * planes + directory


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = (np.arange(2880, dtype=np.uint16) * 20).reshape(24, 40, 3)
    forms = [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "LA"),
        ("PNG", "1"),
    ]
    forms += [
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("BMP", "P"),
        ("TIFF", "RGB"),
        ("TIFF", "RGBA"),
        ("WEBP", "RGB"),
        ("PPM", "L"),
    ]
    return [
        *[encode(form, mode) for form, mode in forms],
        encode("JPEG", progressive=True, exif=exif.tobytes()),
        encode("JPEG", quality=95)[:-2],
        encode("PNG", exif=exif.tobytes()),
        encode("WEBP", "RGBA", lossless=True, exif=exif.tobytes()),
        encode("TIFF", compression="tiff_lzw"),
        encode("TIFF", compression="tiff_deflate", big_tiff=True),
        *[animation(form) for form in ("GIF", "PNG", "WEBP", "TIFF")],
        *[cv2.imencode(suffix, wide)[1].tobytes() for suffix in (".png", ".tiff", ".ppm")],
        planes_tiff(5),
    ]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        # Half of the changes are in the header, which is a small part of the file.
        at = int(random.integers(min(len(data), 64) if random.random() < 0.5 else len(data)))
        kind = random.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        elif kind == 2:
            new = INTERESTING[int(random.integers(len(INTERESTING)))]
            data[at : at + len(new)] = new
        elif kind == 3:
            data[at:at] = random.integers(0, 256, int(random.integers(1, 9)), dtype=np.uint8).tobytes()
        elif kind == 4:
            del data[at : at + int(random.integers(1, 9))]
        elif kind == 5:
            data[at:at] = data[at : at + int(random.integers(1, 64))]
        elif random.random() < 0.3:
            del data[at:]
        if not data:
            return b"\0"
    return bytes(data)


@pytest.mark.parametrize("num_files", [2000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_mutated_images_are_read_or_refused(num_files: int, tmp_path: Path) -> None:
    random = np.random.default_rng(num_files)
    contents, path = seeds(), tmp_path / "mutated"
    num_past_header = num_read = 0
    slowest_s, before_kb = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(num_files):
        content = mutated(contents[number % len(contents)], random)
        path.write_bytes(content)
        try:
            height, width = read_header(io.BytesIO(content)).largest_hw
            num_past_header += height * width <= MAX_PIXELS
        except HeaderError:
            pass
        channels = (3, 3, 1, 4, 5)[number % 5]
        start_s, image, said = time.process_time(), None, ""
        try:
            image = load_image(path, channels, listed_hw=(24, 40) if number % 2 else None)
        except MediaError as error:
            said = str(error)
        slowest_s = max(slowest_s, time.process_time() - start_s)
        if image is None:
            assert str(path) in said, content
            assert "\n" not in said, content
        else:
            num_read += 1
            assert image.pixels.dtype == np.uint8, content
            assert image.pixels.shape == (*image_hw(path), channels), content
    assert num_past_header > 0.2 * num_files
    assert num_read > 0.1 * num_files
    assert slowest_s < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 2 * 2**20
    assert list(tmp_path.iterdir()) == [path]
