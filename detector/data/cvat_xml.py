"""CVAT XML 1.1, for images and for videos.

The format: https://docs.cvat.ai/docs/other/xml_format. Coordinates are edges in pixels with decimals, 0 is the left
edge of the image; a box with `rotation` is turned around its centre. The `subset` of an image is its split.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from detector.data import outlines
from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.foreign_listing import Listing, Splits, assembled, named, number_in, side_in, split_of
from detector.data.image_finder import ImageFinder
from detector.data.pascal_voc import parse_xml
from detector.data.problems import shown
from detector.errors import DatasetError

_MAX_BYTES = 2**29
_MAX_FRAMES = 10_000_000
_WITH_AREA = ("box", "polygon", "ellipse", "mask", "cuboid")
_WITHOUT_AREA = ("polyline", "points", "skeleton")


def read_cvat(
    root: Path, images: Path | None = None, difficult: str = "ignore", files: Sequence[Path] | None = None
) -> tuple[Splits, list[str]]:
    """Read `annotations.xml`, or all XML files of a folder.

    Args:
        root: the file, or the folder of the data set.
        images: the folder of the images; None for the usual places.
        difficult: as in `assembled`.
        files: the XML files; None for `root`, or those in it.

    Raises:
        DatasetError: the files are wrong, or the data is refused.
    """
    listing = Listing(root)
    finder = ImageFinder(images or listing.folder, beside=images is None)
    files = files or ([root] if root.is_file() else sorted(root.glob("*.xml")))
    if not files:
        raise DatasetError(f"{root}: expected annotations.xml, got no XML file; name the file")
    listing.read_each(files, lambda file: _add_file(listing, file, finder))
    return assembled(listing, images, difficult)


def _add_file(listing: Listing, file: Path, finder: ImageFinder) -> None:
    root = parse_xml(file, _MAX_BYTES)
    if root.tag != "annotations":
        raise DatasetError(f"{file}: expected a root element <annotations>, got <{shown(root.tag)}>")
    tracks = root.findall("track")
    for element in root.findall("image"):
        name = element.get("name") or ""
        place = f"{file}, image {element.get('id') or shown(name)}"
        if not name:
            raise DatasetError(f"{place}: has no name")
        hw = side_in(element.attrib, "height"), side_in(element.attrib, "width")
        image = ListedObjects(name, place, hw if all(hw) else (0, 0), near=file.parent)
        image.objects += _objects(element, place, listing)
        listing.add(image, split_of(element.get("subset") or ""))
    if tracks:
        _add_frames(listing, file, root, tracks, finder)


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


def _add_frames(
    listing: Listing, file: Path, root: ElementTree.Element, tracks: list[ElementTree.Element], finder: ImageFinder
) -> None:
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
    hw = side_in(sides, "height"), side_in(sides, "width")
    num_frames = min(side_in({"size": root.findtext("meta//size")}, "size"), _MAX_FRAMES)
    for frame in sorted({*objects, *range(num_frames)}):
        name = f"frame_{frame:06d}"
        if frame in objects or finder.find(name, file.parent):
            image = ListedObjects(
                name, f"{file}, frame {frame}", hw if all(hw) else (0, 0), objects.get(frame, []), file.parent
            )
            listing.add(image)
