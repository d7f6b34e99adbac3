from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.errors import MediaError
from detector.media.images import IMAGE_SUFFIXES, quiet_opencv, read_image, write_image

ORIENTATION = 0x0112
# The transformation of each EXIF orientation in NumPy (rot90 turns counterclockwise).
UPRIGHT = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Make a smooth RGB image of 24 x 40 with a different ramp in each channel, which shows every rotation or swap."""
    y, x = np.mgrid[0:24, 0:40]
    return np.stack([x * 6, y * 10, (x + y) * 2], axis=-1).astype(np.uint8)


def encode(pixels: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def noise(height: int = 240, width: int = 320) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- reading


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_same_rgb_pixels(tmp_path: Path, picture: np.ndarray, form: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encode(picture, form))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, picture)


def test_jpeg_agrees_with_pillow(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(picture, "JPEG", quality=95, subsampling=0))
    reference = np.asarray(Image.open(path)).astype(np.float64)
    assert np.abs(read_image(path).astype(np.float64) - reference).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_every_colour_mode_is_read_as_three_channels(tmp_path: Path, picture: np.ndarray, mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    path = tmp_path / "picture"
    path.write_bytes(encode(picture, form, mode))
    reference = np.asarray(Image.open(path).convert("RGB")).astype(np.float64)
    image = read_image(path)
    assert image.shape == (24, 40, 3)
    assert np.abs(image.astype(np.float64) - reference).max() <= 2


def test_alpha_is_dropped_and_not_composited(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(np.dstack([picture, np.zeros((24, 40), np.uint8)]), "PNG"))
    np.testing.assert_array_equal(read_image(path), picture)


def test_one_channel_is_grey(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture[:, :, 0], "PNG"))
    np.testing.assert_array_equal(read_image(path, channels=1), picture[:, :, :1])


def test_four_channels_are_rgba(tmp_path: Path, picture: np.ndarray) -> None:
    rgba = np.dstack([picture, 255 - picture[:, :, 1]])
    path = tmp_path / "picture.png"
    path.write_bytes(encode(rgba, "PNG"))
    np.testing.assert_array_equal(read_image(path, channels=4), rgba)


@pytest.mark.parametrize(("channels", "found"), [(4, 3), (2, 3), (5, 3)])
def test_another_number_of_planes_is_refused(tmp_path: Path, picture: np.ndarray, channels: int, found: int) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture, "PNG"))
    with pytest.raises(MediaError, match=rf"picture\.png: expected {channels} channels, got {found}"):
        read_image(path, channels=channels)


def test_fewer_than_one_channel_raises_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 channel"):
        read_image(tmp_path / "picture.png", channels=0)


@pytest.mark.parametrize(("channels", "order"), [(1, [0]), (3, [2, 1, 0]), (4, [2, 1, 0, 3])])
def test_sixteen_bits_keep_their_high_byte(tmp_path: Path, channels: int, order: list[int]) -> None:
    wide = np.arange(24 * 40 * channels, dtype=np.uint16).reshape(24, 40, channels) * 17
    path = tmp_path / "wide.png"
    path.write_bytes(cv2.imencode(".png", wide[:, :, order])[1].tobytes())
    np.testing.assert_array_equal(read_image(path, channels), (wide >> 8).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_exactly_once(
    tmp_path: Path, picture: np.ndarray, form: str, orientation: int
) -> None:
    path = tmp_path / "turned"
    options = {"tiffinfo": {ORIENTATION: orientation}} if form == "TIFF" else {"exif": exif(orientation)}
    path.write_bytes(encode(picture, form, **options))
    reference = UPRIGHT[orientation](picture).astype(np.float64)
    image = read_image(path)
    assert image.shape == reference.shape
    assert np.abs(image.astype(np.float64) - reference).max() <= (16 if form == "JPEG" else 0)
    assert read_image(path, channels=1).shape == (*reference.shape[:2], 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_exactly_once_to_four_planes(
    tmp_path: Path, picture: np.ndarray, form: str, orientation: int
) -> None:
    alpha = np.full((24, 40), 255, np.uint8) if form == "TIFF" else 255 - picture[:, :, 1] // 2
    rgba = np.dstack([picture, alpha])
    options: dict[str, Any]
    options = {"tiffinfo": {ORIENTATION: orientation}} if form == "TIFF" else {"exif": exif(orientation)}
    options |= {"lossless": True, "exact": True} if form == "WEBP" else {}
    path = tmp_path / "turned"
    path.write_bytes(encode(rgba, form, **options))
    np.testing.assert_array_equal(read_image(path, channels=4), UPRIGHT[orientation](rgba))


def test_damaged_exif_block_is_ignored(tmp_path: Path, picture: np.ndarray) -> None:
    rgba = np.dstack([picture, picture[:, :, 0]])
    path = tmp_path / "turned.png"
    for damage in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", exif(6)[6:][:18], b"\xff" * 64):
        path.write_bytes(encode(rgba, "PNG", exif=b"Exif\0\0" + damage))
        np.testing.assert_array_equal(read_image(path, channels=4), rgba)


def test_suffix_and_trailing_bytes_are_ignored(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "a png named.jpg"
    path.write_bytes(encode(picture, "PNG") + b"trailing bytes")
    np.testing.assert_array_equal(read_image(path), picture)


@pytest.mark.parametrize("name", ["späce und ü.png", "图 片.png", "a#b%20c.png", "[x]*.png"])
def test_any_file_name_is_read_and_written(tmp_path: Path, picture: np.ndarray, name: str) -> None:
    write_image(tmp_path / name, picture)
    np.testing.assert_array_equal(read_image(tmp_path / name), picture)


def test_image_of_one_pixel_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    path.write_bytes(encode(np.array([[[1, 2, 3]]], dtype=np.uint8), "PNG"))
    assert read_image(path).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_listed_suffix_can_be_read(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    forms = {".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM"}
    form = forms.get(suffix) or Image.registered_extensions()[suffix]
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encode(picture, form, {".pgm": "L", ".pbm": "1"}.get(suffix)))
    assert suffix == suffix.lower()
    assert read_image(path).shape == (24, 40, 3)


# ---- refused files


def refused(path: Path, channels: int = 3) -> str:
    with pytest.raises(MediaError) as caught:
        read_image(path, channels)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def test_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "gone.jpg")


def test_dangling_link_is_refused_as_missing(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "there is no such file" in refused(tmp_path / "link.jpg")


def test_folder_is_refused_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    assert "it is a folder" in refused(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "Permission denied"), "no permission"), (OSError(5, "Input/output error"), "Input/output")],
)
def test_system_error_is_reported_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fail(self: Path, mode: str) -> None:
        raise error

    (tmp_path / "picture.jpg").touch()
    monkeypatch.setattr(Path, "open", fail)
    assert words in refused(tmp_path / "picture.jpg")


def test_impossible_file_name_is_refused() -> None:
    with pytest.raises(MediaError, match="no file can have that name"):
        read_image(Path("a\0b.jpg"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image (HTML)"),
        (b"\n\n  <HTML lang='en'>", "not an image (HTML)"),
        (b"hello, I am no image\r\n", "not an image (text)"),
        ("\ufeffgrüß Gott ".encode() * 200, "not an image (text)"),
        (("x" * 1023 + "ü").encode(), "not an image (text)"),
        (bytes(range(256)), "in an unknown image format"),
        (b"\0" * 100, "in an unknown image format"),
        (b"\xff\xd8\xff\xe0", "a truncated, damaged or unsupported JPEG"),
        (b"GIF89a", "a truncated, damaged or unsupported GIF"),
    ],
)
def test_error_for_another_file_describes_it(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert words in refused(path)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["JPEG", "progressive JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_image_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, share: float, channels: int
) -> None:
    options: dict[str, Any] = {"progressive": True} if form.startswith("progressive") else {}
    whole = encode(noise(), form.split()[-1], **options)
    path = tmp_path / "half.img"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "half.img cannot be decoded" in refused(path, channels)
    assert capfd.readouterr() == ("", "")


def test_png_with_a_damaged_block_is_refused_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(encode(noise(), "PNG"))
    whole[len(whole) // 2] ^= 0xFF
    path = tmp_path / "flip.png"
    path.write_bytes(whole)
    assert "a truncated, damaged or unsupported PNG" in refused(path)
    assert capfd.readouterr() == ("", "")


def test_wrong_checksum_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    whole = bytearray(encode(picture, "PNG"))
    whole[whole.index(b"IEND") - 8] ^= 1  # the name of a chunk follows its length and the checksum of the chunk before
    path = tmp_path / "sum.png"
    path.write_bytes(whole)
    assert "a truncated, damaged or unsupported PNG" in refused(path)


def test_wrong_checksum_of_a_comment_is_accepted(tmp_path: Path, picture: np.ndarray) -> None:
    whole = encode(picture, "PNG")
    comment = chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0"
    end = whole.index(b"IEND") - 4
    path = tmp_path / "sum.png"
    path.write_bytes(whole[:end] + comment + whole[end:])
    np.testing.assert_array_equal(read_image(path), picture)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_float_pixels_are_refused_with_their_type(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "float.tiff"
    path.write_bytes(cv2.imencode(".tiff", np.ones((4, 6, channels), np.float32))[1].tobytes())
    assert "expected pixels of 8 or 16 bits, got float32" in refused(path, channels)


def test_random_damage_gives_an_image_or_a_media_error(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    path = tmp_path / "damaged"
    num_refused = 0
    for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
        whole = encode(noise(24, 40), form)
        for channels in (1, 3, 4):
            for _ in range(20):
                damaged = bytearray(whole)
                for position in random.integers(0, len(whole), 4):
                    damaged[position] = random.integers(0, 256)
                path.write_bytes(damaged)
                try:
                    assert read_image(path, channels).shape[2] == channels
                except MediaError:
                    num_refused += 1
    assert num_refused > 50


# ---- the log level


def test_log_level_is_restored_when_the_last_thread_leaves() -> None:
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    inside, leave = threading.Event(), threading.Event()

    def decode() -> None:
        with quiet_opencv():
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=decode)
    with quiet_opencv():
        thread.start()
        assert inside.wait(5)
    assert logging.getLogLevel() == logging.LOG_LEVEL_SILENT
    leave.set()
    thread.join()
    assert logging.getLogLevel() == before != logging.LOG_LEVEL_SILENT


def test_log_level_is_restored_after_an_error(tmp_path: Path) -> None:
    before = cv2.utils.logging.getLogLevel()
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    refused(tmp_path / "x.png")
    assert cv2.utils.logging.getLogLevel() == before


# ---- writing


def test_written_jpeg_keeps_its_colours(tmp_path: Path, picture: np.ndarray) -> None:
    write_image(tmp_path / "picture.jpg", picture)
    error = read_image(tmp_path / "picture.jpg").astype(np.float64) - picture
    assert np.sqrt((error**2).mean()) < 6


def test_array_view_is_written_with_its_own_layout(tmp_path: Path, picture: np.ndarray) -> None:
    write_image(tmp_path / "view.png", picture[::-2, 3::3])
    np.testing.assert_array_equal(read_image(tmp_path / "view.png"), picture[::-2, 3::3])


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.txt"])
def test_unknown_suffix_is_refused_and_leaves_no_file(tmp_path: Path, picture: np.ndarray, name: str) -> None:
    with pytest.raises(MediaError, match=r"picture.* cannot be written"):
        write_image(tmp_path / name, picture)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_refused_when_writing(tmp_path: Path, picture: np.ndarray) -> None:
    with pytest.raises(MediaError, match=r"picture\.png cannot be written: No such file or directory"):
        write_image(tmp_path / "gone" / "picture.png", picture)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_writing_another_shape_or_type_raises_a_value_error(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        write_image(tmp_path / "picture.png", image)
