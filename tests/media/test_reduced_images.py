from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from detector.media.images import read_image

ORIENTATION = 0x0112


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Make a smooth image with a different ramp in each channel, which JPEG keeps and which shows every shift."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 200 / width, y * 200 / height, 200 - (x + y) * 200 / (width + height)], axis=-1).astype(
        np.uint8
    )


def write(path: Path, pixels: npt.NDArray[np.uint8], orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(
        out, path.suffix[1:].upper().replace("JPG", "JPEG"), quality=98, subsampling=0, exif=exif
    )
    path.write_bytes(out.getvalue())
    return path


def block_means(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float64]:
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[: height * side, : width * side].reshape(height, side, width, side, -1).mean(axis=(1, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_each_block_of_an_upright_jpeg_becomes_its_mean(reduction: int, orientation: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", picture(48, 80), orientation)
    whole = read_image(path)
    assert whole.shape == ((48, 80, 3) if orientation < 5 else (80, 48, 3))
    reduced = read_image(path, reduction=reduction)
    assert np.abs(reduced - block_means(whole, reduction)).max() <= 2  # the two decoders round differently
    grey = read_image(path, 1, reduction)
    assert grey.shape == (*reduced.shape[:2], 1)
    assert np.abs(grey - block_means(read_image(path, 1), reduction)).max() <= 2


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_incomplete_block_becomes_a_pixel_and_shifts_no_other(reduction: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", picture(43, 77))
    reduced, wanted = read_image(path, reduction=reduction), block_means(read_image(path), reduction)
    assert reduced.shape == (-(-43 // reduction), -(-77 // reduction), 3)
    assert np.abs(reduced[: len(wanted), : wanted.shape[1]] - wanted).max() <= 2


def test_other_formats_are_read_at_full_size(tmp_path: Path) -> None:
    pixels = picture(1, 1)
    assert np.array_equal(read_image(write(tmp_path / "a.png", pixels), reduction=8), pixels)
    assert np.array_equal(read_image(write(tmp_path / "b.bmp", picture(16, 16)), reduction=2), picture(16, 16))


@pytest.mark.parametrize("reduction", [0, 3, 16])
def test_other_reductions_are_refused(reduction: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a reduction of 1, 2, 4 or 8"):
        read_image(tmp_path / "a.jpg", reduction=reduction)
