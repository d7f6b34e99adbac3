"""Recognition of data sets: which part reads a file or folder, by its content.

An archive is unpacked into the user's cache first. Where no part recognises a folder, its subfolders are looked at, so
that the folder around an export can be named as well. What was found is said in one line, to `announce`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from detector.config import registry
from detector.config.nodes import Where, missing_path
from detector.config.registry import Claim, Kind
from detector.data.classification_split import ImageSetConfig
from detector.data.dataset import DatasetConfig
from detector.data.file_reader import FileReader, FoundData
from detector.data.path_contents import PathContents, shown_path
from detector.data.unpacked import is_archive, unpacked
from detector.data.unreadable import require_content, what_it_is
from detector.errors import ConfigError, DatasetError
from detector.io.announcements import announce

_MOST_SUBFOLDERS = 50
_DEEPEST = 3
_COMMANDS = {DatasetConfig: "detector train mish-n", ImageSetConfig: "detector train classify"}
_WORDS = {DatasetConfig: "boxes", ImageSetConfig: "classes of whole images"}


def is_foreign(path: Path) -> bool:
    """Tell whether a part reads a YAML file of another program; a configuration of this package is none."""
    return any(part.claims(path) for kind in _COMMANDS for part in _readers(kind).values())


def recognise(path: Path, kind: Kind, images: Path | None = None) -> Claim:
    """Return the part of a kind that reads a file or folder, with its keys.

    Args:
        path: the file or folder.
        kind: the kind of part.
        images: the folder of the images of an annotation file; None to look for it.

    Raises:
        ConfigError: there is no such path.
        DatasetError: no part reads it, several do, or an archive cannot be unpacked.
    """
    for given in (path, images):
        if given is not None and not given.exists():
            raise ConfigError(missing_path(str(given), Where("", 0, Path.cwd())))
    place = shown_path(path)
    contents = PathContents(unpacked(path) if is_archive(path) else path)
    contents.given_images = images
    require_content(contents, place)
    found = _candidates(contents, kind)
    if not any(one.is_certain for _, one in found):
        _refuse_other_kind(contents, kind, place, is_guess=bool(found))
    if not found:
        raise DatasetError(f"{place}: {what_it_is(contents)}")
    if len(found) > 1:
        listed = "; ".join(f"{one} ({_word(name, one)})" for name, one in found[:6])
        raise DatasetError(f"{place}: holds {len(found)} data sets, expected one; choose: {listed}")
    ((name, one),) = found
    if images is not None and "root" in one.keys:
        one = replace(one, keys={**one.keys, "images": str(images.absolute())})
    announce(f"{place}: {one}")
    return Claim(name, one.keys)


def _readers(kind: Kind) -> dict[str, type[FileReader]]:
    return {name: part for name, part in registry.parts_of(kind).items() if issubclass(part, FileReader)}


def _candidates(contents: PathContents, kind: Kind, depth: int = 0) -> list[tuple[str, FoundData]]:
    """Return what the parts of a kind recognise at a path, or else in its subfolders; certain ones before guesses."""
    found: list[tuple[str, FoundData]] = []
    for name, part in _readers(kind).items():
        one = part.recognise(contents)
        found += [(name, each) for each in ([one] if isinstance(one, FoundData) else one or ())]
    found = [each for each in found if each[1].is_certain] or found
    if found or not contents.is_folder or depth == _DEEPEST:
        return found
    folders = sorted({name.split("/")[0] for name in contents.names if "/" in name})
    for folder in folders[:_MOST_SUBFOLDERS]:
        found += _candidates(contents.below(folder), kind, depth + 1)
    return [each for each in found if each[1].is_certain] or found


def _word(name: str, found: FoundData) -> str:
    """Return the shortest override that chooses a data set."""
    for key in ("file", "root", "train"):
        value = found.keys.get(key)
        value = value.get("annotations") if isinstance(value, dict) else value
        if isinstance(value, str) and (os.path.isfile(value) or len(found.keys) == 1):
            inner = f"{{name: {name}, {key}: {shown_path(Path(value))}}}"
            return f"data={shown_path(Path(value))}" if os.path.isfile(value) else f"data='{inner}'"
    return f"data='{{name: {name}, ...}}'"


def _refuse_other_kind(contents: PathContents, kind: Kind, place: str, is_guess: bool) -> None:
    """Reject a data set of another task, which is certain where the parts of a kind recognise nothing, or guess.

    Raises:
        DatasetError: it is one.
    """
    for other in _COMMANDS:
        found = [one for _, one in _candidates(contents, other) if one.is_certain or not is_guess]
        if other is not kind and found:
            raise DatasetError(
                f"{place}: expected a data set with {_WORDS.get(kind, 'boxes')}, got {found[0]}; it has "
                f"{_WORDS[other]}, use {_COMMANDS[other]} data={place}"
            )
