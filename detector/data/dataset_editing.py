"""Editing of data sets: split, subset, merge and rename classes; no image is changed.

Stratified splits: K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the Stratification of Multi-Label Data" (ECML PKDD
2011), algorithm 1, with groups of images as examples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.config.name_suggestions import nearest
from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import Extras
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.nouns import plural

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Portion:
    """Annotations and the other content of their file."""

    annotations: CocoAnnotations
    extras: Extras


def take(portion: Portion, images: Positions, keep: npt.NDArray[np.bool_] | None = None) -> Portion:
    """Return some images with their boxes, in the order given.

    Args:
        portion: annotations of N images and A boxes.
        images: int64 (n,), positions of images.
        keep: bool (A,), the boxes to take; None takes all.
    """
    whole = portion.annotations
    image_of_row = np.repeat(np.arange(len(whole)), np.diff(whole.offsets))
    place = np.full(len(whole), -1, dtype=np.int64)
    place[images] = np.arange(len(images))
    is_taken = place[image_of_row] >= 0
    rows = np.flatnonzero(is_taken if keep is None else is_taken & keep)
    rows = rows[np.argsort(place[image_of_row[rows]], kind="stable")]
    num_boxes = np.bincount(place[image_of_row[rows]], minlength=len(images))
    annotations = replace(
        whole,
        image_ids=whole.image_ids[images],
        file_names=[whole.file_names[index] for index in images.tolist()],
        image_hw=whole.image_hw[images],
        offsets=np.concatenate([[0], np.cumsum(num_boxes)]).astype(np.int64),
        boxes_xywh=whole.boxes_xywh[rows],
        labels=whole.labels[rows],
        is_crowd=whole.is_crowd[rows],
        areas=whole.areas[rows],
    )
    extras = portion.extras
    return Portion(annotations, replace(extras, images=extras.images[images], rows=extras.rows[rows]))


# --- split ---------------------------------------------------------------------------------------------------------


def split_portion(
    portion: Portion,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, Portion]:
    """Split images so that every class is divided by the given shares.

    Args:
        portion: the images.
        shares: share of each split by name, together 1.
        seed: seed of the draws; equal arguments give equal splits.
        groups: group of each image; images of one group stay together. None puts each into its own.

    Raises:
        DatasetError: a share is not within 0..1, the shares do not add up to 1, or a split would be empty.
    """
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share:g}" for name, share in shares.items())
        raise DatasetError(f"expected shares above 0 that add up to 1, got {given}")
    names = portion.annotations.file_names
    by_group: dict[str, list[int]] = {}
    for index, own in enumerate(groups if groups is not None else map(str, range(len(names)))):
        by_group.setdefault(own, []).append(index)
    members = list(by_group.values())
    split_of_group = _stratify(_class_counts(portion.annotations, members), list(shares.values()), seed)
    result = {}
    for number, name in enumerate(shares):
        chosen = [index for group in np.flatnonzero(split_of_group == number) for index in members[group]]
        if not chosen:
            raise DatasetError(
                f"{plural(len(names), 'image')} in {plural(len(members), 'group')} leave the split {name} empty; "
                + ("use larger shares" if len(members) >= len(shares) else "group by something else, or not at all")
            )
        result[name] = take(portion, np.sort(np.array(chosen, dtype=np.int64)))
    return result


def _class_counts(annotations: CocoAnnotations, members: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return how many images of each group hold each class, and the number of its images: int64 (G, C + 1)."""
    num_classes = len(annotations.class_names)
    holds = np.zeros((len(annotations), num_classes + 1), dtype=np.int64)
    image_of_row = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    holds[image_of_row, annotations.labels] = 1
    holds[:, num_classes] = 1
    return np.array([holds[list(group)].sum(axis=0) for group in members])


