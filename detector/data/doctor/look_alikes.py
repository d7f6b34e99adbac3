"""Images that look the same, as groups that a split keeps together."""

from __future__ import annotations

from collections.abc import Mapping

from detector.data.coco import CocoAnnotations
from detector.data.doctor.file_checks import content_groups, scan_files
from detector.data.doctor.near_duplicates import near_duplicates

_CHANNELS = 3


def groups_of_look_alikes(annotations: CocoAnnotations) -> list[str]:
    """Return the group of each image: images of the same content, or that look the same, directly or in a chain.

    Every image is decoded at a reduced size; one that cannot be is a group of its own unless its file has a copy.

    Returns:
        The name of a group for each image: the file name of its first image.
    """
    files = scan_files({"all": annotations}, _CHANNELS, decode=True)
    first = list(range(len(files)))

    def root(position: int) -> int:
        while first[position] != position:
            first[position] = first[first[position]]
            position = first[position]
        return position

    seen = [position for position, file in enumerate(files) if file.look is not None]
    pairs = near_duplicates([file.look for file in files if file.look is not None])
    links = [(seen[a], seen[b]) for a, b in pairs]
    links += [(group[0], other) for group in content_groups([file.path for file in files]) for other in group[1:]]
    for one, other in links:
        low, high = sorted((root(one), root(other)))
        first[high] = low
    return [annotations.file_names[root(position)] for position in range(len(files))]


def copies_between(splits: Mapping[str, CocoAnnotations]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return pairs of file names of the same content by the two splits that they are in."""
    places = [(name, index) for name, split in splits.items() for index in range(len(split))]
    paths = [splits[name].path(index) for name, index in places]
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for group in content_groups(paths):
        first_name, first_index = places[group[0]]
        for position in group[1:]:
            name, index = places[position]
            if name != first_name:
                pair = splits[first_name].file_names[first_index], splits[name].file_names[index]
                found.setdefault((first_name, name), []).append(pair)
    return found
