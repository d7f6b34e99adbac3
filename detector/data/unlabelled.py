"""Images without annotations, joined with a training split: a teacher labels them in training."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.data.coco import CocoAnnotations
from detector.data.problems import NUM_EXAMPLES, Problem
from detector.errors import DatasetError, MediaError
from detector.media.images import image_hw
from detector.media.sources import ImageSource, find_sources


def with_unlabelled(
    annotations: CocoAnnotations, place: Path, left_out: tuple[CocoAnnotations, ...] = ()
) -> CocoAnnotations:
    """Return a training split with further images, each one crowd region as a whole: neither object nor background.

    Args:
        annotations: the split; its own images are not added again.
        place: a folder, glob or list file of images.
        left_out: splits whose images are not added either, such as that of the evaluation.

    Raises:
        DatasetError: no image is there, none is new, or the place holds videos.
    """
    paths = _image_files(place)
    taken = {os.path.realpath(part.path(i)) for part in (annotations, *left_out) for i in range(len(part))}
    new = [path for path in paths if os.path.realpath(path) not in taken]
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable = []
    for path in new:
        try:
            sizes[path] = image_hw(path)
        except MediaError as error:
            unreadable.append(str(error))
    if not sizes:
        raise DatasetError(
            f"data.unlabelled={place}: expected images that are not in the data set, got {len(paths)} of which "
            f"{len(paths) - len(new)} are in it and {len(unreadable)} cannot be read; give other images"
        )
    problems = annotations.problems
    if unreadable:
        examples = tuple(unreadable[:NUM_EXAMPLES])
        problems = (
            *problems,
            Problem("image of data.unlabelled that cannot be read", "skipped", len(unreadable), examples),
        )
    num, hw = len(sizes), np.array(list(sizes.values()), np.int64)
    first = max(annotations.image_ids.tolist(), default=0) + 1
    boxes_xywh = np.concatenate([np.zeros((num, 2)), hw[:, ::-1]], axis=1).astype(np.float64)
    ids = np.array([first + i for i in range(num)], dtype=annotations.image_ids.dtype)
    return replace(
        annotations,
        image_ids=np.concatenate([annotations.image_ids, ids]),
        file_names=[*annotations.file_names, *(path.as_posix() for path in sizes)],
        image_hw=np.concatenate([annotations.image_hw, hw]),
        offsets=np.concatenate([annotations.offsets, annotations.offsets[-1] + 1 + np.arange(num)]),
        boxes_xywh=np.concatenate([annotations.boxes_xywh, boxes_xywh]),
        labels=np.concatenate([annotations.labels, np.zeros(num, np.int64)]),
        is_crowd=np.concatenate([annotations.is_crowd, np.ones(num, np.bool_)]),
        areas=np.concatenate([annotations.areas, boxes_xywh[:, 2] * boxes_xywh[:, 3]]),
        problems=problems,
    )


def _image_files(place: Path) -> list[Path]:
    """Return the absolute paths of the images at a place.

    Raises:
        DatasetError: nothing is there, or something other than image files.
    """
    try:
        sources = find_sources(place, is_alone=False)
    except MediaError as error:
        raise DatasetError(f"data.unlabelled: {error}") from error
    paths = []
    for source in sources:
        if not isinstance(source, ImageSource) or source.path is None:
            raise DatasetError(f"data.unlabelled: expected image files, got {source.name}; save its frames first")
        paths.append(Path(os.path.abspath(source.path)))
    return paths
