"""Supervisely: `ann/NAME.jpg.json` for each `img/NAME.jpg`, in a folder for each data set of a project.

The format: https://developer.supervisely.com/getting-started/supervisely-annotation-format/objects. Whole coordinates
are pixels counted from 0 that belong to the shape, so it ends one pixel after the last; with decimals they are edges.
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config.registry import register
from detector.data import outlines
from detector.data.annotation_builder import ListedObjects
from detector.data.annotation_files import AnnotationFiles
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import Listing, hw_in, named, points_in, typed
from detector.data.path_contents import PathContents
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.json_stream import read_value
from detector.media.headers import read_header
from detector.media.tiff import HeaderError

_WITH_POINTS = ("rectangle", "polygon")
_NUM_HEADER_BYTES = 2**16  # of the image of a mask, of which only the size is read


@register("supervisely")
class SuperviselyProject(AnnotationFiles):
    """A project, or one data set of it; a data set, or a tag of an image, that names a split is one."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths; the format has no settings of its own."""

    label = "Supervisely project"

    @classmethod
    def candidates(cls, contents: PathContents) -> list[str]:
        """Return the names of the JSON files in a folder `ann`."""
        names = contents.ending(".json")
        return [name for name in names if (contents.root / name).parent.name == "ann"] if contents.is_folder else names

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether a file has the size of an image and objects."""
        keys = contents.keys(name)
        return bool(keys) and {"size", "objects"} <= keys[0]

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add an image."""
        content = typed(read_value(file, "Supervisely file"), dict, "an object with objects", str(file))
        size = typed(content.get("size") or {}, dict, "a size", str(file))
        image = ListedObjects(file.stem, str(file), hw_in(size, "height", "width"), near=file.parent)
        for number, item in enumerate(typed(content.get("objects"), list, "a list of objects", str(file)), start=1):
            place = f"{file}, object {number}"
            kind = typed(item, dict, "an object", place).get("geometryType")
            kind = kind or ("bitmap" if item.get("bitmap") else "polygon")
            if kind not in (*_WITH_POINTS, "bitmap"):
                listing.left_out[str(kind)] += 1
                continue
            corners = _of_mask(item, place) if kind == "bitmap" else _of_points(item, place)
            image.objects.append(named(item.get("classTitle"), corners, place))
        listed = typed(content.get("tags") or [], list, "a list of tags", str(file))
        tags = [str(tag.get("name")) for tag in listed if isinstance(tag, dict)]
        listing.add(image, listing.split_of(file, *tags))


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
        png = zlib.decompressobj().decompress(packed, _NUM_HEADER_BYTES)
        height, width = read_header(io.BytesIO(png)).stored_hw
    except (binascii.Error, zlib.error, HeaderError, ValueError) as error:
        raise DatasetError(f"{place}: the mask cannot be read: {shown(str(error))}") from error
    return x, y, x + width, y + height
