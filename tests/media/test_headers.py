from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.errors import MediaError
from detector.media.headers import ImageHeader, orientation_of, read_header
from detector.media.images import image_hw, read_image
from detector.media.tiff import HeaderError

Y, X = np.mgrid[0:24, 0:40]
PICTURE = np.stack([X * 6, Y * 10, (X + Y) * 2], axis=-1).astype(np.uint8)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def encode(form: str, mode: str = "RGB", orientation: int = 1, **options: object) -> bytes:
    out = io.BytesIO()
    if orientation != 1:
        options |= {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif(orientation)}
    Image.fromarray(PICTURE).convert(mode).save(out, form, **options)
    return out.getvalue()


def header_of(content: bytes) -> ImageHeader:
    return read_header(io.BytesIO(content))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_header_has_the_size_of_the_upright_image(
    form: str, options: dict[str, Any], orientation: int, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(encode(form, orientation=orientation, **options))
    header = header_of(path.read_bytes())
    assert (header.stored_hw, header.orientation) == ((24, 40), orientation)
    assert image_hw(path) == header.image_hw == read_image(path).shape[:2]
    assert image_hw(path) == ((40, 24) if orientation > 4 else (24, 40))


@pytest.mark.parametrize(
    ("content", "format_name", "num_planes"),
    [
        (encode("GIF"), "GIF", 1),
        (encode("BMP"), "BMP", 3),
        (encode("PPM"), "PNM", 3),
        (encode("PPM", "L"), "PNM", 1),
        (encode("PPM", "1"), "PNM", 1),
        (encode("PNG", "LA"), "PNG", 2),
        (encode("PNG", "RGBA"), "PNG", 4),
        (encode("PNG", "P"), "PNG", 1),
        (encode("JPEG", "L"), "JPEG", 1),
        (encode("JPEG", "CMYK"), "JPEG", 4),
        (encode("TIFF", "RGBA"), "TIFF", 4),
    ],
)
def test_every_format_has_its_size_and_planes(content: bytes, format_name: str, num_planes: int) -> None:
    header = header_of(content)
    assert (header.format, header.image_hw, header.num_planes) == (format_name, (24, 40), num_planes)
    assert not header.has_more_frames
    assert header.largest_hw == (24, 40)


def test_bitmap_may_be_stored_from_the_top_or_have_the_old_header() -> None:
    windows = encode("BMP")
    assert header_of(windows[:22] + struct.pack("<i", -24) + windows[26:]).stored_hw == (24, 40)
    assert header_of(b"BM" + bytes(12) + struct.pack("<IHH", 12, 40, 24)).stored_hw == (24, 40)


@pytest.mark.parametrize(
    "text", [b"P5\n40 24\n255\n", b"P5 40\t24 255 ", b"P5#x\n# 1 2\n40#\n24\n# 7 \n255\n", b"P5\r\n40 24\r\n255\n"]
)
def test_netpbm_header_may_have_comments_anywhere(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    path.write_bytes(text + PICTURE[:, :, 0].tobytes())
    assert image_hw(path) == (24, 40)


@pytest.mark.parametrize("max_value", [1, 15, 100, 255, 256, 1023, 4095, 65535])
def test_largest_number_of_a_netpbm_file_is_white(max_value: int, tmp_path: Path) -> None:
    numbers = np.linspace(0, max_value, 24 * 40).round().astype(">u2" if max_value > 255 else np.uint8)
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 40 24 %d\n" % max_value + numbers.tobytes())
    reference = numbers.astype(np.float64) * 255 / max_value
    found = read_image(path, 1).ravel()
    assert (found[0], found[-1]) == (0, 255)
    assert np.abs(found - reference).max() <= (1 if max_value == 65535 else 0.5)  # 16 bits keep their high byte


def test_exif_block_after_the_pixels_of_a_png_is_read(tmp_path: Path) -> None:
    whole = encode("PNG")
    path = tmp_path / "turned.png"
    path.write_bytes(whole[:-12] + chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + whole[-12:])
    assert image_hw(path) == (40, 24)
    np.testing.assert_array_equal(read_image(path), np.rot90(PICTURE, -1))


def test_bytes_between_the_segments_of_a_jpeg_are_skipped(tmp_path: Path) -> None:
    whole = encode("JPEG")
    at = whole.index(b"\xff\xdb")
    path = tmp_path / "x.jpg"
    path.write_bytes(whole[:at] + b"\0\0\xff\xff\xff" + whole[at + 1 :])
    assert image_hw(path) == read_image(path).shape[:2] == (24, 40)


def test_thumbnail_inside_a_jpeg_is_not_read_as_the_image() -> None:
    whole, thumbnail = encode("JPEG"), encode("JPEG")[:300].replace(struct.pack(">HH", 24, 40), b"\0\1\0\1")
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert header_of(whole[:2] + segment + whole[2:]).stored_hw == (24, 40)


@pytest.mark.parametrize("exif_block", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", exif(6)[6:][:18], b"\xff" * 64])
def test_damaged_exif_block_gives_no_orientation(exif_block: bytes) -> None:
    assert orientation_of(exif_block) == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_header_is_an_error_or_has_the_right_size(form: str) -> None:
    whole = encode(form)
    num_refused = 0
    for end in range(min(len(whole), 400)):
        try:
            assert header_of(whole[:end]).stored_hw == (24, 40)
        except HeaderError:
            num_refused += 1
    assert num_refused > 8


def test_tile_larger_than_the_image_counts_for_the_size() -> None:
    directory = [(256, 4, 1, 40), (257, 4, 1, 24), (322, 4, 1, 2**17), (323, 4, 1, 2**17)]
    entries = b"".join(struct.pack("<HHII", *entry) for entry in directory)
    header = header_of(b"II*\0" + struct.pack("<IH", 8, len(directory)) + entries + bytes(4))
    assert (header.stored_hw, header.largest_hw) == ((24, 40), (2**17, 2**17))


def test_error_for_another_file_names_its_format(tmp_path: Path) -> None:
    for content, words in (
        (b"<html>", r"not an image \(HTML\)"),
        (b"", r"empty \(0 bytes\)"),
        (b"%PDF-1", "a PDF file"),
    ):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(MediaError, match=rf"x\.jpg cannot be decoded: it is {words}"):
            image_hw(tmp_path / "x.jpg")


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encode("PNG")[:60])
    assert image_hw(path) == (24, 40)
    with pytest.raises(MediaError, match="truncated"):
        read_image(path)


def test_decoded_image_has_the_size_of_the_header(tmp_path: Path) -> None:
    """A GIF whose frame is smaller than its screen has the size of the screen."""
    content = bytearray(encode("GIF"))
    content[6:10] = struct.pack("<HH", 50, 30)
    path = tmp_path / "x.gif"
    path.write_bytes(content)
    image = read_image(path)
    assert image.shape == (30, 50, 3)
    assert image_hw(path) == (30, 50)
    reference = cv2.cvtColor(np.asarray(Image.open(io.BytesIO(encode("GIF"))).convert("RGB")), cv2.COLOR_RGB2GRAY)
    assert np.abs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:24, :40].astype(int) - reference).max() <= 2


