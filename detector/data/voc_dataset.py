"""Pascal VOC data sets that are read without a conversion, one folder or a folder for each split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from detector.config.registry import register
from detector.data.file_reader import FoundData
from detector.data.foreign_dataset import DifficultConfig, ForeignDataset, Splits
from detector.data.pascal_voc import XML_FOLDERS, read_voc
from detector.data.path_contents import PathContents
from detector.data.split_words import SPLIT_WORDS, in_order


@register("voc")
class VocDataset(ForeignDataset):
    """XML files and images; `train`, `valid` and so on are splits where the folder holds such folders only."""

    @dataclass(frozen=True)
    class Config(DifficultConfig):
        """Path of the data set, and how it is read.

        Attributes:
            first_pixel: the number of the first pixel: 1 as in VOC, where both corners are pixels of the box, or 0,
                where they are its edges; None to decide by the files.
        """

        first_pixel: Literal[0, 1] | None = None

    config: Config

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | None:
        """Return the XML files of VOC that a folder holds."""
        files = contents.ending(".xml") if contents.is_folder else []
        heads = [contents.head(name) for name in contents.samples(files)]
        if not heads or not all("<annotation>" in head for head in heads):
            return None
        by_folder: dict[str, int] = {}
        for name in files:
            folder = PurePosixPath(name).parent
            folder = folder.parent if folder.name.lower() in XML_FOLDERS else folder
            by_folder[folder.as_posix()] = by_folder.get(folder.as_posix(), 0) + 1
        if set(by_folder) == {"."}:
            splits = _listed(contents) or {"train": len(files)}
        elif set(by_folder) <= set(SPLIT_WORDS):
            splits = {word: by_folder[word] for word in in_order(by_folder)}
        else:
            return None
        is_roboflow = any("roboflow" in head.lower() for head in heads)
        label = "Roboflow Pascal VOC export" if is_roboflow else "Pascal VOC data set"
        return FoundData(label, {"root": str(contents.path)}, splits)

    def read(self) -> tuple[Splits, Sequence[str]]:
        """Return the splits and notes.

        Raises:
            DatasetError: an annotation file is wrong, or there is none.
        """
        found = self.recognise(PathContents(self.root))
        words = [
            word for word in (found.splits if found else ()) if word in SPLIT_WORDS and (self.root / word).is_dir()
        ]
        return read_voc(
            self.root,
            difficult=self.config.difficult,
            first_pixel=self.config.first_pixel,
            parts={SPLIT_WORDS[word]: word for word in words},
        )


def _listed(contents: PathContents) -> dict[str, int]:
    """Return the number of images in the lists of the splits, `ImageSets/Main/train.txt` and so on."""
    names = [name for name in contents.names if name.startswith("ImageSets/Main/")]
    words = [(PurePosixPath(name).stem, name) for name in names if PurePosixPath(name).stem in ("train", "val", "test")]
    lines = {word: (contents.root / name).read_bytes().count(b"\n") for word, name in words}
    return {word: lines[word] for word in in_order(lines)}
