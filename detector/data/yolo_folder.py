"""Folders of images with text labels of the YOLO family, without a `data.yaml`.

Splits are folders called `train`, `valid` and so on; all images belong to `train` where there is none. The classes are
in `classes.txt`, as LabelImg writes it, or in another usual file; without one they are numbered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detector.data.path_contents import PathContents
from detector.data.split_words import by_split

_LINE = re.compile(r"\s*\d+(\.0*)?(\s+[-+]?[\d.]+(e[-+]?\d+)?){4,}\s*$", re.IGNORECASE)
_NAMES_FILES = re.compile(r"(predefined_)?classes\.(txt|names)|obj\.names|.*\.names|_darknet\.labels", re.IGNORECASE)
_NO_LABELS = re.compile(r"readme.*|license.*|requirements.*|(train|valid|val|test)\.txt", re.IGNORECASE)


@dataclass(frozen=True)
class TextLabelFolder:
    """Images and class names of a folder.

    Attributes:
        images: names of images by the word for their split, relative to the folder.
        names_file: the file of class names, or None.
    """

    images: dict[str, list[str]]
    names_file: str | None


def look_at(contents: PathContents, label_file: Callable[[Path], Path]) -> TextLabelFolder | None:
    """Return the images of a folder with text labels; None where there is no label that looks like one.

    Args:
        contents: the folder.
        label_file: returns the label file of an image.
    """
    texts = [name for name in contents.ending(".txt") if not is_other_text(name)]
    known = set(texts)
    partners = [label_file(Path(name)).as_posix() for name in contents.images]
    partners += [PurePosixPath(name).with_suffix(".txt").as_posix() for name in contents.images]
    judged = [name for name in partners if name in known] or texts
    lines = [line for name in contents.samples(judged) for line in contents.head(name).splitlines()[:1] if line.strip()]
    if not contents.images or not lines or not all(map(_LINE.match, lines)):
        return None
    names = [name for name in contents.names if _NAMES_FILES.fullmatch(PurePosixPath(name).name)]
    names_file = min(names, key=lambda name: (name.count("/"), name), default=None)
    return TextLabelFolder(by_split(contents.images), names_file)


def is_other_text(name: str) -> bool:
    """Tell whether the name of a text file is not that of a label file: class names, lists of images, readme."""
    base = PurePosixPath(name).name
    return bool(_NAMES_FILES.fullmatch(base) or _NO_LABELS.fullmatch(base))
