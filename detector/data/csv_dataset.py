"""Tables of boxes that are read without a conversion: one file, or a file for each split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detector.config.registry import register
from detector.data.csv_boxes import num_images_of_table, read_csv
from detector.data.file_reader import FoundData
from detector.data.foreign_dataset import ForeignConfig, ForeignDataset, Splits
from detector.data.path_contents import PathContents
from detector.data.split_words import in_order, word_of


@register("csv")
class CsvDataset(ForeignDataset):
    """A table with a line for each box; a folder may hold a table for each split, named by it or in its folder."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Path of the table or folder, and of the images."""

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | Sequence[FoundData] | None:
        """Return the tables of boxes that a path is or holds; several for one split are alternatives."""
        words: dict[str, int] = {}
        found: list[FoundData] = []
        for name in contents.ending(".csv", ".tsv"):
            number = num_images_of_table(contents.root / name, contents.head(name)) if name.count("/") < 2 else None
            if number is None:
                continue
            word = (contents.is_folder and word_of(name)) or "train"
            label = "Roboflow CSV export" if name.endswith("_annotations.csv") else "table of boxes"
            found.append(FoundData(label, {"root": str(contents.root / name)}, {word: number}))
            words[word] = number
        if len(words) < len(found) or not found:
            return found
        return FoundData(found[0].label, {"root": str(contents.path)}, {word: words[word] for word in in_order(words)})

    def read(self) -> tuple[Splits, Sequence[str]]:
        """Return the splits and notes.

        Raises:
            DatasetError: a table is wrong.
        """
        return read_csv(self.root, self.config.images)
