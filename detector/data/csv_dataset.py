"""Tables of boxes that are read without a conversion: one file, or a file for each split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.csv_boxes import first_images, read_csv
from detector.data.dataset_editing import numbered_together
from detector.data.file_reader import Found
from detector.data.foreign_dataset import ForeignConfig, ForeignDataset, Splits
from detector.data.path_contents import PathContents, shown_path
from detector.data.split_words import SPLIT_WORDS, in_order, word_of
from detector.errors import DatasetError

# Folders that may hold the images of a table, relative to its own.
_FOLDERS = (".", "images", "..", "../images", "img", "imgs", "JPEGImages")


@register("csv")
class CsvDataset(ForeignDataset):
    """A table with a line for each box; a folder may hold a table for each split, named by it or in its folder."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Path of the table or folder, and of the images."""

    @classmethod
    def recognise(cls, contents: PathContents) -> Found | Sequence[Found] | None:
        """Return the tables of boxes that a path is or holds; several for one split are alternatives."""
        tables = _tables(contents)
        if not tables:
            return None
        is_roboflow = all(name.endswith("_annotations.csv") for names in tables.values() for name in names)
        label = "Roboflow CSV export" if is_roboflow else "table of boxes"
        if any(len(names) > 1 for names in tables.values()):
            each = [name for names in tables.values() for name in names]
            return [Found(label, {"root": str(contents.root / name)}, {"train": 0}) for name in each]
        lines = {word: first_images(contents.root / names[0])[1] for word, names in tables.items()}
        return Found(label, {"root": str(contents.path)}, lines)

    def read(self) -> tuple[Splits, Sequence[str]]:
        """Return the splits and notes.

        Raises:
            DatasetError: a table is wrong.
        """
        contents = PathContents(self.root)
        tables = _tables(contents) if contents.is_folder else {"train": [self.root.name]}
        if not tables:
            raise DatasetError(f"{shown_path(self.root)}: expected a table of boxes, got none; check data.root")
        splits, notes = {}, []
        for word, (name, *_) in tables.items():
            table = contents.root / name
            read, own = read_csv(table, self.config.images or _images_of(table, word))
            notes += [f"{name}: {note}" if len(tables) > 1 else note for note in own]
            splits.update(read if len(tables) == 1 else {SPLIT_WORDS[word]: next(iter(read.values()))})
        return numbered_together(splits), notes


def _tables(contents: PathContents) -> dict[str, list[str]]:
    """Return the tables of boxes by the word for their split."""
    found: dict[str, list[str]] = {}
    for name in contents.ending(".csv", ".tsv"):
        if name.count("/") < 2 and first_images(contents.root / name)[0]:
            found.setdefault((contents.is_folder and word_of(name)) or "train", []).append(name)
    return {word: found[word] for word in in_order(found)}


def _images_of(table: Path, word: str) -> Path:
    """Return the folder of the images of a table, the folder of the table where none holds one of its first images."""
    names = first_images(table)[0]
    for folder in (*_FOLDERS, word, f"images/{word}", f"../images/{word}"):
        path = table.parent / folder
        stems = {Path(name).stem for name in os.listdir(path)} if path.is_dir() else set()
        if any((path / name).is_file() or Path(name).stem in stems for name in names):
            return path
    return table.parent
