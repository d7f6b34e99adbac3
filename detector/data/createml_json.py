"""CreateML: a JSON list of images, with the centre and size of each box in pixels.

The format: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source. Roboflow writes
one file `_annotations.createml.json` into the folder of each split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.annotation_builder import ListedObjects
from detector.data.annotation_files import AnnotationFiles
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import Listing, named, number_in, typed
from detector.data.path_contents import PathContents
from detector.io.json_stream import read_value

_IMAGE_KEYS, _LIST_KEYS = ("image", "imagefilename", "filename"), ("annotations", "annotation")


@register("createml")
class CreatemlFiles(AnnotationFiles):
    """A JSON file, or one for each split."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths; the format has no settings of its own."""

    label = "CreateML JSON"

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether a file lists images with coordinates."""
        keys = (*contents.keys(name), frozenset(), frozenset())
        is_list = contents.head(name).lstrip().startswith("[")
        has_images = not keys[0].isdisjoint(_IMAGE_KEYS) and not keys[0].isdisjoint(_LIST_KEYS)
        return is_list and has_images and ("coordinates" in keys[1] or not keys[1])

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add the images of a file."""
        split = listing.split_of(file)
        for number, entry in enumerate(typed(read_value(file, "CreateML file"), list, "a list of images", str(file))):
            place = f"{file}, image {number + 1}"
            typed(entry, dict, "an object with image and annotations", place)
            name = next((entry[key] for key in _IMAGE_KEYS if entry.get(key)), None)
            image = ListedObjects(typed(name, str, "the name of an image", place), place, near=file.parent)
            objects: object = next((entry[key] for key in _LIST_KEYS if entry.get(key)), [])
            for position, item in enumerate(typed(objects, list, "a list of annotations", place), start=1):
                own_place = f"{place}, annotation {position}"
                typed(item, dict, "an annotation", own_place)
                box = typed(item.get("coordinates"), dict, "coordinates", own_place)
                x, y, width, height = (number_in(box, key, own_place) for key in ("x", "y", "width", "height"))
                corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                image.objects.append(named(item.get("label"), corners, own_place))
            listing.add(image, split)

    def finish(self, listing: Listing) -> None:
        """Find out whether the numbers are shares of the image."""
        listing.find_shares()
