"""Classes of a model, or of a training split, matched with the categories of an annotation file.

Training's own evaluation, `evaluate`, `predict --annotations` and `check` all ask `match_classes`, so that they score
the same categories. Every class is matched on its own by its name. Categories that match no class are left out of the
evaluation and reported.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.data.problems import NUM_EXAMPLES, Problem, shown
from detector.errors import DatasetError

# Names in Darknet's coco.names and in Pascal VOC, and the names of the same classes in COCO's annotation files.
# "pottedplant" and "diningtable" differ from COCO's by their space only.
COCO_ALIASES = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"}
_NUM_LISTED = 10
# Spaces, dashes and underscores between two letters; those beside a digit may tell classes apart.
_SEPARATOR = re.compile(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])")
# Classes without names are called class_7 by the readers of annotations and 7 by the reader of Darknet's weights.
_PLACEHOLDER = re.compile(r"(class_)?[0-9]+")


def has_names(class_names: Iterable[str]) -> bool:
    """Return whether any class has a name that is more than its number."""
    return not all(_PLACEHOLDER.fullmatch(name) for name in class_names)


def spelling(name: str) -> str:
    """Return what a class name has in common with other spellings of it and with its aliases in COCO."""
    plain = _SEPARATOR.sub("", name.strip().casefold())
    return COCO_ALIASES.get(plain, plain)


@dataclass(frozen=True)
class ClassMatch:
    """The category of an annotation file that each class of a model stands for.

    Attributes:
        category_ids: a category id for each class of the model; a class without a category has an id that the file
            does not use.
        of_class: the position of that category in the file for each class of the model, or None.
        is_matched: bool (C,), the categories of the file that a class stands for, in the order of the file.
        notes: sentences about classes that were not matched by an equal name, for the user.
        warning: a sentence about categories that match no class, which the numbers lack; or empty.
    """

    category_ids: tuple[int, ...]
    of_class: tuple[int | None, ...]
    is_matched: npt.NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    warning: str = ""

    def matched_part(self, annotations: CocoAnnotations) -> CocoAnnotations:
        """Return the annotations without the categories that match no class; their objects count as skipped."""
        return with_categories(annotations, self.is_matched)


def with_categories(annotations: CocoAnnotations, is_kept: npt.NDArray[np.bool_]) -> CocoAnnotations:
    """Return annotations with some of their categories, bool (C,); all images stay, lost objects count as skipped."""
    if is_kept.all():
        return annotations
    keep = is_kept[annotations.labels]
    new_label = np.cumsum(is_kept) - 1
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    problems = annotations.problems
    lost = np.bincount(annotations.labels[~keep], minlength=len(is_kept))
    if lost.any():
        examples = [f"{lost[i]} of {shown(annotations.class_names[i])}" for i in np.flatnonzero(lost)]
        what = "object of a category that matches no class"
        problems = (*problems, Problem(what, "skipped", int(lost.sum()), tuple(examples[:NUM_EXAMPLES])))
    return replace(
        annotations,
        class_names=tuple(itertools.compress(annotations.class_names, is_kept)),
        category_ids=tuple(itertools.compress(annotations.category_ids, is_kept)),
        offsets=kept_before[annotations.offsets],
        boxes_xywh=annotations.boxes_xywh[keep],
        labels=new_label[annotations.labels[keep]],
        is_crowd=annotations.is_crowd[keep],
        areas=annotations.areas[keep],
        problems=problems,
    )


def match_classes(
    class_names: Sequence[str], category_ids: Sequence[int], annotations: CocoAnnotations, who: str = "the model"
) -> ClassMatch:
    """Match the classes of a model with the categories of an annotation file, by name and class by class.

    Equal names match first, then names that differ only in case, in separators between words or as `COCO_ALIASES`. A
    name that is used more than once matches where the category id is equal too. If neither side has names, equal ids
    match. If only one side has names, the classes are taken in order, if both sides have as many.

    Args:
        class_names: the names of the model's classes.
        category_ids: their ids in the data set that it was trained on.
        annotations: the annotation file; its class names and category ids are read.
        who: the model, or the split that has the classes, for messages.

    Raises:
        DatasetError: no category matches a class.
    """
    names, ids = annotations.class_names, annotations.category_ids
    are_named = has_names(class_names), has_names(names)
    is_by_name = all(are_named) or (_are_digits(names) and set(names) <= set(class_names))
    is_by_id = not any(are_named) and bool(set(ids) & set(category_ids))
    # Ids of weights without names only count the classes; such a model is rather matched in order.
    are_from_file = any(not name.isdecimal() for name in class_names)
    if is_by_name:
        of_class, how = matched_names(class_names, names, category_ids, ids), ""
    elif is_by_id and (are_from_file or set(ids) <= set(category_ids) or len(ids) != len(category_ids)):
        at = {identifier: label for label, identifier in enumerate(ids)}
        of_class, how = [at.get(identifier) for identifier in category_ids], "by category id"
    elif len(names) == len(class_names):
        of_class, how = list(range(len(names))), "in order"
    else:
        unnamed = "the file" if are_named[0] else who
        raise DatasetError(
            f"{annotations.annotations}: {who} has {len(class_names)} classes, the file {len(names)} categories, and "
            f"{unnamed} has no class names to match them by; name the classes (in the file, or with --names)"
        )
    is_matched = np.zeros(len(names), np.bool_)
    is_matched[[label for label in of_class if label is not None]] = True
    if not is_matched.any():
        raise DatasetError(
            f"{annotations.annotations}: none of its categories ({_listed(names)}) is a class of {who} "
            f"({_listed(class_names)}); rename the categories, or choose other data"
        )
    unused = itertools.count(max((*ids, *category_ids)) + 1)
    found = tuple(next(unused) if label is None else ids[label] for label in of_class)
    notes = tuple(_notes(class_names, annotations, of_class, how, who))
    return ClassMatch(found, tuple(of_class), is_matched, notes, _warning(class_names, annotations, of_class, who))


def _are_digits(names: Sequence[str]) -> bool:
    """Return whether names are different numbers, as in data sets of digits."""
    return len(set(names)) == len(names) and all(name.isdecimal() for name in names)


def matched_names(
    class_names: Sequence[str], names: Sequence[str], category_ids: Sequence[int] = (), ids: Sequence[int] = ()
) -> list[int | None]:
    """Return the index in `names` of the same class for each class, or None; each index is given once.

    Names match as `match_classes` describes it; `category_ids` and `ids` are those of the classes, if they are known.
    """
    category_ids, ids = category_ids or [0] * len(class_names), ids or [0] * len(names)
    of_class: list[int | None] = [None] * len(class_names)
    keys: tuple[Callable[[str, int], Hashable], ...] = (
        lambda name, identifier: (name, identifier),
        lambda name, identifier: name,
        lambda name, identifier: spelling(name),
    )
    for key in keys:
        free = {i: key(class_names[i], category_ids[i]) for i, label in enumerate(of_class) if label is None}
        taken = set(of_class)
        rest = {j: key(names[j], ids[j]) for j in range(len(names)) if j not in taken}
        num, num_there = Counter(free.values()), Counter(rest.values())
        there = {found: j for j, found in rest.items() if num_there[found] == 1}
        for index, own in free.items():
            if num[own] == 1:
                of_class[index] = there.get(own)
    return of_class


def _notes(
    class_names: Sequence[str], annotations: CocoAnnotations, of_class: Sequence[int | None], how: str, who: str
) -> Iterable[str]:
    """Yield what the user should know about a match."""
    file, names = annotations.annotations, annotations.class_names
    if how:
        unnamed = " and ".join(
            side for side, listed in ((who, class_names), ("the file", names)) if not has_names(listed)
        )
        yield f"{file}: there are no class names in {unnamed}, so its categories are matched {how}"
    pairs = [(class_names[i], names[j]) for i, j in enumerate(of_class) if j is not None]
    other = [f"{there} = {own}" for own, there in pairs if own != there]
    if other and not how:
        yield f"{file}: {len(other)} categories are matched with another spelling: {_listed(other)}"


def _warning(class_names: Sequence[str], annotations: CocoAnnotations, of_class: Sequence[int | None], who: str) -> str:
    """Return a sentence about the categories that match no class; empty if there are none."""
    names, matched = annotations.class_names, set(of_class)
    rest = [name for j, name in enumerate(names) if j not in matched]
    if not rest:
        return ""
    lacking = [name for name, j in zip(class_names, of_class, strict=True) if j is None]
    without = f"; classes of {who} without a category: {_listed(lacking)}" if lacking else ""
    return (
        f"{annotations.annotations}: {len(rest)} of {len(names)} categories match no class of {who} and are left out: "
        f"{_listed(rest)}{without}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return ", ".join(shown(name) for name in names[:_NUM_LISTED]) + more
