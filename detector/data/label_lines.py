"""Text files with one object a line for each image, as KITTI, VisDrone and DOTA write them."""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from pathlib import Path, PurePosixPath
from typing import ClassVar

from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.annotation_files import AnnotationFiles
from detector.data.foreign_listing import Listing, number_in, split_in
from detector.data.path_contents import PathContents
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.text_file import read_text

_MAX_BYTES = 2**26


class LabelLines(AnnotationFiles):
    """A data set of text files named like their images.

    Attributes:
        line: pattern of the line of an object.
        heads: beginnings, in lower case, of lines without an object.
        expected: content of a line in words.
        name_of_split: pattern of the name of a folder that is published as one split, or None.
    """

    suffixes = (".txt",)
    line: ClassVar[re.Pattern[str]]
    heads: ClassVar[tuple[str, ...]] = ()
    expected: ClassVar[str]
    name_of_split: ClassVar[re.Pattern[str] | None] = None

    @abstractmethod
    def object_in(self, words: list[str], place: str) -> NamedObject | None:
        """Return the object of a line, or None for one that is left out.

        Raises:
            DatasetError: the line is wrong.
        """

    @classmethod
    def candidates(cls, contents: PathContents) -> list[str]:
        """Return the text files named like an image; all where there is no image."""
        stems = {PurePosixPath(name).stem for name in contents.images}
        return [name for name in contents.ending(*cls.suffixes) if not stems or PurePosixPath(name).stem in stems]

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether the first object of a file has the form of the format."""
        lines = [line.strip() for line in contents.head(name).splitlines() if line.strip()]
        objects = [line for line in lines if not line.lower().startswith(cls.heads)] if cls.heads else lines
        return cls.line.fullmatch(objects[0]) is not None if objects else False

    @classmethod
    def chosen(cls, contents: PathContents, names: list[str]) -> list[str]:
        """Return all candidates in the folders of those that have the format: a file may be empty, or damaged."""
        folders = {PurePosixPath(name).parent for name in names if cls.fits(contents, name)}
        return [name for name in names if PurePosixPath(name).parent in folders]

    @functools.cached_property
    def _splits(self) -> dict[str, str]:
        """The split of each stem in `ImageSets/train.txt` and so on."""
        paths = {name: self.root / "ImageSets" / f"{name}.txt" for name in ("train", "val", "test")}
        texts = {name: read_text(path, "a list", _MAX_BYTES) for name, path in paths.items() if path.is_file()}
        return {stem: name for name, text in texts.items() for stem in text.split()}

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add an image."""
        image = ListedObjects(file.stem, str(file), near=file.parent)
        for number, text in enumerate(read_text(file, "a text file", _MAX_BYTES).splitlines(), start=1):
            line, place = text.strip(), f"{file}:{number}"
            if not line or (self.heads and line.lower().startswith(self.heads)):
                continue
            if not self.line.fullmatch(line):
                raise DatasetError(f"{place}: expected {self.expected}, got {shown(line)[:60]!r}")
            item = self.object_in(line.replace(",", " ").split(), place)
            if item is not None:
                image.objects.append(item)
        words = file.relative_to(listing.folder).parent.parts
        by_name = next((split for word in reversed(words) if (split := split_in(word))), None)
        own = self.name_of_split.search(listing.folder.name) if self.name_of_split else None
        by_name = by_name or (own and split_in(own[0]))
        listing.add(image, self._splits.get(file.stem) or listing.split_of(file) or by_name)


def numbers_of(words: list[str], place: str) -> list[float]:
    """Return words as numbers.

    Raises:
        DatasetError: one is none.
    """
    return [number_in({"a number": word}, "a number", place) for word in words]
