"""Supervisely: `ann/NAME.jpg.json` for each `img/NAME.jpg`, in a folder for each data set of a project.

The format: https://developer.supervisely.com/getting-started/supervisely-annotation-format/objects. Whole coordinates
are pixels counted from 0 that belong to the shape, so it ends one pixel after the last; with decimals they are edges.
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.data import outlines
from detector.data.annotation_builder import ListedObjects
from detector.data.foreign_listing import (
    Listing,
    Splits,
    assembled,
    named,
    points_in,
    side_in,
    split_of,
    typed,
)
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.folders import files_below
from detector.io.json_stream import read_value
from detector.media.headers import HeaderError, read_header

_WITH_POINTS = ("rectangle", "polygon")
_MAX_MASK_BYTES = 2**26


def read_supervisely(
    root: Path, images: Path | None = None, files: Sequence[Path] | None = None
) -> tuple[Splits, list[str]]:
    """Read a project, or one data set of it; a data set, or a tag of an image, that names a split is one.

    Raises:
        DatasetError: files are wrong (all are named), or the data is refused.
    """
    listing = Listing(root)
    if files is None:
        files = [path for path in files_below(root) if path.suffix.lower() == ".json" and path.parent.name == "ann"]
    if not files:
        raise DatasetError(f"{root}: expected JSON files in a folder ann, got none; name the folder of the project")
    listing.read_each(files, lambda file: _add_file(listing, file))
    return assembled(listing, images)


def _add_file(listing: Listing, file: Path) -> None:
    content = typed(read_value(file, "Supervisely file"), dict, "an object with objects", str(file))
    size = typed(content.get("size") or {}, dict, "a size", str(file))
    hw = side_in(size, "height"), side_in(size, "width")
    image = ListedObjects(file.stem, str(file), hw if all(hw) else (0, 0), near=file.parent)
    for number, item in enumerate(typed(content.get("objects"), list, "a list of objects", str(file)), start=1):
        place = f"{file}, object {number}"
        kind = typed(item, dict, "an object", place).get("geometryType")
        kind = kind or ("bitmap" if item.get("bitmap") else "polygon")
        if kind not in (*_WITH_POINTS, "bitmap"):
            listing.left_out[str(kind)] += 1
            continue
        corners = _of_mask(item, place) if kind == "bitmap" else _of_points(item, place)
        image.objects.append(named(item.get("classTitle"), corners, place))
    tags = [str(tag.get("name")) for tag in content.get("tags") or [] if isinstance(tag, dict)]
    listing.add(image, split_of(*file.relative_to(listing.folder).parent.parts, *tags))


def _of_points(item: dict[str, Any], place: str) -> outlines.Corners:
    points = typed(item.get("points"), dict, "points", place)
    x1, y1, x2, y2 = outlines.of_points(points_in(points.get("exterior"), place))
    is_whole = all(number.is_integer() for number in (x1, y1, x2, y2))
    return (x1, y1, x2 + 1, y2 + 1) if is_whole else (x1, y1, x2, y2)


def _of_mask(item: dict[str, Any], place: str) -> outlines.Corners:
    """Return the outline of a mask: its image is cut to the mask, and `origin` is its first pixel."""
    bitmap = typed(item.get("bitmap"), dict, "a bitmap", place)
    ((x, y),) = points_in([bitmap.get("origin")], place)
    try:
        packed = base64.b64decode(typed(bitmap.get("data"), str, "data", place), validate=True)
        png = zlib.decompressobj().decompress(packed, _MAX_MASK_BYTES)
        height, width = read_header(io.BytesIO(png)).stored_hw
    except (binascii.Error, zlib.error, HeaderError, ValueError) as error:
        raise DatasetError(f"{place}: the mask cannot be read: {shown(str(error))}") from error
    return x, y, x + width, y + height
