"""Example of a reader of a detection data set: one file in `detector/data/`, or a file given with `--import`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.annotation_builder import ListedObjects, NamedObject, assemble
from detector.data.coco import CocoAnnotations
from detector.data.dataset import Dataset, DatasetConfig, required_file
from detector.errors import DatasetError


@register("toy")
class BoxLines(Dataset):
    """Text file NAME.boxes of one object a line: split, image, x1, y1, x2, y2 in pixels, class; separated by tabs.

    Paths of images start at the folder of the file.
    """

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Path of the data set.

        Attributes:
            file: the text file.
        """

        file: Path | None = None

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tell whether the name of a file ends in `.boxes`, so that `data=NAME.boxes` selects this reader."""
        return path.suffix.lower() == ".boxes"

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, in the order of the file.

        Raises:
            DatasetError: the file cannot be read.
        """
        return tuple(self._read())

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of a split.

        Raises:
            DatasetError: the file cannot be read or has no such split.
        """
        file, splits = required_file(self.config.file, "a .boxes file"), self._read()
        if name not in splits:
            raise DatasetError(f"{file}: expected a split {name!r}, got {', '.join(splits) or 'none'}; add its lines")
        annotations, _ = assemble(file, file.parent, splits)[name]
        return annotations

    def _read(self) -> dict[str, list[ListedObjects]]:
        """Return the images of each split."""
        file = required_file(self.config.file, "a .boxes file")
        splits: dict[str, dict[str, ListedObjects]] = defaultdict(dict)
        try:
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                split, image, *corners, class_name = line.split("\t")
                x1, y1, x2, y2 = map(float, corners)
                place = f"{file}:{number}"
                listed = splits[split].setdefault(image, ListedObjects(image, place))
                listed.objects.append(NamedObject(class_name, (x1, y1, x2, y2), place))
        except OSError as error:
            raise DatasetError(f"{file} cannot be read: {error.strerror}; check the path") from error
        except ValueError as error:
            raise DatasetError(f"{file}:{number}: expected seven columns, got {line!r}; repair the line") from error
        return {name: list(images.values()) for name, images in splits.items()}