def test_damaged_animation_is_read_as_its_still_image(tmp_path: Path) -> None:
    """OpenCV's reader of animations crashes on this file."""
    out = io.BytesIO()
    Image.fromarray(PICTURE).save(out, "PNG", save_all=True, append_images=[Image.fromarray(255 - PICTURE)])
    content = bytearray(out.getvalue())
    content[content.index(b"fcTL") + 3] ^= 0x20
    at = content.index(b"fdAT") + 37
    content[at : at + 2] = b"\xff\xda"
    path = tmp_path / "x.png"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), PICTURE)
    with pytest.raises(MediaError, match="expected 4 channels, got 3"):
        read_image(path, 4)


@pytest.mark.parametrize(
    ("start", "filling"),
    [
        (b"\xff\xd8\xff\xe0\0\2", b"\0"),
        (b"\xff\xd8\xff\xe0\0\2", b"\xff"),
        (b"\xff\xd8\xff", b"\xff\xe0\0\2"),
        (encode("GIF", "L")[:-1], b"\x21\0\0"),
        (encode("GIF", "L")[:-3], b"\1\0\1\0"),
        (encode("GIF", "L")[:-1] + b"\x21\0", b"\1\1"),
        (encode("PNG")[:33], b"\0\0\0\0tEXt\0\0\0\0"),
        (encode("WEBP", "RGBA", orientation=6), b"ABCD\0\0\0\0"),
        (b"P5 ", b" "),
        (b"P5", b"#\n"),
        (struct.pack("<2sHIHHHIIHHII", b"II", 42, 8, 9, 273, 4, 2**23, 8, 256, 4, 1, 9), b"\1"),
    ],
)
def test_long_file_without_content_is_read_quickly(start: bytes, filling: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(start + filling * (2**25 // len(filling)))
    start_s = time.process_time()
    with contextlib.suppress(MediaError):
        read_image(path)
    assert time.process_time() - start_s < 4
