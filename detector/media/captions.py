"""Captions on pictures: text on a coloured background, placed where it hides little.

Pillow draws the letters with the DejaVu font of matplotlib. Letters that this font lacks (Chinese, Japanese, Korean)
are drawn with OpenCV's own font from OpenCV 5 on, and shown as code points in older versions.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from detector.structures.letterbox import Image

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

RGB = tuple[int, int, int]
Integers = npt.NDArray[np.int64]

_HEIGHT = 1.36  # of a caption, in font sizes, with room for accents above capitals and for descenders
_CAPITALS = 0.73  # height of a capital letter of DejaVu Sans, in font sizes
_PADDING = 0.3  # left and right of the text, in font sizes
_MOST_LETTERS = 300  # wider than a picture; thousands of letters would take seconds and megabytes
_FONT = "fonts/ttf/DejaVuSans-Bold.ttf"
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_NO_LETTER = "\uffff"  # a code point that is never a character, so that fonts draw the sign for a missing letter


def readable_ink(ground: RGB) -> RGB:
    """Return black or white, whichever has the higher contrast on a background (WCAG 2.2, "contrast ratio")."""
    levels = np.array(ground) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    # The contrast is (L + 0.05) / 0.05 with black and 1.05 / (L + 0.05) with white.
    return _BLACK if (luminance + 0.05) ** 2 >= 1.05 * 0.05 else _WHITE


@functools.lru_cache(maxsize=4096)
def caption(text: str, size_px: int, ground: RGB) -> Image:
    """Draw a text in black or white on a background, to be laid on a picture.

    Args:
        text: any text; letters that no font has are shown as code points, and a very long text is cut.
        size_px: font size, at least 5.
        ground: background colour, RGB.

    Returns:
        uint8 (h, w, 3), read-only.
    """
    cover = _cover(text, size_px).astype(np.float32)[..., None] / 255
    ink = np.array(readable_ink(ground), np.float32)
    patch = np.rint(cover * ink + (1 - cover) * np.array(ground, np.float32)).astype(np.uint8)
    patch.setflags(write=False)
    return patch


def _cover(text: str, size_px: int) -> Image:
    """Return the ink coverage of each pixel of a caption: uint8 (h, w)."""
    shown = "".join(letter if letter.isprintable() else _code_point(letter) for letter in text[:_MOST_LETTERS])
    if all(map(_has_letter, shown)):
        cover, below = _by_pillow(shown, size_px)
    elif hasattr(cv2, "FontFace"):
        cover, below = _by_opencv(shown, size_px)
    else:
        known = (letter if _has_letter(letter) else _code_point(letter) for letter in shown)
        cover, below = _by_pillow("".join(known), size_px)
    height, padding = round(_HEIGHT * size_px), max(2, round(_PADDING * size_px))
    patch = np.zeros((height, cover.shape[1] + 2 * padding), np.uint8)
    base = round((height + _CAPITALS * size_px) / 2)
    top = base + below - len(cover)
    rows = cover[max(0, -top) : max(0, height - top)]
    patch[max(0, top) : max(0, top) + len(rows), padding : padding + cover.shape[1]] = rows
    return patch


def _code_point(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


@functools.lru_cache(maxsize=1)
def _font_file() -> Path:
    """Return the file of the font without the import of matplotlib, which takes longer than drawing the picture."""
    specification = importlib.util.find_spec("matplotlib")
    for folder in (specification.submodule_search_locations if specification else None) or ():
        if (path := Path(folder) / "mpl-data" / _FONT).is_file():
            return path
    from matplotlib import get_data_path  # a system's package may keep its data elsewhere

    return Path(get_data_path()) / _FONT


@functools.lru_cache(maxsize=64)
def _font(size_px: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file()), size_px, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def _has_letter(letter: str) -> bool:
    return letter.isascii() or bytes(_font(24).getmask(letter)) != bytes(_font(24).getmask(_NO_LETTER))


def _by_pillow(text: str, size_px: int) -> tuple[Image, int]:
    """Return the ink coverage of a text, (h, w), and the number of its rows below the base line."""
    from PIL import Image as Picture
    from PIL import ImageDraw

    left, top, right, bottom = (round(side) for side in _font(size_px).getbbox(text, anchor="ls"))
    if right <= left or bottom <= top:
        return np.zeros((0, max(0, right - left)), np.uint8), 0
    picture = Picture.new("L", (right - left, bottom - top))
    ImageDraw.Draw(picture).text((-left, -top), text, 255, _font(size_px), anchor="ls")
    return np.array(picture, np.uint8), bottom


def _by_opencv(text: str, size_px: int) -> tuple[Image, int]:
    # Characters may be as wide as high; surplus width is cut off again.
    picture = np.zeros((2 * size_px, (len(text) + 1) * 2 * size_px, 3), np.uint8)
    base = round(1.4 * size_px)
    drawn = cv2.putText(picture, text, (0, base), _WHITE, cv2.FontFace("uni"), size_px)  # from version 5 on
    cover = np.asarray(drawn[1], np.uint8)[..., 0]
    columns = np.flatnonzero(cover.any(axis=0))
    width = int(columns[-1]) + 1 if len(columns) else 1
    return cover[:, :width], len(cover) - base


def place_captions(boxes_xyxy: Integers, sizes_wh: Integers, picture_hw: tuple[int, int]) -> Integers:
    """Choose places for captions: at or in their boxes, inside the picture, with little overlap between captions.

    Args:
        boxes_xyxy: int64 (N, 4), pixels; earlier captions are placed first.
        sizes_wh: int64 (N, 2), width and height of each caption.
        picture_hw: height and width of the picture.

    Returns:
        Left and top of each caption, int64 (N, 2).
    """
    height, width = picture_hw
    placed = np.zeros((len(boxes_xyxy), 4), np.int64)
    for row, ((x1, y1, x2, y2), (w, h)) in enumerate(zip(boxes_xyxy.tolist(), sizes_wh.tolist(), strict=True)):
        # Above, in the upper left corner, below; the same on the right; beside the box; in the lower left corner.
        corners = [(x1, y1 - h), (x1, y1), (x1, y2), (x2 - w, y1 - h), (x2 - w, y1), (x2 - w, y2), (x2, y1),
                   (x1 - w, y1), (x1, y2 - h)]  # fmt: skip
        on_picture = [(max(0, min(x, width - w)), max(0, min(y, height - h))) for x, y in corners]
        # A caption moved sideways is still at its box; one moved up or down is not, so it is the last resort.
        likely = [moved for moved, (x, y) in zip(on_picture, corners, strict=True) if moved[1] == y] or on_picture
        places = np.array([(x, y, x + w, y + h) for x, y in likely])
        others = placed[:row, None]
        sides = np.minimum(places[:, 2:], others[..., 2:]) - np.maximum(places[:, :2], others[..., :2])
        hidden = sides.clip(min=0).prod(axis=2).sum(axis=0)
        placed[row] = places[int(hidden.argmin())]  # the first of equal ones
    return placed[:, :2]


def lay(picture: Image, patch: Image, left_top: Sequence[int]) -> None:
    """Lay a caption on a picture, in place; parts beyond the picture are cut off."""
    (left, top), (height, width) = left_top, patch.shape[:2]
    part = picture[max(0, top) : top + height, max(0, left) : left + width]
    part[:] = patch[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