def _stratify(counts: npt.NDArray[np.int64], shares: Sequence[float], seed: int) -> Positions:
    """Return the split of each group, int64 (G,).

    The rarest class comes first, and each of its groups goes to the split that lacks most images of that class.
    """
    rng = np.random.default_rng(seed)
    split_of = np.full(len(counts), -1, dtype=np.int64)
    missing = np.outer(shares, counts.sum(axis=0)).astype(np.float64)  # (splits, C + 1)
    order = rng.permutation(len(counts))
    left = counts.sum(axis=0)
    while (split_of < 0).any():
        rarest = (
            int(np.where(left > 0, left, np.iinfo(np.int64).max)[:-1].argmin()) if left[:-1].any() else len(left) - 1
        )
        waiting = order[(split_of[order] < 0) & (counts[order, rarest] > 0)]
        for group in waiting[
            np.argsort(-counts[waiting, -1], kind="stable")
        ]:  # large groups first, while there is room
            need = missing[:, rarest]
            best = np.flatnonzero(need >= need.max() - 1e-9)
            chosen = best[missing[best, -1].argmax()]
            split_of[group] = chosen
            missing[chosen] -= counts[group]
            left = left - counts[group]
    return split_of


def pooled(splits: Mapping[str, Portion], notes: list[str]) -> Portion:
    """Return the images of several splits as one, each image once.

    Args:
        splits: at least one.
        notes: takes a note for each change.
    """
    seen: set[str] = set()
    parts = []
    for name, portion in splits.items():
        real = [os.path.realpath(portion.annotations.path(index)) for index in range(len(portion.annotations))]
        new = [index for index, path in enumerate(real) if path not in seen]
        if len(new) < len(real):
            notes.append(f"{plural(len(real) - len(new), 'image')} of {name} also in another split, used once")
        seen.update(real)
        parts.append({"train": take(portion, np.array(new, dtype=np.int64))} if new else {})
    filled = [part for part in parts if part]
    if len(filled) == 1:
        return filled[0]["train"]
    joined, changed = merge(filled)
    notes += [note for note in changed if not note.startswith("train: the splits of")]
    return joined["train"]


def require_no_leak(splits: Mapping[str, Portion], remedy: str) -> None:
    """Reject splits that share images.

    Args:
        splits: the splits by name.
        remedy: what to do, for the message.

    Raises:
        DatasetError: an image is in two splits.
    """
    split_of: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, portion in splits.items():
        for index, file_name in enumerate(portion.annotations.file_names):
            other = split_of.setdefault(os.path.realpath(portion.annotations.path(index)), name)
            if other != name:
                shared.setdefault((other, name), []).append(file_name)
    for (one, other), names in shared.items():
        raise DatasetError(
            f"{one} and {other} would share {plural(len(names), 'image')}, so that results on {other} say nothing, "
            f"first: {shown(names[0])}; {remedy}"
        )


# --- subset --------------------------------------------------------------------------------------------------------


def subset(
    portion: Portion,
    *,
    class_names: Sequence[str] = (),
    num: int | None = None,
    seed: int = 0,
    keep_empty: bool = False,
) -> Portion:
    """Return some classes and some images.

    Args:
        portion: the annotations to choose from.
        class_names: classes to keep; an empty sequence keeps all.
        num: number of images to draw at random; None keeps all.
        seed: seed of the draw.
        keep_empty: whether to keep images without a box of the classes kept.

    Raises:
        DatasetError: a class is unknown, or there are fewer images than `num`.
    """
    annotations = portion.annotations
    if class_names:
        _require_known(annotations, class_names)
        mapping = {name: name if name in class_names else "" for name in annotations.class_names}
        kept = remap_classes(portion, mapping)
        has_box = np.diff(kept.annotations.offsets) > 0
        portion = kept if keep_empty else take(kept, np.flatnonzero(has_box))
    if num is None:
        return portion
    if not 1 <= num <= len(portion.annotations):
        num_present = len(portion.annotations)
        raise DatasetError(f"{annotations.annotations}: expected 1 to {num_present} images, got {num}")
    drawn = np.random.default_rng(seed).choice(len(portion.annotations), num, replace=False)
    return take(portion, np.sort(drawn))


def _require_known(annotations: CocoAnnotations, names: Sequence[str]) -> None:
    for name in names:
        if name not in annotations.class_names:
            raise DatasetError(
                f"{annotations.annotations}: has no class {name!r}{nearest(name, annotations.class_names)}"
            )


