from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from detector.errors import MediaError
from detector.media.images import image_hw, load_image, read_image

HEIGHT, WIDTH = 24, 40


def picture(planes: int, bits: int) -> npt.NDArray[np.unsignedinteger]:
    random = np.random.default_rng(planes)
    return random.integers(0, 2**bits, (HEIGHT, WIDTH, planes)).astype(f"u{bits // 8}")


def write(
    path: Path,
    image: npt.NDArray[np.generic],
    *,
    order: Literal["<", ">"] = "<",
    planar: bool = False,
    deflate: bool = False,
    predictor: bool = False,
    rows_per_strip: int = HEIGHT,
    **tags: int,
) -> Path:
    """Write a TIFF of several planes, in strips; `tags` are further entries, such as t262=1."""
    planes, bits = image.shape[2], image.dtype.itemsize * 8
    pixels = image.astype(image.dtype.newbyteorder(order))
    strips = []
    for part in [pixels[:, :, [plane]] for plane in range(planes)] if planar else [pixels]:
        for top in range(0, HEIGHT, rows_per_strip):
            strip = part[top : top + rows_per_strip]
            if predictor:
                strip = np.diff(strip, axis=1, prepend=strip[:, :1] * 0).astype(strip.dtype)
            strips.append(zlib.compress(strip.tobytes()) if deflate else strip.tobytes())
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    body = b"".join(strips)
    entries = {256: [WIDTH], 257: [HEIGHT], 258: [bits] * planes, 259: [8 if deflate else 1], 262: [1]}
    entries |= {273: offsets, 277: [planes], 278: [rows_per_strip], 279: [len(strip) for strip in strips]}
    entries |= {284: [2 if planar else 1], 317: [2 if predictor else 1]}
    entries |= {int(name[1:]): [value] for name, value in tags.items()}
    directory = struct.pack(order + "H", len(entries))
    extra_start, extra = 8 + len(body) + 2 + 12 * len(entries) + 4, b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(order + "I", extra_start + len(extra)), extra + packed
        directory += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(body))
    path.write_bytes(start + body + directory + bytes(4) + extra)
    return path


@pytest.mark.parametrize("planes", [2, 3, 4, 5, 16])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": ">"},
        {"planar": True},
        {"deflate": True},
        {"deflate": True, "predictor": True},
        {"planar": True, "deflate": True, "predictor": True, "order": ">", "rows_per_strip": 7},
        {"rows_per_strip": 5},
    ],
)
def test_any_number_of_planes_is_read_as_written(planes: int, bits: int, options: dict, tmp_path: Path) -> None:
    image = picture(planes, bits)
    path = write(tmp_path / "x.tif", image, **options)
    found = read_image(path, planes)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, image >> 8 if bits == 16 else image)


def test_planes_are_turned_upright(tmp_path: Path) -> None:
    image = picture(5, 8)
    path = write(tmp_path / "x.tif", image, t274=6)
    np.testing.assert_array_equal(read_image(path, 5), np.rot90(image, -1))
    assert image_hw(path) == (WIDTH, HEIGHT)


def test_another_number_of_planes_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", picture(5, 8))
    for channels in (1, 3, 4, 6):
        with pytest.raises(MediaError, match=rf"x\.tif: expected {channels} channels, got 5"):
            read_image(path, channels)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"t259": 5}, "a TIFF of 5 planes in compression 5 with predictor 1 (expected no compression or deflate"),
        ({"t317": 3}, "compression 1 with predictor 3 (expected no compression or deflate, with predictor 1 or 2)"),
        ({"t322": 16, "t323": 16}, "a TIFF of 5 planes in tiles (expected strips)"),
        ({"t278": 1}, "a truncated, damaged or unsupported TIFF"),
        ({"t259": 8}, "a truncated, damaged or unsupported TIFF"),
        ({"t258": 12}, "a TIFF of 5 planes of uint12 (expected 8 or 16 bits)"),
        ({"t257": 2 * HEIGHT}, "a truncated, damaged or unsupported TIFF"),
        ({"t256": 0}, "a TIFF that claims 0 x 24 pixels"),
        ({"t257": 2**31}, "pixels > limit"),
    ],
)
def test_unsupported_file_is_refused_with_the_reason(tags: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", picture(5, 8), **tags)
    with pytest.raises(MediaError, match=re.escape(words)):
        read_image(path, 5)


@pytest.mark.parametrize(("sample_format", "bits", "found"), [(3, 32, "float32"), (2, 8, "int8"), (1, 32, "uint32")])
def test_other_pixel_types_are_refused_with_their_name(
    sample_format: int, bits: int, found: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.tif", np.ones((HEIGHT, WIDTH, 1), f"u{bits // 8}"), t339=sample_format)
    with pytest.raises(MediaError, match=f"expected pixels of 8 or 16 bits, got {found}"):
        read_image(path, 1)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", picture(5, 8))
    whole = path.read_bytes()
    for offset in (2, 300, 2000):  # cutting bytes out moves the directory, which follows the pixels
        path.write_bytes(whole[:-offset])
        with pytest.raises(MediaError, match="truncated"):
            read_image(path, 5)


def test_strip_that_inflates_too_far_stops_at_its_size(tmp_path: Path) -> None:
    image = np.zeros((HEIGHT, WIDTH, 5), np.uint8)
    path = write(tmp_path / "x.tif", image, deflate=True)
    bomb = zlib.compress(bytes(2**24), 9)
    content = bytearray(path.read_bytes() + bomb)
    for tag, value in ((273, len(content) - len(bomb)), (279, len(bomb))):
        at = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
        content[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    np.testing.assert_array_equal(load_image(path, 5).pixels, image)
