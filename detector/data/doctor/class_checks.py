"""Checks for classes that will not be learnt as intended: unused, rare, off by one, or exchanged by a flip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detector.data.augment.augment_config import AugmentConfig
from detector.data.class_matching import match_classes
from detector.data.coco import CocoAnnotations
from detector.data.doctor.findings import NUM_EXAMPLES, ClassSummary, Finding, Severity
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.nouns import plural

FEW_OBJECTS = 10
# Ratios of the most to the least frequent class; it is 1,300 in COCO, 10,000 in LVIS and 20 in VOC.
NOTED_IMBALANCE, GREAT_IMBALANCE = 10, 100
# Words that a horizontal and a vertical flip exchange.
_LEFT_RIGHT = (("left", "right"), ("links", "rechts"), ("gauche", "droite"), ("izquierda", "derecha"))
_UP_DOWN = (("up", "down"), ("top", "bottom"), ("upper", "lower"), ("upward", "downward"), ("oben", "unten"))
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


def summarise_classes(splits: Mapping[str, CocoAnnotations]) -> tuple[ClassSummary, ...]:
    """Return the figures of every class, in the order of the first split.

    Categories of other splits are matched with them as evaluation does; those that match none come last.
    """
    listed: list[tuple[str, int]] = []  # in the order of the first split, then those of other splits
    rows: dict[str, list[int]] = {}  # the position in `listed` of each category of a split
    for name, split in splits.items():
        own = list(zip(split.class_names, split.category_ids, strict=True))
        class_of = _classes_of(splits, name) if listed else [None] * len(own)
        rows[name] = []
        for category, position in zip(own, class_of, strict=True):
            rows[name].append(len(listed) if position is None else position)
            listed += [category] if position is None else []
    objects: list[dict[str, int]] = [{} for _ in listed]
    images: list[dict[str, int]] = [{} for _ in listed]
    sides: list[list[npt.NDArray[np.float64]]] = [[] for _ in listed]
    for name, split in splits.items():
        is_object = ~split.is_crowd
        labels = split.labels[is_object]
        image = np.repeat(np.arange(len(split)), np.diff(split.offsets))[is_object]
        side = np.sqrt(split.boxes_xywh[is_object, 2:].prod(axis=1))
        num_objects = np.bincount(labels, minlength=len(split.category_ids))
        pairs = np.unique(np.stack([labels, image], axis=1), axis=0)
        num_images = np.bincount(pairs[:, 0], minlength=len(split.category_ids))
        by_label = np.split(side[np.argsort(labels, kind="stable")], np.cumsum(num_objects)[:-1])
        for label, row in enumerate(rows[name]):
            objects[row][name] = int(num_objects[label])
            images[row][name] = int(num_images[label])
            sides[row].append(by_label[label])
    medians = [float(np.median(all_of)) if len(all_of := np.concatenate(s)) else 0.0 for s in sides]
    return tuple(
        ClassSummary(shown(name), identifier, num_objects, num_images, round(median, 2))
        for (name, identifier), num_objects, num_images, median in zip(listed, objects, images, medians, strict=True)
    )


def _classes_of(splits: Mapping[str, CocoAnnotations], name: str) -> list[int | None]:
    """Return the class of the first split that each category of a split is, as evaluation matches them, or None."""
    first_name = next(iter(splits))
    first, class_of = splits[first_name], list[int | None]([None] * len(splits[name].class_names))
    try:
        of_class = match_classes(first.class_names, first.category_ids, splits[name], first_name).of_class
    except DatasetError:  # none is a class of the first split
        return class_of
    for index, label in enumerate(of_class):
        if label is not None:
            class_of[label] = index
    return class_of


def check_classes(
    splits: Mapping[str, CocoAnnotations], classes: Sequence[ClassSummary], augment: AugmentConfig
) -> list[Finding]:
    """Return every finding about classes."""
    return [
        *_differing(splits),
        *_unused(splits, classes),
        *_rare(splits, classes),
        *_mirrored(classes, augment),
        *_alike(classes),
    ]


def _finding(
    code: str, severity: Severity, title: str, names: Sequence[str], total: int = 0, split: str = "all"
) -> Finding:
    examples = [shown(name) for name in names[:NUM_EXAMPLES]]
    if len(names) > NUM_EXAMPLES:
        examples[-1:] = [f"{examples[-1]} and {len(names) - NUM_EXAMPLES} more"]
    return Finding(code, severity, title, {split: len(names)}, total, tuple(examples))


def _differing(splits: Mapping[str, CocoAnnotations]) -> list[Finding]:
    """Find splits with other classes than the first split."""
    findings = []
    first_name = next(iter(splits), "")
    for name, split in list(splits.items())[1:]:
        first, class_of = splits[first_name], _classes_of(splits, name)
        named = list(zip(split.category_ids, split.class_names, class_of, strict=True))
        new = [f"{i} ({n})" for i, n, known in named if known is None]
        if new:
            title = f"{name} has {plural(len(new), 'category', 'categories')} that are no class of {first_name}"
            severity: Severity = "warning" if len(new) < len(named) else "error"
            findings.append(_finding("class-names-differ", severity, title, new, len(named), name))
        matched = [(i, n, first.category_ids[k], first.class_names[k]) for i, n, k in named if k is not None]
        other = [f"{known} in {first_name}, {n} in {name}" for _, n, _, known in matched if n != known]
        if other:
            title = f"{first_name} and {name} have another spelling of {plural(len(other), 'class', 'classes')}"
            findings.append(_finding("class-names-matched", "note", title, other, len(named), name))
        moved = [f"{n}: {known} in {first_name}, {i} in {name}" for i, n, known, _ in matched if i != known]
        if moved:
            title = f"{first_name} and {name} have other category ids for {plural(len(moved), 'class', 'classes')}"
            findings.append(_finding("class-ids-differ", "note", title, moved, len(named), name))
    return findings


def _unused(splits: Mapping[str, CocoAnnotations], classes: Sequence[ClassSummary]) -> list[Finding]:
    findings: list[Finding] = []
    if not any(sum(c.num_objects.values()) for c in classes):
        return findings
    unused = [c.name for c in classes if not sum(c.num_objects.values())]
    if len(classes) >= 3 and unused == [classes[0].name]:
        title = "the first class is never used, but every other class is"
        findings.append(_finding("class-off-by-one", "warning", title, unused, len(classes)))
    elif unused:
        title = f"{plural(len(unused), 'class has', 'classes have')} no object in any split"
        findings.append(_finding("class-unused", "warning", title, unused, len(classes)))
    for name in splits if "train" in splits else ():
        # A category that train does not list is left out of the evaluation.
        unseen = [c.name for c in classes if c.num_objects.get(name, 0) and c.num_objects.get("train") == 0]
        if unseen:
            title = f"{plural(len(unseen), 'class', 'classes')} of {name} without an object in train"
            findings.append(_finding("class-not-in-train", "warning", title, unseen, len(classes), name))
        unmeasured = [c.name for c in classes if c.num_objects.get("train", 0) and not c.num_objects.get(name, 0)]
        if unmeasured:
            title = f"{plural(len(unmeasured), 'class', 'classes')} of train without an object in {name}"
            findings.append(_finding("class-not-measured", "note", title, unmeasured, len(classes), name))
    return findings


def _rare(splits: Mapping[str, CocoAnnotations], classes: Sequence[ClassSummary]) -> list[Finding]:
    split = "train" if "train" in splits else next(iter(splits), "")
    used = {c.name: c.num_objects[split] for c in classes if c.num_objects.get(split, 0)}
    if not used:
        return []
    findings = []
    ranked = sorted(used, key=lambda name: used[name])
    few = [f"{name} ({used[name]})" for name in ranked if used[name] < FEW_OBJECTS]
    if few:
        title = f"{plural(len(few), 'class has', 'classes have')} fewer than {FEW_OBJECTS} objects in {split}"
        findings.append(_finding("class-few", "warning", title, few, len(classes), split))
    least, most = ranked[0], ranked[-1]
    ratio = used[most] / used[least]
    if ratio > NOTED_IMBALANCE:
        title = f"{most} is {ratio:,.0f} times as frequent as {least} in {split}"
        severity: Severity = "warning" if ratio > GREAT_IMBALANCE else "note"
        pair = (f"{most} ({used[most]:,})", f"{least} ({used[least]:,})")
        findings.append(Finding("class-imbalance", severity, title, {split: 1}, 0, pair))
    return findings


def mirror_images(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of names that differ only by the two words of one of the pairs."""
    words = {name: tuple(word.lower() for word in _WORD.findall(name)) for name in names}
    named = {spelled: name for name, spelled in words.items()}
    mirrored = []
    for name, spelled in words.items():
        for one, other in pairs:
            if one in spelled and other not in spelled:
                partner = named.get(tuple(other if word == one else word for word in spelled))
                if partner is not None:
                    mirrored.append((name, partner))
    return mirrored


