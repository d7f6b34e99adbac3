"""Base class of the data sets of annotation files: they are recognised, and found, by their first bytes."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import ClassVar

from detector.data.file_reader import FoundData
from detector.data.foreign_dataset import DifficultConfig, ForeignDataset, Splits
from detector.data.foreign_listing import Listing, assembled
from detector.data.path_contents import PathContents
from detector.data.problems import shown
from detector.data.split_words import SPLIT_WORDS
from detector.errors import DatasetError
from detector.io.nouns import plural

_MOST_JUDGED = 20  # of more files a few are judged


class AnnotationFiles(ForeignDataset):
    """A data set whose annotation files have one format.

    Attributes:
        label: the format in words.
        suffixes: ends of the names of its files, in lower case.
    """

    label: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    @classmethod
    @abstractmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether a file has the format, by its first bytes."""

    @abstractmethod
    def add_file(self, listing: Listing, file: Path) -> None:
        """Add the images of a file.

        Raises:
            DatasetError: the file is wrong.
        """

    def finish(self, listing: Listing) -> None:
        """Change what was read once all files are read; the default changes nothing.

        Raises:
            DatasetError: what was read does not fit together.
        """

    @classmethod
    def candidates(cls, contents: PathContents) -> list[str]:
        """Return the names of files that may have the format."""
        return contents.ending(*cls.suffixes)

    @classmethod
    def chosen(cls, contents: PathContents, names: list[str]) -> list[str]:
        """Return those of the candidates that are read."""
        return [name for name in names if cls.fits(contents, name)]

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | None:
        """Return the data set at a path if most of its candidates, or one of a few, have the format."""
        names = cls.candidates(contents)
        judged = names if len(names) <= _MOST_JUDGED else contents.samples(names)
        fitting = [name for name in judged if cls.fits(contents, name)]
        if not fitting or (len(judged) < len(names) and 2 * len(fitting) < len(judged)):
            return None
        counts = Counter(next((w for w in PurePosixPath(n).parts if w.lower() in SPLIT_WORDS), "") for n in names)
        splits = (
            {word: counts[word] for word in sorted(counts)} if len(names) > len(counts) else dict.fromkeys(counts, 0)
        )
        known = {word: number for word, number in splits.items() if word}
        return FoundData(cls.label, {"root": str(contents.path)}, known or {"train": splits.get("", 0)})

    def read(self) -> tuple[Splits, list[str]]:
        """Return the splits of the files below the root that have the format.

        Raises:
            DatasetError: there is none, files are wrong, or the data is refused.
        """
        listing = Listing(self.root, self.config.images)
        files, others = [self.root], list[str]()
        if not self.root.is_file():
            contents = PathContents(self.root)
            names = self.candidates(contents)
            fitting = self.chosen(contents, names)
            files, others = [contents.root / name for name in fitting], sorted(set(names).difference(fitting))
        if not files:
            raise DatasetError(f"{self.root}: expected {self.label}, got no such file; name their folder")
        listing.read_each(files, functools.partial(self.add_file, listing))
        listing.raise_if_wrong()
        self.finish(listing)
        if others:
            listing.notes.append(f"{plural(len(others), 'other file')} not read, first: {shown(others[0])}")
        return assembled(listing, self.config.difficult if isinstance(self.config, DifficultConfig) else "ignore")