# --- classes -------------------------------------------------------------------------------------------------------


def remap_classes(portion: Portion, mapping: Mapping[str, str]) -> Portion:
    """Return annotations with classes renamed, merged and left out.

    Args:
        portion: the annotations; their images all stay.
        mapping: new name by old name; an empty name drops a class with its boxes, classes not named stay.

    Raises:
        DatasetError: an old name is unknown, or no class is left.
    """
    annotations = portion.annotations
    _require_known(annotations, list(mapping))
    renamed = [mapping.get(name, name) for name in annotations.class_names]
    id_of: dict[str, int] = {}  # a merged class has the id of the first one
    for name, identifier in zip(renamed, annotations.category_ids, strict=True):
        if name:
            id_of.setdefault(name, identifier)
    if not id_of:
        raise DatasetError(f"{annotations.annotations}: no class is left of {len(renamed)}; keep one")
    label_of = {name: label for label, name in enumerate(id_of)}
    new_label = np.array([label_of.get(name, -1) for name in renamed], dtype=np.int64)
    kept = take(portion, np.arange(len(annotations)), new_label[annotations.labels] >= 0)
    relabelled = replace(
        kept.annotations,
        class_names=tuple(id_of),
        category_ids=tuple(id_of.values()),
        labels=new_label[kept.annotations.labels],
    )
    return Portion(relabelled, kept.extras)


# --- merge ---------------------------------------------------------------------------------------------------------


def merge(data_sets: Sequence[Mapping[str, Portion]]) -> tuple[dict[str, Portion], tuple[str, ...]]:
    """Merge several data sets: splits of the same name are joined, classes are matched by name.

    Args:
        data_sets: the splits of each by name.

    Returns:
        The splits, their file names relative to the common folder of all images, and a note for each change.

    Raises:
        DatasetError: an image is in two of them, or their folders have no folder in common.
    """
    notes: list[str] = []
    id_of = _common_ids([portion for splits in data_sets for portion in splits.values()], notes)
    merged = {}
    for name in dict.fromkeys(name for splits in data_sets for name in splits):
        parts = [splits[name] for splits in data_sets if name in splits]
        if len(parts) > 1:
            counts = " + ".join(f"{len(part.annotations):,}" for part in parts)
            notes.append(f"{name}: the splits of {len(parts)} data sets are joined, {counts} images")
        merged[name] = _joined(parts, id_of, name, notes)
    return merged, tuple(dict.fromkeys(notes))


def numbered_together(
    splits: Mapping[str, tuple[CocoAnnotations, Extras]], id_of: Mapping[str, int] | None = None
) -> dict[str, tuple[CocoAnnotations, Extras]]:
    """Return splits that belong together with the classes of all of them.

    Args:
        splits: annotations and their other content by split.
        id_of: the id of each class name; None sorts the names and counts them from 1.
    """
    names = sorted({name for annotations, _ in splits.values() for name in annotations.class_names})
    ids = {name: number for number, name in enumerate(names, start=1)} if id_of is None else id_of
    return {split: _with_ids(annotations, extras, ids) for split, (annotations, extras) in splits.items()}


def numbered_alike(portions: Mapping[str, Portion], notes: list[str]) -> dict[str, Portion]:
    """Return the splits of one data set with the same classes in all, and add a note where they differed."""
    tables = [portion.annotations for portion in portions.values()]
    classes = {(table.class_names, table.category_ids) for table in tables}
    if len(classes) < 2 or any(len(set(names)) < len(names) for names, _ in classes):
        return dict(portions)
    changed: list[str] = []
    id_of = _common_ids(list(portions.values()), changed)
    notes += [f"the splits list different classes, so that each gets all {len(id_of)} of them", *changed]
    pairs = {name: (portion.annotations, portion.extras) for name, portion in portions.items()}
    return {name: Portion(*pair) for name, pair in numbered_together(pairs, id_of).items()}


