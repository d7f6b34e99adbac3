"""CreateML: a JSON list of images, with the centre and size of each box in pixels.

The format: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source. Roboflow writes
one file `_annotations.createml.json` into the folder of each split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.data.annotation_builder import ListedObjects
from detector.data.foreign_listing import Listing, Splits, assembled, named, number_in, split_of, typed
from detector.errors import DatasetError
from detector.io.folders import files_below
from detector.io.json_stream import read_value

_IMAGE_KEYS, _LIST_KEYS = ("image", "imagefilename", "filename"), ("annotations", "annotation")


def read_createml(
    root: Path, images: Path | None = None, files: Sequence[Path] | None = None
) -> tuple[Splits, list[str]]:
    """Read one JSON file, or those of a folder and below it.

    Args:
        root: the file, or the folder of the data set.
        images: the folder of the images; None for the usual places.
        files: the JSON files; None for `root`, or all below it.

    Raises:
        DatasetError: files are wrong (all are named), or the data is refused.
    """
    listing = Listing(root)
    if files is None:
        files = [root] if root.is_file() else [path for path in files_below(root) if path.suffix.lower() == ".json"]
    if not files:
        raise DatasetError(f"{root}: expected a JSON file of CreateML, got none; name the file")
    listing.read_each(files, lambda file: _add_file(listing, file))
    listing.find_shares()
    return assembled(listing, images)


def _add_file(listing: Listing, file: Path) -> None:
    split = split_of(*file.relative_to(listing.folder).parent.parts)
    for number, entry in enumerate(typed(read_value(file, "CreateML file"), list, "a list of images", str(file))):
        place = f"{file}, image {number + 1}"
        typed(entry, dict, "an object with image and annotations", place)
        name = next((entry[key] for key in _IMAGE_KEYS if entry.get(key)), None)
        image = ListedObjects(typed(name, str, "the name of an image", place), place, near=file.parent)
        objects = next((entry[key] for key in _LIST_KEYS if entry.get(key)), [])
        for position, item in enumerate(typed(objects, list, "a list of annotations", place), start=1):
            own_place = f"{place}, annotation {position}"
            typed(item, dict, "an annotation", own_place)
            box = typed(item.get("coordinates"), dict, "coordinates", own_place)
            x, y, width, height = (number_in(box, key, own_place) for key in ("x", "y", "width", "height"))
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            image.objects.append(named(item.get("label"), corners, own_place))
        listing.add(image, split)
