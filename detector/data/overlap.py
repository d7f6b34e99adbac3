"""Images that two splits share: what was learnt by heart is not measured by showing it again."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

from detector.data.coco import CocoAnnotations
from detector.data.problems import NUM_EXAMPLES, Problem

_CHUNK_BYTES = 2**20


def shared_images(splits: Mapping[str, CocoAnnotations]) -> tuple[Problem, ...]:
    """The images whose files have the same content (SHA-256) in two splits, whatever their names.

    Only files of equal length are read. A file that cannot be read is left to whoever decodes it.

    Args:
        splits: name -> annotations, read with a folder of images.

    Returns:
        A problem, `accepted`, for each two splits that share images, with the names in the second one.
    """
    by_length: dict[int, list[tuple[str, int, Path]]] = {}
    for name, split in splits.items():
        for index in range(len(split)):
            path = split.path(index)
            try:
                by_length.setdefault(path.stat().st_size, []).append((name, index, path))
            except OSError:
                continue
    names_of: dict[bytes, dict[str, list[int]]] = {}
    for files in by_length.values():
        if len({name for name, _, _ in files}) > 1:
            for name, index, path in files:
                digest = _digest(path)
                if digest is not None:
                    names_of.setdefault(digest, {}).setdefault(name, []).append(index)
    problems = []
    for first, second in itertools.combinations(splits, 2):
        shared = sorted(i for found in names_of.values() if first in found for i in found.get(second, ()))
        if shared:
            examples = tuple(splits[second].file_names[index] for index in shared[:NUM_EXAMPLES])
            kind = f"image of the same content in {first} and {second}"
            problems.append(Problem(kind, "accepted", len(shared), examples))
    return tuple(problems)


def _digest(path: Path) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()