def _mirrored(classes: Sequence[ClassSummary], augment: AugmentConfig) -> list[Finding]:
    findings = []
    for key, probability, axis, words in (
        ("flip_horizontal", augment.flip_horizontal, "left from right", _LEFT_RIGHT),
        ("flip_vertical", augment.flip_vertical, "top from bottom", _UP_DOWN),
    ):
        pairs = mirror_images([c.name for c in classes], words) if probability else []
        if pairs:
            title = f"classes distinguish {axis}, but augment.{key} is {probability:g}"
            named = [f"{one} / {other}" for one, other in pairs]
            findings.append(_finding("class-mirrored", "warning", title, named, len(classes)))
    return findings


def _alike(classes: Sequence[ClassSummary]) -> list[Finding]:
    """Find names that differ only in case, spaces or punctuation."""
    spelled: dict[str, list[str]] = {}
    for name in (entry.name for entry in classes):
        spelled.setdefault("".join(c for c in name.casefold() if c.isalnum()) or name, []).append(name)
    alike = [" / ".join(map(repr, names)) for names in spelled.values() if len(names) > 1]
    if not alike:
        return []
    title = f"{plural(len(alike), 'class name is', 'class names are')} written in more than one way"
    return [_finding("class-names-alike", "warning", title, alike, len(classes))]