def _with_ids(annotations: CocoAnnotations, extras: Extras, id_of: Mapping[str, int]) -> tuple[CocoAnnotations, Extras]:
    """Return annotations with the given classes, among which are all of their own."""
    names = sorted(id_of, key=lambda name: id_of[name])
    new_label = np.array([names.index(name) for name in annotations.class_names], dtype=np.int64)
    own = dict(zip(annotations.category_ids, annotations.class_names, strict=True))
    categories = {id_of[own[identifier]]: entry for identifier, entry in extras.categories.items() if identifier in own}
    relabelled = replace(
        annotations,
        class_names=tuple(names),
        category_ids=tuple(id_of[name] for name in names),
        labels=new_label[annotations.labels],
    )
    return relabelled, replace(extras, categories=categories)


def _common_ids(portions: Sequence[Portion], notes: list[str]) -> dict[str, int]:
    """Return the id of each class name: its first one, unless that is taken."""
    id_of: dict[str, int] = {}
    for part in (portion.annotations for portion in portions):
        for name, identifier in zip(part.class_names, part.category_ids, strict=True):
            if name not in id_of:
                id_of[name] = identifier if identifier not in id_of.values() else max(id_of.values()) + 1
            if id_of[name] != identifier:
                notes.append(f"{part.annotations}: category {identifier} ({name}) becomes {id_of[name]}")
    return id_of


def _joined(portions: Sequence[Portion], id_of: Mapping[str, int], split: str, notes: list[str]) -> Portion:
    """Return portions one after the other, with the classes of all data sets."""
    names = sorted(id_of, key=lambda name: id_of[name])
    root, file_names = _common_names([portion.annotations for portion in portions])
    image_ids = np.concatenate([portion.annotations.image_ids for portion in portions])
    if len(set(image_ids.tolist())) < len(image_ids):
        notes.append(
            f"{split}: image ids are used more than once: all {len(image_ids)} images are numbered again from 1"
        )
        image_ids = np.arange(1, len(image_ids) + 1)
    labels, categories = [], dict[int, dict[str, object]]()
    for portion in portions:
        annotations = portion.annotations
        new_label = np.array([names.index(name) for name in annotations.class_names], dtype=np.int64)
        labels.append(new_label[annotations.labels])
        for name, identifier in zip(annotations.class_names, annotations.category_ids, strict=True):
            categories.setdefault(id_of[name], portion.extras.categories.get(identifier, {}))
    tables = [portion.annotations for portion in portions]
    merged = CocoAnnotations(
        annotations=tables[0].annotations,
        images=root,
        class_names=tuple(names),
        category_ids=tuple(id_of[name] for name in names),
        image_ids=image_ids,
        file_names=file_names,
        image_hw=np.concatenate([table.image_hw for table in tables]),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate([np.diff(table.offsets) for table in tables]))]),
        boxes_xywh=np.concatenate([table.boxes_xywh for table in tables]),
        labels=np.concatenate(labels),
        is_crowd=np.concatenate([table.is_crowd for table in tables]),
        areas=np.concatenate([table.areas for table in tables]),
        problems=(),
    )
    top = portions[0].extras.top
    if any(portion.extras.top != top for portion in portions[1:]):
        keys = ", ".join(sorted({key for portion in portions for key in portion.extras.top}))
        notes.append(f"{split}: the keys {keys} of the files differ; those of the first file are kept")
    images = np.concatenate([portion.extras.images for portion in portions])
    rows = np.concatenate([portion.extras.rows for portion in portions])
    return Portion(merged, Extras(images, rows, categories, top))


def _common_names(parts: Sequence[CocoAnnotations]) -> tuple[Path, list[str]]:
    """Return the common folder of all images, and their names relative to it."""
    paths = [Path(os.path.abspath(part.path(index))) for part in parts for index in range(len(part))]
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise DatasetError(
                f"{path} is in two of the data sets; remove it from one of them (detector dataset subset)"
            )
        seen.add(path)
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError as error:  # two drives
        raise DatasetError(
            "the images are on two drives; copy one of the data sets to the drive of the other"
        ) from error
    return root, [path.relative_to(root).as_posix() for path in paths]
