"""Names of splits in the files and folders of other programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

SPLITS = ("train", "val", "test")
# Splits by the words of other programs.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_SEPARATORS = re.compile(r"[^a-z]+")


def word_of(name: str) -> str | None:
    """Return the word for a split in a relative path: in a folder, the innermost first, or else in the file name.

    `valid` is that of `valid/_annotations.coco.json`, `train` that of `annotations/instances_train2017.json`.
    """
    path = PurePosixPath(name)
    folders = [part.lower() for part in reversed(path.parts[:-1])]
    for part in folders:
        words = [word for word in _SEPARATORS.split(part) if word]
        if len(words) == 1 and words[0] in SPLIT_WORDS:
            return words[0]
    return next((word for word in _SEPARATORS.split(path.stem.lower()) if word in SPLIT_WORDS), None)


def word_of_folder(name: str) -> str | None:
    """Return the word for a split in the folders of a relative path alone."""
    return word_of(f"{PurePosixPath(name).parent.as_posix()}/.")


def by_split(names: Iterable[str], word: str = "train") -> dict[str, list[str]]:
    """Return relative paths by the word for the split in their folders; `word` is that of the others."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(word_of_folder(name) or word, []).append(name)
    return {each: found[each] for each in in_order(found)}


def in_order(words: Iterable[str]) -> Sequence[str]:
    """Return words for splits in the order train, val, test."""
    return sorted(words, key=lambda word: SPLITS.index(SPLIT_WORDS[word]))


def counts(found: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """Return the number of entries by word."""
    return {word: len(entries) for word, entries in found.items()}
