"""Folds of a split for cross-validation, and groups of images that stay together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import no_extras
from detector.data.dataset_editing import Portion, split_portion, take
from detector.data.doctor.look_alikes import groups_of_look_alikes
from detector.errors import ConfigError, DatasetError
from detector.io.nouns import plural


@dataclass(frozen=True)
class FoldConfig:
    """One fold of a cross-validation on the training split: it is held out, the others are trained on.

    Attributes:
        index: the fold that is held out, from 1.
        count: number of folds.
        group: what keeps images in one fold: folder, duplicates (they look the same) or a regular expression that
            matches in the file name; None divides single images.
        seed: seed of the division, which does not depend on `train.seed`.
    """

    index: int
    count: int
    group: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 2 or not 1 <= self.index <= self.count:
            raise ValueError(
                f"train.fold: expected count >= 2 and index within 1..count, got {self.count} and {self.index}"
            )

    def divided(self, annotations: CocoAnnotations) -> tuple[CocoAnnotations, CocoAnnotations]:
        """Return the images to train on and those that are held out; every class is divided evenly.

        Raises:
            DatasetError: there are fewer images or groups than folds.
            ConfigError: an image has no group.
        """
        portion = Portion(annotations, no_extras(annotations))
        shares = {str(index): 1 / self.count for index in range(1, self.count + 1)}
        groups = groups_of(self.group, annotations)
        num_groups = len(annotations) if groups is None else len(set(groups))
        if self.count > num_groups:
            what = plural(num_groups, *(("image",) if groups is None else ("group of images", "groups of images")))
            raise DatasetError(
                f"--folds: expected a fold for each image at most, got {self.count} for {what}; lower it"
            )
        folds = split_portion(portion, shares, seed=self.seed, groups=groups)
        held_out = folds[str(self.index)].annotations
        is_held_out = np.isin(annotations.image_ids, held_out.image_ids)
        return take(portion, np.flatnonzero(~is_held_out)).annotations, held_out


def groups_of(how: str | None, annotations: CocoAnnotations, notes: list[str] | None = None) -> list[str] | None:
    """Return the group of each image, or None.

    Args:
        how: `folder`, `duplicates` or a regular expression, whose first group counts if it has one; None for no groups.
        annotations: the images.
        notes: takes a note on look-alikes.

    Raises:
        ConfigError: it is no regular expression, or does not match the name of an image.
    """
    names: Sequence[str] = annotations.file_names
    if how is None:
        return None
    if how == "folder":
        return [str(PurePosixPath(name).parent) for name in names]
    if how == "duplicates":
        groups = groups_of_look_alikes(annotations)
        if notes is not None:
            num = len(set(groups))
            notes.append(f"{plural(len(names), 'image')}, {num} of them different; look-alikes stay together")
        return groups
    try:
        pattern = re.compile(how)
    except re.error as error:
        raise ConfigError(
            f"--group: expected 'folder', 'duplicates' or a regular expression, got {how!r}: {error}"
        ) from error

    def group(name: str) -> str:
        match = pattern.search(name)
        if match is None:
            raise ConfigError(f"--group {how!r} does not match {name!r}; every image needs a group")
        return match[1] if pattern.groups and match[1] is not None else match[0]

    return list(map(group, names))
