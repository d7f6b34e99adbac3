"""Examination of a data set: all checks in one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from detector.config import registry
from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import CocoAnnotations
from detector.data.dataset import DatasetConfig
from detector.data.doctor.box_checks import check_boxes, tabulate
from detector.data.doctor.class_checks import check_classes, summarise_classes
from detector.data.doctor.file_checks import check_files, scan_files
from detector.data.doctor.findings import NUM_EXAMPLES, SEVERITIES, Finding, Report, Severity, SplitSummary
from detector.data.doctor.orphan_checks import check_orphans
from detector.data.doctor.suggestions import suggest
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.announcements import announce
from detector.io.nouns import plural
from detector.structures.canvas import Canvas

_COCO_SMALL_PX, _COCO_MEDIUM_PX = 32, 96
_MOSTLY_EMPTY = 0.5
DEFAULT_CANVAS = Canvas((640, 640), channels=3, fit="letterbox")
# Kinds of problems of the annotation reader that the checks here report with more detail.
_REPORTED_BY_CHECKS = frozenset(
    ("box partly outside the image", "image without annotations", "image without objects", "object listed twice")
)


def read_splits(
    config: DatasetConfig, selected: tuple[str, ...] = ()
) -> tuple[dict[str, CocoAnnotations], tuple[Finding, ...]]:
    """Read the splits of a data set by name, and make a finding for each split that is refused.

    A split with classes that its description does not have is refused, but its other objects are still examined.

    Args:
        config: the data set.
        selected: names of the splits to read; by default all splits.

    Raises:
        DatasetError: the data set has no split.
    """
    dataset = registry.build(config)
    splits: dict[str, CocoAnnotations] = {}
    findings: list[Finding] = []
    names = selected or dataset.split_names()
    if not names:
        raise DatasetError("the data set has no split; give data.train.annotations and data.train.images")
    for note in dataset.notes():
        announce(note)
    for name in names:
        try:
            splits[name] = dataset.split(name)
        except DatasetError as error:
            findings.append(Finding("split-refused", "error", f"{name} is refused", {name: 1}, 0, (str(error),)))
            rest = _without_unknown(config, name)
            if rest is not None:
                splits[name] = rest
                used = np.bincount(rest.labels, minlength=len(rest.class_names)) > 0
                if len(used) > 1 and not used[0] and used[1:].all():
                    title = f"{name} has a class number beyond the last class and never uses the first class"
                    findings.append(Finding("class-off-by-one", "error", title, {name: 1}, 0, (rest.class_names[0],)))
    return splits, tuple(findings)


def _without_unknown(config: DatasetConfig, name: str) -> CocoAnnotations | None:
    """Read a split without the objects of unknown classes; return None if it was refused for another reason."""
    if getattr(config, "ignore_unknown", True):
        return None
    key: dict[str, Any] = {"ignore_unknown": True}
    lenient: DatasetConfig = replace(config, **key)
    try:
        rest: CocoAnnotations = registry.build(lenient).split(name)
    except DatasetError:
        return None
    return rest


def examine(
    source: str,
    splits: Mapping[str, CocoAnnotations],
    *,
    refusals: tuple[Finding, ...] = (),
    canvas: Canvas = DEFAULT_CANVAS,
    augment: AugmentConfig | None = None,
    decode: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Run all checks on a data set.

    Args:
        source: name of the data set in the report.
        splits: the splits that could be read, with folders of images.
        refusals: findings of `read_splits`.
        canvas: canvas of the network that will be trained.
        augment: augmentation of the training; the default recipe if None.
        decode: whether to decode the images; otherwise damaged images and near duplicates are not detected.
        progress: called with the number of images checked and the number of all images.
    """
    tables = {name: tabulate(split, canvas.canvas_hw, canvas.fit) for name, split in splits.items()}
    classes = summarise_classes(splits)
    files = scan_files(splits, canvas.channels, decode, progress)
    findings = [
        *refusals,
        *_of_splits(splits),
        *_of_reader(splits),
        *check_classes(splits, classes, augment or AugmentConfig()),
        *check_boxes(splits, tables),
        *check_files(splits, files),
        *check_orphans(splits),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    main = "train" if "train" in splits else next(iter(splits), "")
    return Report(
        source=source,
        canvas_hw=canvas.canvas_hw,
        checked=f"annotations, {plural(len(files), 'image file')}" + (" decoded" if decode else ", headers only"),
        splits=tuple(_summary(name, split) for name, split in splits.items()),
        classes=classes,
        findings=tuple(findings),
        suggestions=suggest(splits[main], tables[main], main, canvas.canvas_hw) if main else (),
        annotations=splits,
    )


def _summary(name: str, split: CocoAnnotations) -> SplitSummary:
    is_object = ~split.is_crowd
    image = np.repeat(np.arange(len(split)), np.diff(split.offsets))[is_object]
    num = np.bincount(image, minlength=len(split))
    side = np.sqrt(split.boxes_xywh[is_object, 2:].prod(axis=1))
    areas = split.areas[is_object]
    num_small = int((areas < _COCO_SMALL_PX**2).sum())
    num_medium = int((areas < _COCO_MEDIUM_PX**2).sum()) - num_small
    known = split.image_hw[(split.image_hw > 0).all(axis=1)]
    median_hw = np.median(known, axis=0) if len(known) else np.zeros(2)
    percentiles = np.percentile(side, (5, 50, 95)).round(1).tolist() if len(side) else (0.0, 0.0, 0.0)
    return SplitSummary(
        name=name,
        annotations=str(split.annotations),
        images=str(split.images),
        num_images=len(split),
        num_empty=int((num == 0).sum()),
        num_objects=int(is_object.sum()),
        num_crowds=int(split.is_crowd.sum()),
        num_classes=len(np.unique(split.labels[is_object])),
        max_objects=int(num.max(initial=0)),
        median_image_wh=(int(median_hw[1]), int(median_hw[0])),
        object_px=tuple(percentiles),
        num_small_medium_large=(num_small, num_medium, len(areas) - num_small - num_medium),
    )


def _of_splits(splits: Mapping[str, CocoAnnotations]) -> list[Finding]:
    findings = []
    if "train" in splits and "val" not in splits:
        findings.append(Finding("split-missing", "note", "there is no val split", {"val": 1}))
    for name, split in splits.items():
        image = np.repeat(np.arange(len(split)), np.diff(split.offsets))[~split.is_crowd]
        num_empty = len(split) - len(np.unique(image))
        if num_empty == len(split):
            severity: Severity = "error" if name == "train" else "warning"
            findings.append(Finding("split-empty", severity, f"{name} has no object", {name: 1}))
        elif num_empty > _MOSTLY_EMPTY * len(split):
            title = f"{num_empty:,} of {len(split):,} images of {name} have no object"
            findings.append(Finding("split-mostly-empty", "warning", title, {name: num_empty}, len(split)))
    return findings


def _of_reader(splits: Mapping[str, CocoAnnotations]) -> list[Finding]:
    """Make a finding for each kind of problem that the reader of the annotations skipped or accepted."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    examples: dict[tuple[str, str], list[str]] = {}
    for name, split in splits.items():
        for problem in split.problems:
            if problem.kind not in _REPORTED_BY_CHECKS:
                key = problem.outcome, problem.kind
                counts.setdefault(key, {})[name] = problem.count
                examples.setdefault(key, []).extend(f"{name} {example}" for example in problem.examples)
    findings = []
    for (outcome, kind), by_split in counts.items():
        is_format = kind.startswith("box that looks")
        severity: Severity = "warning" if outcome == "skipped" or is_format else "note"
        code = "box-format" if is_format else f"reader-{outcome}"
        title = f"{sum(by_split.values()):,} x {shown(kind)}"
        places = tuple(examples[outcome, kind][:NUM_EXAMPLES])
        findings.append(Finding(code, severity, title, by_split, 0, places))
    return findings
