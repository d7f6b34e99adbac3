"""Report on a data set as plain data: findings, figures of splits and classes, suggestions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from detector.data.coco import CocoAnnotations

SCHEMA_VERSION = 1  # of `Report.to_plain`; raised when a key changes its meaning or is removed
NUM_EXAMPLES = 5  # places named per finding
NUM_DRAWN = 4  # of these, number that is drawn

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Advice for each kind of finding, by its permanent code.
ADVICE: dict[str, str] = {
    "split-refused": "Training and evaluation refuse it for this reason. Correct it and check again.",
    "split-missing": "Training then evaluates nothing and keeps the last weights: make one (detector dataset split).",
    "split-empty": "There is nothing to learn or evaluate: check that annotations and images belong together.",
    "split-mostly-empty": "Background images reduce false alarms, but objects without labels are learnt as background.",
    "reader-skipped": "They are left out. Correct the file or the folder, or accept the loss.",
    "reader-accepted": "They are used as the message says.",
    "reader-noted": "Nothing needs to be done.",
    "class-ids-differ": "Training and evaluation match classes by name. Other programs may compare the ids.",
    "class-names-differ": "Evaluation leaves them out with their objects: correct their names, or add them to train.",
    "class-names-matched": "They are taken as the same classes. Other programs may compare the names.",
    "class-off-by-one": "If the labels count classes from 1, each is read as the next class: subtract 1. If the first "
    "class is an empty parent that an export added, remove it (detector dataset remap).",
    "class-unused": "Remove them (detector dataset remap), or find out why they have no objects.",
    "class-not-in-train": "They cannot be learnt and their AP is 0: split the data again (detector dataset split).",
    "class-not-measured": "They are left out of its AP. A stratified split (detector dataset split) avoids this.",
    "class-few": "Too few to train or evaluate on: collect more, or merge classes (detector dataset remap).",
    "class-imbalance": "The model rarely sees rare classes: collect more images, or repeat them (repeat factors).",
    "class-mirrored": "Set this augmentation to 0, because a flip turns one class into the other.",
    "class-names-alike": "Merge them (detector dataset remap); otherwise the model has to tell spellings apart.",
    "box-format": "Correct the program that wrote them, or convert the file.",
    "box-outside": "They are clipped at the border. Check that boxes and images belong together.",
    "box-sliver": "Such boxes are mostly drawn by accident: check them, then remove or redraw them.",
    "box-tiny": "Raise input.size, cut large images into tiles, or leave these objects out.",
    "box-huge": "Normal for close-ups. If they were made from labels of whole images, draw real boxes.",
    "box-elongated": "Normal for poles and roads; check the boxes of other objects.",
    "box-duplicate": "Remove one of each pair: the same object is trained and scored twice.",
    "box-two-classes": "Decide on one class, unless your classes overlap on purpose.",
    "image-crowded": "COCO's AP counts 100 detections per image, so further objects count as missed. Use tiles.",
    "image-unreadable": "Replace or remove them: training uses others, evaluation counts their objects as missed.",
    "image-size": "Their boxes belong to another image or another size of it: evaluation leaves them out.",
    "image-exchanged": "They were measured or labelled without their rotation: check that the boxes fit.",
    "image-orientation": "They are turned upright once, in training, evaluation and prediction alike.",
    "image-odd": "They are used as the message says.",
    "image-mix": "They are converted to the channels of the network; check that train and val have the same mix.",
    "image-duplicate": "Remove one of each pair, because it counts twice.",
    "image-duplicate-labels": "One of the two is wrong, or each has half of the objects: merge them or remove one.",
    "image-near-duplicate": "They are copies in another size or compression, or frames of a video, and add little.",
    "label-without-image": "Their objects are left out. If images were renamed or moved, rename the labels alike.",
    "image-unlisted": "They are left out. List them if they belong to a split; images without objects are useful too.",
    "image-type-unread": "They are left out: convert them to JPEG or PNG.",
    "leak-exact": "Evaluation on training images gives metrics that are too high: remove them from one split.",
    "leak-near": "Frames of one video or copies of one photo are in two splits: split by source (detector dataset "
    "split --group).",
}


@dataclass(frozen=True)
class Offender:
    """Image to be drawn with a finding.

    Attributes:
        split: name of the split.
        image: position of the image in the split.
        rows: boxes of the finding, as rows of `CocoAnnotations.boxes_xywh`; empty if it concerns the whole image.
        caption: text below the picture.
    """

    split: str
    image: int
    rows: tuple[int, ...]
    caption: str


@dataclass(frozen=True)
class Finding:
    """Kind of problem in a data set.

    Attributes:
        code: permanent name, a key of `ADVICE`.
        severity: `error` stops training or makes its metrics meaningless, `warning` costs accuracy or reliability,
            `note` is good to know.
        title: description with the count.
        counts: number of occurrences by split; under `all` if it concerns the data set as a whole.
        total: number of boxes, images or classes checked in these splits; 0 if that has no meaning.
        examples: at most `NUM_EXAMPLES` places, the worst first.
        offenders: images to draw, at most `NUM_DRAWN`.
    """

    code: str
    severity: Severity
    title: str
    counts: Mapping[str, int]
    total: int = 0
    examples: tuple[str, ...] = ()
    offenders: tuple[Offender, ...] = ()

    @property
    def count(self) -> int:
        """Number of occurrences over all splits."""
        return sum(self.counts.values())

    @property
    def advice(self) -> str:
        """Advice for this kind of finding."""
        return ADVICE[self.code]

    def extent(self) -> str:
        """Return the counts by split unless the title already tells them: `train 3, val 1; 0.10% of 3,943`."""
        if "all" in self.counts or (self.count == 1 and not self.total):
            return ""
        by_split = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        return by_split + (f"; {self.count / self.total:.2%} of {self.total:,}" if self.total else "")


@dataclass(frozen=True)
class SplitSummary:
    """Figures of one split.

    Attributes:
        name: train, val or test.
        annotations: the annotation file.
        images: the folder of the images.
        num_images: images, empty ones included.
        num_empty: images without an object.
        num_objects: boxes, without crowd regions.
        num_crowds: crowd regions.
        num_classes: classes with at least one object.
        max_objects: largest number of objects in one image.
        median_image_wh: median width and height of the images in pixels.
        object_px: 5th, 50th and 95th percentile of the square root of the objects' areas, in source pixels.
        num_small_medium_large: objects with an area below 32 x 32 pixels, below 96 x 96, and the rest: COCO's sizes.
    """

    name: str
    annotations: str
    images: str
    num_images: int
    num_empty: int
    num_objects: int
    num_crowds: int
    num_classes: int
    max_objects: int
    median_image_wh: tuple[int, int]
    object_px: tuple[float, float, float]
    num_small_medium_large: tuple[int, int, int]


@dataclass(frozen=True)
class ClassSummary:
    """Figures of one class.

    Attributes:
        name: name of the class.
        category_id: original category id.
        num_objects: objects, by split.
        num_images: images with at least one of them, by split.
        median_px: median of the square root of the objects' areas over all splits, in source pixels; 0 without objects.
    """

    name: str
    category_id: int
    num_objects: Mapping[str, int]
    num_images: Mapping[str, int]
    median_px: float


@dataclass(frozen=True)
class Suggestion:
    """Setting that suits the data set.

    Attributes:
        name: name of the setting, such as `input.size`.
        value: value as text, such as `960`.
        reason: reason with figures.
        details: value and figures as data.
    """

    name: str
    value: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Report:
    """Result of the examination of a data set.

    Attributes:
        source: name of the data set.
        canvas_hw: height and width of the network input, for the sizes of objects.
        checked: description of what was checked.
        splits: figures by split.
        classes: figures by class, in the order of the labels.
        findings: findings, the worst first.
        suggestions: suggested settings.
        annotations: the splits themselves, for pictures.
    """

    source: str
    canvas_hw: tuple[int, int]
    checked: str
    splits: tuple[SplitSummary, ...]
    classes: tuple[ClassSummary, ...]
    findings: tuple[Finding, ...]
    suggestions: tuple[Suggestion, ...]
    annotations: Mapping[str, CocoAnnotations]

    def num(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def is_clean(self, strict: bool = False) -> bool:
        """Return True if there are no errors and, with `strict`, no warnings."""
        return not self.num("error") and not (strict and self.num("warning"))

    def to_plain(self) -> dict[str, object]:
        """Return everything except the pictures as plain data for JSON; the keys are fixed by `SCHEMA_VERSION`."""
        findings = []
        for finding in self.findings:
            plain = asdict(finding)
            del plain["offenders"]
            findings.append({**plain, "count": finding.count, "advice": finding.advice})
        return {
            "schema_version": SCHEMA_VERSION,
            "data": self.source,
            "canvas_hw": list(self.canvas_hw),
            "checked": self.checked,
            "summary": {severity: self.num(severity) for severity in SEVERITIES},
            "splits": [asdict(split) for split in self.splits],
            "classes": [asdict(entry) for entry in self.classes],
            "findings": findings,
            "suggestions": [asdict(suggestion) for suggestion in self.suggestions],
        }
