"""DOTA: `labelTxt/NAME.txt` for each `images/NAME.png`, four corners of a turned box, of which the outline is used.

The format: https://captain-whu.github.io/DOTA/dataset.html. A line is x1 y1 x2 y2 x3 y3 x4 y4 in pixels, the class and
whether it is difficult; lines such as `imagesource:GoogleEarth` and `gsd:0.14` come first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from detector.config.registry import register
from detector.data import outlines
from detector.data.annotation_builder import NamedObject
from detector.data.foreign_dataset import DifficultConfig
from detector.data.label_lines import LabelLines, numbers_of


@register("dota")
class DotaLabels(LabelLines):
    """Label files; the folders `train`, `val` and `test` are splits."""

    @dataclass(frozen=True)
    class Config(DifficultConfig):
        """Paths, and the treatment of difficult objects."""

    label = "DOTA labels"
    line = re.compile(r"(-?[\d.]+(e[+-]?\d+)? +){8}[^\d\s.-]\S*( +\d)?", re.IGNORECASE)
    heads = ("imagesource:", "gsd:", "acquisition dates:")
    expected = "8 numbers, a class and 0 or 1 of DOTA"

    def object_in(self, words: list[str], place: str) -> NamedObject:
        """Return the outline of the object of a line."""
        numbers = numbers_of(words[:8], place)
        corners = outlines.of_points(zip(numbers[::2], numbers[1::2], strict=True))
        return NamedObject(words[8], corners, place, extras={"difficult": 1} if words[9:] not in ([], ["0"]) else {})
