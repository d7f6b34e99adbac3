"""Images in memory: arrays, tensors and PIL images as the pixels that the reader of image files would give."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from detector.errors import ConfigError, MediaError
from detector.media.images import upright
from detector.structures.letterbox import Image

# Order of the colours of an array or tensor: PIL, matplotlib and torchvision give RGB, OpenCV gives BGR.
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]
CHANNEL_ORDERS: tuple[ChannelOrder, ...] = ("rgb", "bgr")
_EXIF_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_MAX_UINT16 = 65535
_FEW, _MANY = 4, 16  # channels where height is expected, and the reverse: the axes are in another order


def require_channel_order(order: str) -> None:
    """Reject a word that names no order of colours.

    Raises:
        ConfigError: it is neither rgb nor bgr.
    """
    if order not in CHANNEL_ORDERS:
        raise ConfigError(f"channel_order: expected 'rgb' or 'bgr', got {order!r}; cv2.imread gives 'bgr'")


def pixels_of(given: Any, name: str, channel_order: ChannelOrder = "rgb") -> tuple[Image, tuple[str, ...]]:
    """Return the pixels of an image in memory, and warnings about them.

    The pixels are those that `load_image` reads from a file of the same picture: 16-bit values keep their high byte,
    black and white become 0 and 255, palettes become colours, and a PIL image is turned upright by its EXIF
    orientation. An array or tensor says nothing about its orientation and is taken as it is.

    Args:
        given: an array uint8, uint16 or bool (H, W, C) or (H, W); a tensor of these types, (C, H, W) or (H, W); or a
            PIL image of any mode but F.
        name: the name of the image in messages.
        channel_order: the order of the colours of an array or tensor; PIL images know their own.

    Returns:
        Pixels uint8 (H, W, C), contiguous; RGB if C is 3 or 4, grey if C is 1 or 2. Warnings, a sentence each.

    Raises:
        MediaError: another type, shape or range of values.
    """
    if hasattr(given, "convert") and hasattr(given, "mode"):  # a PIL image, which need not be installed
        return _pil_pixels(given, name)
    is_tensor = hasattr(given, "detach")
    if not isinstance(given, np.ndarray) and not is_tensor:
        raise MediaError(f"image {name}: expected a path, array, PIL image or tensor, got {type(given).__name__}")
    # Before any conversion: NumPy has no counterpart of some of torch's dtypes.
    dtype, shape = str(given.dtype).removeprefix("torch."), tuple(given.shape)
    if len(shape) == 4:
        raise MediaError(
            f"image {name}: expected one image, got a batch {shape}; give a list of its images: predict(list(batch))"
        )
    if dtype not in ("uint8", "uint16", ">u2", "bool") or len(shape) not in (2, 3) or 0 in shape:
        raise MediaError(
            f"image {name}: expected uint8 pixels of shape (H, W, C), or a tensor (C, H, W), got {dtype} {shape}; "
            "scale to 0..255 and convert"
        )
    if len(shape) == 3 and (shape[0] if is_tensor else shape[2]) > _MANY and min(shape[0], shape[2]) <= _FEW:
        expected, fix = ("(C, H, W)", "permute(2, 0, 1)") if is_tensor else ("(H, W, C)", "transpose(1, 2, 0)")
        what = "a tensor" if is_tensor else "an array"
        raise MediaError(f"image {name}: expected {what} of shape {expected}, got {shape}; give image.{fix}")
    if is_tensor:
        given = given.detach().cpu().numpy()
        given = given.transpose(1, 2, 0) if given.ndim == 3 else given
    pixels = _as_uint8(given[..., None] if given.ndim == 2 else given)
    if channel_order == "bgr" and pixels.shape[2] in (3, 4):
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return np.ascontiguousarray(pixels), ()


def _as_uint8(pixels: npt.NDArray[Any]) -> Image:
    """Return values of 1, 8 or 16 bits as 8 bits; of 16 bits the high byte is kept, as from files."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _pil_pixels(given: Any, name: str) -> tuple[Image, tuple[str, ...]]:
    """Return the pixels of a PIL image, upright."""
    try:
        given.load()  # before the orientation is read: for TIFF, Pillow turns the image and forgets the orientation
        orientation = given.getexif().get(_EXIF_ORIENTATION, 1)
        pixels, warnings = _pil_values(given, name)
    except (OSError, ValueError, SyntaxError) as error:  # the file behind it is damaged, or there is no way to RGB
        raise MediaError(f"image {name}: the PIL image cannot be converted: {error}; convert it to RGB") from error
    return np.ascontiguousarray(upright(pixels, orientation if orientation in range(1, 9) else 1)), warnings


def _pil_values(given: Any, name: str) -> tuple[Image, tuple[str, ...]]:
    """Return the pixels of a PIL image as it is stored, uint8 (H, W, C)."""
    mode = given.mode
    if mode.startswith("I;16") or mode == "I":  # 16 bits; Pillow has "I" for files of 16 bits, too
        values = np.asarray(given).astype(np.int64)
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest > _MAX_UINT16:
            raise MediaError(
                f"image {name}: expected values of 0..{_MAX_UINT16} in a PIL image of mode {mode}, got {lowest} to "
                f"{highest}; scale them to 0..255 and convert it to mode L"
            )
        dark = (
            f"image {name}: a PIL image of mode {mode} has 16 bits, and its highest value is {highest}, so it is "
            "black; if its values are of 8 bits, convert it to mode L"
        )
        warnings = (dark,) if 0 < highest < 256 else ()
        return (values >> 8).astype(np.uint8)[..., None], warnings
    if mode == "F":
        raise MediaError(
            f"image {name}: expected a PIL image of 8 or 16 bits, got mode F, whose range is not known; scale it to "
            "0..255 and convert it to mode L"
        )
    if mode == "1":
        given = given.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        given = given.convert("RGB")
    pixels = np.asarray(given)
    return (pixels[..., None] if pixels.ndim == 2 else pixels), ()
