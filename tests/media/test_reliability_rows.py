"""Behaviour of the image reader for unusual files, row by row: E refused, S skipped, W read with a warning, OK read.

The reader refuses with a `MediaError`; whoever reads many files (training, evaluation, prediction) counts and lists it
as skipped, so E and S are the same error here. Rows 23 to 25 of annotation files are in `tests/data`, what the commands
print in `tests/cli`.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.errors import MediaError
from detector.media.images import MAX_PIXELS, LoadedImage, image_hw, load_image, write_image

Y, X = np.mgrid[0:24, 0:40]
PICTURE = np.stack([X * 6, Y * 10, (X + Y) * 2], axis=-1).astype(np.uint8)


def encode(form: str, mode: str | None = None, pixels: np.ndarray = PICTURE, **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def frames(form: str) -> bytes:
    out = io.BytesIO()
    others = [Image.fromarray(255 - PICTURE), Image.fromarray(PICTURE[::-1])]
    options = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(PICTURE).save(out, form, save_all=True, append_images=others, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bilevel_png(width: int, height: int, data: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def oriented(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(form, **({"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif.tobytes()}))


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def wide(suffix: str, channels: int) -> bytes:
    pixels = (np.arange(24 * 40 * channels, dtype=np.uint16) * 17).reshape(24, 40, channels)
    return cv2.imencode(suffix, pixels)[1].tobytes()


JPEG, PNG, GIF, TIFF = encode("JPEG", quality=95), encode("PNG"), encode("GIF"), encode("TIFF")
PROGRESSIVE = encode("JPEG", quality=95, progressive=True)
BMP, WEBP = encode("BMP"), encode("WEBP", lossless=True)
SCAN = JPEG.index(b"\xff\xda")
LIMIT = f"pixels > limit of {MAX_PIXELS}"
DAMAGED = "a truncated, damaged or unsupported"
NO_END = "is a JPEG without end marker, all of its pixels are there"
ONE_OF_SEVERAL = "has more than one frame, only the first is used"
JPEG_SIZE = JPEG.index(struct.pack(">HH", 24, 40))
FLOAT_TIFF = cv2.imencode(".tiff", np.ones((4, 6, 3), np.float32))[1].tobytes()

# (row, content, outcome, words)
ROWS: list[tuple[str, bytes, str, str]] = [
    ("2 empty", b"", "S", "it is empty (0 bytes)"),
    ("3 text", b"hello, I am no image\n", "S", "not an image (text)"),
    ("3 HTML", b"<!DOCTYPE html><html><body>404</body></html>", "S", "not an image (HTML)"),
    ("3 JSON", b'{"error": "not found"}', "S", "not an image (text)"),
    ("3 text like BMP", b"BMW is a car that is no image", "S", "not an image (text)"),
    ("3 text like PNM", b"P5 is what some call this", "S", "not an image (text)"),
    ("3 AVIF", encode("AVIF"), "S", "an AVIF file, which is not supported (use PNG or JPEG)"),
    ("3 zip", b"PK\3\4" + bytes(60), "S", "a zip file, which is not supported"),
    ("3 noise", bytes(range(255, 100, -1)), "S", "in an unknown image format"),
    ("4 half a JPEG", JPEG[: len(JPEG) // 2], "S", f"{DAMAGED} JPEG"),
    ("4 most of a JPEG", JPEG[:-20], "S", "a truncated JPEG"),
    ("4 most of a progressive JPEG", PROGRESSIVE[:-20], "S", "a truncated JPEG"),
    ("4 a JPEG header", JPEG[:SCAN], "S", f"{DAMAGED} JPEG"),
    ("5 no end", JPEG[:-2], "W", NO_END),
    ("5 half an end", JPEG[:-1], "W", NO_END),
    ("5 progressive", PROGRESSIVE[:-2], "W", NO_END),
    ("5 grey", encode("JPEG", "L")[:-2], "W", NO_END),
    ("5 CMYK", encode("JPEG", "CMYK")[:-2], "W", NO_END),
    # OpenCV does not report the errors of its JPEG decoder, see `detector.media.images`.
    ("6 a flipped bit", changed(JPEG, SCAN + 60, bytes([JPEG[SCAN + 60] ^ 1])), "OK", ""),
    ("6 a flipped bit in the header", changed(JPEG, SCAN + 4, bytes([JPEG[SCAN + 4] ^ 64])), "S", f"{DAMAGED} JPEG"),
    ("7 truncated", PNG[: len(PNG) // 2], "S", f"{DAMAGED} PNG"),
    ("7 without end", PNG[:-12], "S", f"{DAMAGED} PNG"),
    ("7 bad checksum", changed(PNG, 29, b"\0\0\0\0"), "S", f"{DAMAGED} PNG"),
    ("7 too little data", bilevel_png(40, 24, zlib.compress(bytes(30))), "S", f"{DAMAGED} PNG"),
    ("8 JPEG", JPEG + b"trailing \xff\xd8 bytes", "OK", ""),
    ("8 PNG", PNG + b"trailing bytes", "OK", ""),
    ("9 CMYK", encode("JPEG", "CMYK", quality=95), "OK", ""),
    ("10 grey", encode("PNG", "L"), "OK", ""),
    ("10 grey and alpha", encode("PNG", "LA"), "OK", ""),
    ("10 bilevel", encode("PNG", "1"), "OK", ""),
    ("10 palette", encode("PNG", "P"), "OK", ""),
    ("10 GIF", GIF, "OK", ""),
    ("11 RGBA", encode("PNG", pixels=np.dstack([PICTURE, X.astype(np.uint8)])), "OK", ""),
    ("12 16 bit grey", wide(".png", 1), "OK", ""),
    ("12 16 bit RGB", wide(".png", 3), "OK", ""),
    ("12 16 bit TIFF", wide(".tiff", 3), "OK", ""),
    ("13 float", FLOAT_TIFF, "S", "expected pixels of 8 or 16 bits, got float32"),
    *[(f"14 {orientation}", oriented("JPEG", orientation), "OK", "") for orientation in range(1, 9)],
    *[(f"15 {orientation}", oriented("TIFF", orientation), "OK", "") for orientation in range(1, 9)],
    ("16 GIF", frames("GIF"), "W", ONE_OF_SEVERAL),
    ("16 WebP", frames("WEBP"), "W", ONE_OF_SEVERAL),
    ("16 APNG", frames("PNG"), "W", ONE_OF_SEVERAL),
    ("16 half a GIF", frames("GIF")[:1000], "S", f"{DAMAGED} GIF"),
    ("17 TIFF", frames("TIFF"), "W", "has more than one page, only the first is used"),
    ("18 one pixel", encode("PNG", pixels=PICTURE[:1, :1]), "OK", ""),
    ("18 a line", encode("PNG", pixels=np.zeros((1, 5000, 3), np.uint8)), "OK", ""),
    ("19 PNG", bilevel_png(32000, 32000, zlib.compress(bytes(4001 * 32000), 9)), "S", f"= 1024000000 {LIMIT}"),
    ("20 PNG", bilevel_png(65535, 65535, b""), "S", f"65535 x 65535 = 4294836225 {LIMIT}"),
    ("20 PNG of no data", bilevel_png(8000, 8000, b""), "S", f"{DAMAGED} PNG"),
    ("20 JPEG", changed(JPEG, JPEG_SIZE, b"\xff\xff\xff\xff"), "S", LIMIT),
    ("20 GIF", changed(GIF, 6, b"\xff\xff\xff\xff"), "S", LIMIT),
    ("20 BMP", changed(BMP, 18, struct.pack("<ii", 65535, -65535)), "S", LIMIT),
    ("20 WebP", b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2, "S", LIMIT),
    (
        "20 TIFF",
        TIFF.replace(struct.pack("<HHIHxx", 256, 4, 1, 40), struct.pack("<HHII", 256, 4, 1, 2**31)),
        "S",
        LIMIT,
    ),
    ("20 PNM", b"P5 65535 65535 255\n" + bytes(99), "S", LIMIT),
    ("20 no pixels", bilevel_png(0, 5, b""), "S", "a PNG that claims 0 x 5 pixels"),
    ("21 PNG named .jpg", PNG, "OK", ""),
]


def outcome(path: Path) -> tuple[str, str, LoadedImage | None]:
    try:
        image = load_image(path)
    except MediaError as error:
        return "S", str(error), None
    return "W" if image.warnings else "OK", " ".join(image.warnings), image


def test_rows_are_built_as_intended() -> None:
    assert len({name for name, *_ in ROWS}) == len(ROWS)
    assert {int(name.split()[0]) for name, *_ in ROWS} == set(range(2, 22))
    assert b"\xff\xff\xff\xff" not in JPEG + GIF
    assert struct.pack("<HHIHxx", 256, 4, 1, 40) in TIFF


@pytest.mark.parametrize(("name", "content", "wanted", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_every_row_has_its_outcome_and_message(
    name: str, content: bytes, wanted: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    found, text, image = outcome(path)
    assert (found, words in text) == (wanted, True), text
    assert "\n" not in text
    assert (str(path) in text) == (wanted != "OK")
    if "data" not in name:  # libpng prints a message if data is missing
        assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == content
    if image is not None:
        assert (image.pixels.dtype, image.pixels.ndim, image.pixels.shape[2]) == (np.uint8, 3, 3)
        assert image.pixels.shape[:2] == image.source_hw == image_hw(path)
        if wanted == "W" and "grey" not in name:  # the complete first frame
            assert np.abs(image.pixels.astype(int) - PICTURE).mean() < 8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),  # row 1
        (lambda path: path.mkdir(), "it is a folder, not an image"),  # row 23
        (lambda path: path.symlink_to("gone"), "there is no such file"),  # row 24
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (lambda path: os.mkfifo(path), "it is a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a pipe or a device"),
    ],
)
def test_other_than_a_file_is_refused_without_blocking(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "x.jpg")
    found, text, _ = outcome(tmp_path / "x.jpg")
    assert (found, words in text) == ("S", True), text
    with pytest.raises(MediaError, match="cannot be read"):
        image_hw(tmp_path / "x.jpg")


def test_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # row 24
    def deny(path: Path, mode: str) -> None:  # simulated, because the superuser may read everything
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.jpg").write_bytes(JPEG)
    monkeypatch.setattr(Path, "open", deny)
    assert "no permission" in outcome(tmp_path / "x.jpg")[1]


@pytest.mark.parametrize("name", ["späce und ü.png", "图 片.png", "a#b%20c.png", "[x]*.png", "a'b\"c.png"])  # row 22
def test_any_file_name_is_read_and_written(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / name, PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(load_image(tmp_path / name).pixels, PICTURE)


@pytest.mark.parametrize(  # rows 14 and 25; the file of orientation 6 has 24 x 40 pixels upright
    ("orientation", "listed_hw", "wanted", "words"),
    [
        (1, (24, 40), "OK", ""),
        (6, (40, 24), "OK", ""),
        (
            6,
            (24, 40),
            "W",
            "has 24 x 40 pixels, but its annotation file says 40 x 24: width and height are assumed to be",
        ),
        (1, (40, 24), "W", "exchanged"),
        (1, (24, 41), "S", "has 40 x 24 pixels, but its annotation file says 41 x 24; its boxes are not rescaled"),
        (6, (25, 40), "S", "its boxes are not rescaled"),
        (1, (0, 0), "OK", ""),
    ],
)
def test_listed_size_is_compared_with_the_upright_image(
    orientation: int, listed_hw: tuple[int, int], wanted: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(oriented("JPEG", orientation))
    try:
        warnings = load_image(path, listed_hw=listed_hw).warnings
        found = ("W" if warnings else "OK", " ".join(warnings))
    except MediaError as error:
        found = ("S", str(error))
    assert (found[0], words in found[1]) == (wanted, True), found


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_decompression_bombs_are_refused_in_milliseconds_and_within_100_mb(tmp_path: Path) -> None:  # rows 19 and 20
    contents = {name: content for name, content, _, words in ROWS if LIMIT in words}
    assert len(contents) == 8
    for number, content in enumerate(contents.values()):
        (tmp_path / str(number)).write_bytes(content)
    program = f"""
        import time
        from pathlib import Path
        from detector.errors import MediaError
        from detector.media.images import load_image

        def peak_mb():
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

        before_mb, slowest_s = peak_mb(), 0
        for path in Path({str(tmp_path)!r}).iterdir():
            start_s = time.process_time()
            try:
                load_image(path)
            except MediaError:
                slowest_s = max(slowest_s, time.process_time() - start_s)
        print(peak_mb() - before_mb, slowest_s)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, text=True)
    grown_mb, slowest_s = map(float, done.stdout.split())
    assert grown_mb < 100
    assert slowest_s < 0.05
