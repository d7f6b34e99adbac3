"""KITTI object detection: `label_2/000000.txt` for each `image_2/000000.png`.

The format: the development kit of the KITTI object benchmark. A line is type, truncated, occluded, alpha, left, top,
right, bottom (edges in pixels, 0 is the left edge of the image), and seven numbers in 3D that are not read, and a score
in results. `DontCare` regions hold objects that are not labelled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from detector.config.registry import register
from detector.data.annotation_builder import NamedObject
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import EVERY_CLASS
from detector.data.label_lines import LabelLines, numbers_of


@register("kitti")
class KittiLabels(LabelLines):
    """Label files; the folders `training` and `testing`, or `ImageSets/train.txt` and so on, are splits."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths; the format has no settings of its own."""

    label = "KITTI labels"
    line = re.compile(r"[^\W\d]\S*( -?[\d.]+(e-?\d+)?){14,15}", re.IGNORECASE)
    expected = "a type and 14 numbers of KITTI"

    def object_in(self, words: list[str], place: str) -> NamedObject:
        """Return the object of a line, or a region of every class."""
        numbers = numbers_of(words[1:], place)
        x1, y1, x2, y2 = numbers[3:7]
        if words[0] == "DontCare":
            return NamedObject(EVERY_CLASS, (x1, y1, x2, y2), place, True)
        flags = zip(("truncated", "occluded"), numbers, strict=False)
        extras = {key: int(value) if value.is_integer() else value for key, value in flags if value > 0}
        return NamedObject(words[0], (x1, y1, x2, y2), place, extras=extras)
