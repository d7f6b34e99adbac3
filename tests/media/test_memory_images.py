"""A picture gives the same pixels as a file, as its bytes, as a PIL image and as an array, in every mode of Pillow."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detector.errors import ConfigError, MediaError
from detector.media.images import with_channels
from detector.media.sources import as_sources, require_images

_RANDOM = np.random.default_rng(0)
GREY = np.kron(_RANDOM.integers(0, 256, (4, 6), dtype=np.uint8), np.ones((8, 8), np.uint8))
RGB = np.kron(_RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
ALPHA = np.kron(_RANDOM.integers(0, 256, (4, 6), dtype=np.uint8), np.ones((8, 8), np.uint8))
DEEP = GREY.astype(np.uint16) * 256 + 77
# How a picture of each mode is made, the file format that holds the mode, and the largest difference of pixels.
MODES: dict[str, tuple[Callable[[], Image.Image], str, int]] = {
    "1": (lambda: Image.fromarray(GREY).point(lambda value: 255 * (value > 127)).convert("1"), "PNG", 0),
    "L": (lambda: Image.fromarray(GREY), "PNG", 0),
    "LA": (lambda: Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), "PNG", 0),
    "P": (lambda: Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", 0),
    "RGB": (lambda: Image.fromarray(RGB), "PNG", 0),
    "RGBA": (lambda: Image.fromarray(np.dstack([RGB, ALPHA])), "PNG", 0),
    # Two programs convert the colours of these: OpenCV those of the file, Pillow those of the image.
    "CMYK": (lambda: Image.fromarray(RGB).convert("CMYK"), "JPEG", 2),
    "YCbCr": (lambda: Image.fromarray(RGB).convert("YCbCr"), "JPEG", 2),
    "I;16": (lambda: Image.fromarray(DEEP), "PNG", 0),
    "I": (lambda: Image.fromarray(DEEP.astype(np.int32)), "PNG", 0),
}


def pixels_of(given: object, channels: int = 3, **options: Any) -> np.ndarray:
    """Return the pixels of anything that prediction takes, as the model gets them."""
    (source,) = require_images(as_sources(given, **options)[0], "a test")
    return source.load(channels).pixels


def stored(picture: Image.Image, format: str, orientation: int) -> bytes:
    """Return a file of a picture with an EXIF orientation."""
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    picture = Image.fromarray(DEEP) if picture.mode == "I" else picture  # only some versions of Pillow write the mode
    picture.save(file, format, exif=exif, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {}))
    return file.getvalue()


def assert_near(ours: np.ndarray, theirs: np.ndarray, largest: int) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= largest


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_picture_gives_the_same_pixels_in_every_form(
    mode: str, orientation: int, channels: int, tmp_path: Path
) -> None:
    make, format, largest = MODES[mode]
    picture = make()
    assert picture.mode == mode
    encoded = stored(picture, format, orientation)
    (tmp_path / "picture").write_bytes(encoded)
    expected = pixels_of(tmp_path / "picture", channels)
    assert len(np.unique(expected)) > (1 if mode == "1" else 10)
    np.testing.assert_array_equal(pixels_of(encoded, channels), expected)
    np.testing.assert_array_equal(pixels_of(bytearray(encoded), channels), expected)
    grey = 0 if channels == 3 or (len(picture.getbands()) < 3 and mode != "P") else 1  # rounded by two programs
    with Image.open(BytesIO(encoded)) as opened:
        assert_near(pixels_of(opened, channels), expected, max(largest, grey))
    tagged = picture.copy()
    tagged.getexif()[0x0112] = orientation  # as `Image.open(...).convert(...)` leaves it
    if format == "PNG":
        assert_near(pixels_of(tagged, channels), expected, grey)
    upright = ImageOps.exif_transpose(tagged)
    assert_near(pixels_of(upright, channels), pixels_of(tagged, channels), 0)  # turned once, not twice
    if mode in ("1", "L", "LA", "RGB", "RGBA", "I;16"):  # the values of the others are no grey or RGB
        assert_near(pixels_of(np.asarray(upright), channels), expected, grey)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(GREY.astype(np.float32)), "8 or 16 bits, got mode F, whose range is not known"),
        (Image.fromarray(GREY.astype(np.int32) - 300), r"0\.\.65535 in a PIL image of mode I, got -\d+ to"),
        (
            Image.fromarray(GREY.astype(np.int32) * 1000),
            r"values of 0\.\.65535 in a PIL image of mode I, got 0|to \d{6}",
        ),
    ],
)
def test_picture_of_unknown_range_is_refused_as_an_image_and_as_an_array(picture: Image.Image, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        pixels_of(picture)
    with pytest.raises(MediaError, match=r"expected uint8 pixels of shape .*, got (float|int)32"):
        pixels_of(np.asarray(picture))


def test_float_picture_is_refused_as_a_file_and_as_bytes(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tiff")
    for given in (tmp_path / "float.tiff", (tmp_path / "float.tiff").read_bytes()):
        with pytest.raises(MediaError, match="expected pixels of 8 or 16 bits, got float32"):
            pixels_of(given)


def test_picture_of_16_bits_with_values_of_8_is_used_with_a_warning() -> None:
    (source,) = require_images(as_sources(Image.fromarray(GREY.astype(np.int32)))[0], "a test")
    loaded = source.load(3)
    assert not loaded.pixels.any()
    assert "has 16 bits, and its highest value is" in loaded.warnings[0]


def test_damaged_pil_image_is_an_error_that_names_it() -> None:
    encoded = stored(Image.fromarray(_RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG", 1)
    with (
        Image.open(BytesIO(encoded[:2000])) as cut,
        pytest.raises(MediaError, match="image 0: the PIL image cannot be"),
    ):
        pixels_of(cut)


@pytest.mark.parametrize("tensor", [False, True])
def test_bgr_array_gives_the_pixels_of_the_rgb_one(tensor: bool) -> None:
    for rgb, order in ((RGB, [2, 1, 0]), (np.dstack([RGB, ALPHA]), [2, 1, 0, 3])):
        bgr: Any = rgb[..., order]
        given = torch.from_numpy(np.ascontiguousarray(bgr)).permute(2, 0, 1) if tensor else bgr
        np.testing.assert_array_equal(pixels_of(given, channel_order="bgr"), RGB)
        assert (pixels_of(given) != RGB).any()
    np.testing.assert_array_equal(pixels_of(GREY, 1, channel_order="bgr")[..., 0], GREY)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(RGB), channel_order="bgr"), RGB)  # it knows its own order
    with pytest.raises(
        ConfigError, match=r"channel_order: expected 'rgb' or 'bgr', got 'BGR'; cv2\.imread gives 'bgr'"
    ):
        pixels_of(RGB, channel_order="BGR")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16])
def test_tensor_of_another_depth_is_converted_as_an_array(dtype: torch.dtype) -> None:
    values = DEEP if dtype == torch.uint16 else GREY > 127
    expected = GREY if dtype == torch.uint16 else (GREY > 127) * np.uint8(255)
    for given in (values, torch.from_numpy(values), values.byteswap().view(values.dtype.newbyteorder())):
        np.testing.assert_array_equal(pixels_of(given, 1)[..., 0], expected)


def test_channels_are_converted_as_those_of_files() -> None:
    assert with_channels(np.dstack([RGB, RGB]), 3) is None
    assert with_channels(RGB, 4) is None
    grey = with_channels(RGB, 1)
    assert grey is not None
    luma = RGB.astype(np.float64) @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert_near(grey[..., 0], luma, 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((2, 48, 64, 3), np.uint8), r"expected one image, got a batch \(2, 48, 64, 3\); give a list of its"),
        (torch.zeros((1, 3, 48, 64)), r"expected one image, got a batch \(1, 3, 48, 64\); give a list of its images"),
        (
            torch.zeros((48, 64, 3), dtype=torch.uint8),
            r"tensor of shape \(C, H, W\), got \(48, 64, 3\).*permute",
        ),
        (np.zeros((3, 48, 64), np.uint8), r"array of shape \(H, W, C\), got \(3, 48, 64\).*transpose\(1, 2, 0\)"),
    ],
    ids=["batch", "batch-of-one-tensor", "tensor-hwc", "array-chw"],
)
def test_batch_and_other_order_of_axes_are_named(given: object, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        pixels_of(given)
