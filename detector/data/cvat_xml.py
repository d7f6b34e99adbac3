"""CVAT XML 1.1, for images and for videos.

The format: https://docs.cvat.ai/docs/other/xml_format. Coordinates are edges in pixels with decimals, 0 is the left
edge of the image; a box with `rotation` is turned around its centre. The `subset` of an image is its split.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data import outlines
from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.annotation_files import AnnotationFiles
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import Listing, hw_in, named, number_in, side_in, split_of
from detector.data.pascal_voc import parse_xml
from detector.data.path_contents import PathContents
from detector.data.problems import shown
from detector.errors import DatasetError

_MAX_BYTES = 2**29
_WITH_AREA = ("box", "polygon", "ellipse", "mask", "cuboid")
_WITHOUT_AREA = ("polyline", "points", "skeleton")


@register("cvat")
class CvatXml(AnnotationFiles):
    """`annotations.xml` of a task, a project or a job."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths; the format has no settings of its own."""

    label = "CVAT XML"
    suffixes = (".xml",)

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether the root element is `<annotations>`."""
        return re.search(r"<annotations[\s>]", contents.head(name)[:2000]) is not None

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add the images, or the frames of a video."""
        root = parse_xml(file, _MAX_BYTES)
        if root.tag != "annotations":
            raise DatasetError(f"{file}: expected a root element <annotations>, got <{shown(root.tag)}>")
        for element in root.findall("image"):
            name = element.get("name") or ""
            place = f"{file}, image {element.get('id') or shown(name)}"
            if not name:
                raise DatasetError(f"{place}: has no name")
            image = ListedObjects(name, place, hw_in(element.attrib, "height", "width"), near=file.parent)
            image.objects += _objects(element, place, listing)
            listing.add(image, split_of(element.get("subset") or ""))
        if tracks := root.findall("track"):
            _add_frames(listing, file, root, tracks)


def _objects(element: ElementTree.Element, place: str, listing: Listing) -> Iterator[NamedObject]:
    for number, shape in enumerate(element, start=1):
        if shape.tag in _WITH_AREA:
            own_place = f"{place}, shape {number}"
            yield named(shape.get("label"), _corners(shape, own_place), own_place, extras=_extras(shape))
        elif shape.tag in _WITHOUT_AREA:
            listing.left_out[shape.tag] += 1


def _extras(shape: ElementTree.Element) -> dict[str, object]:
    extras: dict[str, object] = {"occluded": 1} if shape.get("occluded") == "1" else {}
    attributes = {item.get("name") or "": (item.text or "").strip() for item in shape.findall("attribute")}
    return {**extras, "attributes": attributes} if attributes else extras


def _corners(shape: ElementTree.Element, place: str) -> outlines.Corners:
    """Return the outline of a shape in pixels."""
    values = shape.attrib
    turned = number_in(values, "rotation", place) if values.get("rotation") else 0.0
    if shape.tag == "box":
        x1, y1, x2, y2 = (number_in(values, key, place) for key in ("xtl", "ytl", "xbr", "ybr"))
        return outlines.of_turned_box((x1, y1, x2, y2), turned)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (number_in(values, key, place) for key in ("cx", "cy", "rx", "ry"))
        return outlines.of_ellipse((cx, cy), (rx, ry), turned)
    if shape.tag == "mask":
        left, top, width, height = (number_in(values, key, place) for key in ("left", "top", "width", "height"))
        return left, top, left + width, top + height
    if shape.tag == "cuboid":
        names = [f"{vertical}{side}{face}" for vertical in "tb" for side in "lr" for face in "12"]
        points = [(number_in(values, f"x{name}", place), number_in(values, f"y{name}", place)) for name in names]
        return outlines.of_points(points)
    pairs = [text.partition(",")[::2] for text in (values.get("points") or "").split(";")]
    return outlines.of_points(
        (number_in({"points": x}, "points", place), number_in({"points": y}, "points", place)) for x, y in pairs
    )


def _add_frames(listing: Listing, file: Path, root: ElementTree.Element, tracks: list[ElementTree.Element]) -> None:
    """Add the frames of a video: those with an object, and the others that were exported too."""
    objects: dict[int, list[NamedObject]] = {}
    for track in tracks:
        for number, shape in enumerate(track, start=1):
            place = f"{file}, track {track.get('id')}, shape {number}"
            if shape.tag in _WITHOUT_AREA:
                listing.left_out[shape.tag] += 1
            elif shape.tag in _WITH_AREA and shape.get("outside") != "1":
                frame = side_in(shape.attrib, "frame")
                extras = {**_extras(shape), "track_id": track.get("id") or ""}
                objects.setdefault(frame, []).append(
                    named(track.get("label"), _corners(shape, place), place, extras=extras)
                )
    sides = {key: root.findtext(f"meta//original_size/{key}") for key in ("height", "width")}
    hw = hw_in(sides, "height", "width")
    num_frames = side_in({"size": root.findtext("meta//size")}, "size")
    exported = {int(stem[6:]) for stem in listing.finder.stems() if re.fullmatch(r"frame_[0-9]{6,8}", stem)}
    for frame in sorted({*objects, *(number for number in exported if number < num_frames)}):
        name = f"frame_{frame:06d}"
        if frame in objects or listing.finder.find(name, file.parent):
            image = ListedObjects(name, f"{file}, frame {frame}", hw, objects.get(frame, []), file.parent)
            listing.add(image)
