"""VisDrone detection: `annotations/NAME.txt` for each `images/NAME.jpg`.

The format: https://github.com/VisDrone/VisDrone2018-DET-toolkit. A line is left, top, width, height in pixels, score (0
where the object is ignored), category, truncation, occlusion. Category 0 is an ignored region of all classes; category
11, `others`, takes no part in the evaluation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from detector.config.registry import register
from detector.data.annotation_builder import NamedObject
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import EVERY_CLASS, Listing
from detector.data.label_lines import LabelLines, numbers_of
from detector.errors import DatasetError

CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip
_OTHERS = len(CLASSES) + 1


@register("visdrone")
class VisdroneLabels(LabelLines):
    """Label files; a folder such as `VisDrone2019-DET-val` is a split."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths; the format has no settings of its own."""

    label = "VisDrone labels"
    line = re.compile(r"(-?\d+, ?){7}-?\d+,?")
    expected = "the 8 whole numbers of VisDrone"
    name_of_split = re.compile(r"-DET-(train|val|test)")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._num_others = 0

    def object_in(self, words: list[str], place: str) -> NamedObject | None:
        """Return the object of a line, or a region of every class; None for one of the category `others`."""
        x, y, width, height, score, category, truncation, occlusion = numbers_of(words, place)
        if category not in range(_OTHERS + 1):
            raise DatasetError(f"{place}: expected a category of 0..{_OTHERS}, got {words[5]}")
        if category == _OTHERS:
            self._num_others += 1
            return None
        name = CLASSES[int(category) - 1] if category else EVERY_CLASS
        flags = {"truncated": truncation, "occluded": occlusion}
        extras = {key: int(value) for key, value in flags.items() if category and value in (1, 2)}
        return NamedObject(name, (x, y, x + width, y + height), place, score == 0 or not category, extras)

    def finish(self, listing: Listing) -> None:
        """Set the order of the classes."""
        listing.class_names = CLASSES
        if self._num_others:
            listing.notes.append(f"{self._num_others} objects of category {_OTHERS} (others) are left out")
