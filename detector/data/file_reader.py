"""The contract of parts that read files and folders of other programs, and recognise them by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detector.data.path_contents import PathContents
from detector.io.nouns import plural


@dataclass(frozen=True)
class FoundData:
    """A data set that a reader recognised.

    Attributes:
        label: its format in words, such as `Roboflow YOLO export` or `labelme files`.
        keys: the keys of the part's config, such as {"root": path}; paths are absolute.
        splits: number of images by split, in the words of the data set, such as {"train": 144, "valid": 21}; 0 where
            the number is not known.
        num_classes: number of classes; None where it is not known without reading all annotations.
        is_certain: whether the content shows the format; false for a guess by names alone, which only counts where no
            other reader is certain.
    """

    label: str
    keys: Mapping[str, object]
    splits: Mapping[str, int] = field(default_factory=dict)
    num_classes: int | None = None
    is_certain: bool = True

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {number:,}".strip() if number else name for name, number in self.splits.items())
        last = next(reversed(list(self.splits.values())), 0)
        images = f": {counts} {'image' if last == 1 else 'images'}" if any(self.splits.values()) else ""
        images = images or (f": {counts}" if counts else "")
        classes = f", {plural(self.num_classes, 'class', 'classes')}" if self.num_classes is not None else ""
        return f"{self.label}{images}{classes}"


class FileReader:
    """Base class of the contracts of parts that may read a file of another program's format, or a folder.

    Attributes:
        path_key: the key of the part's config that takes a path that the part claims.
    """

    path_key = "file"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tell whether the part reads this file or folder; the default is false."""
        return False

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | Sequence[FoundData] | None:
        """Return what the part reads at a path, a file or a folder; None where it reads nothing there.

        Several results are alternatives, between which the user is asked to choose. The method must not read more than
        a few files, and must leave faults to the reading of a split: a damaged data set of this format is recognised
        too. The default asks `claims`.

        Raises:
            DatasetError: the format is certain, but a part of the data set that the keys need is not found.
        """
        if not cls.claims(contents.path):
            return None
        return FoundData(cls.__name__, {cls.path_key: str(contents.path)})
