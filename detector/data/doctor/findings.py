"""What the examination of a data set says, as plain data: findings, figures of splits and classes, suggestions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from detector.data.coco import CocoAnnotations

SCHEMA_VERSION = 1  # of `Report.to_plain`; goes up when a key changes its meaning or goes away
NUM_EXAMPLES = 5  # places named with a finding
NUM_DRAWN = 4  # of these, drawn

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# What to do about each kind of finding, by its lasting name.
ADVICE: dict[str, str] = {
    "split-refused": "Training and evaluation refuse it for this reason. Correct it and check again.",
    "split-missing": "Training then measures nothing and keeps the last weights (detector dataset split makes one).",
    "split-empty": "Nothing to learn or to measure: look whether annotations and images belong together.",
    "split-mostly-empty": "Background helps against false alarms; but objects without labels are taught as background.",
    "reader-skipped": "They are left out. Correct the file or the folder, or accept the loss.",
    "reader-accepted": "They are used as the message says.",
    "reader-noted": "Nothing needs to be done.",
    "class-ids-differ": "Give all splits the same categories: evaluation refuses unknown ones.",
    "class-names-differ": "Predictions would be scored as other classes: correct one of the files.",
    "class-off-by-one": "If the labels count classes from 1, each is taken for its neighbour: subtract 1. If the first "
    "class is an empty parent that an export put there, remove it (detector dataset remap).",
    "class-unused": "Remove them (detector dataset remap), or find out where their objects went.",
    "class-not-in-train": "They cannot be learnt, their AP will be 0: split the data anew (detector dataset split).",
    "class-not-measured": "They are left out of its AP. A stratified split (detector dataset split) avoids it.",
    "class-few": "Too few to learn from or to measure with: collect more, or merge classes (detector dataset remap).",
    "class-imbalance": "Rare classes are seen rarely: collect more, or show their images more often (repeat factors).",
    "class-mirrored": "Set this augmentation to 0: a mirror makes one class of the other.",
    "class-names-alike": "Join them (detector dataset remap): the model would have to tell spellings apart.",
    "box-format": "Correct the program that wrote them, or convert the file.",
    "box-outside": "They are cut at the border. Look whether boxes and images belong together.",
    "box-sliver": "Such boxes are mostly slips of the hand: look at them, remove or redraw them.",
    "box-tiny": "Raise input.size, cut large images into tiles, or do without these objects.",
    "box-huge": "Fine for close-ups. If they were made from labels of whole images, draw real boxes.",
    "box-elongated": "Poles and roads are; for anything else look whether the box is meant.",
    "box-duplicate": "Remove one of each: the second teaches and scores the same object again.",
    "box-two-classes": "Decide for one class, unless your classes overlap on purpose.",
    "image-crowded": "COCO's AP counts 100 detections an image: what is beyond can never be found. Tiles help.",
    "image-unreadable": "Replace or remove them: training takes others, evaluation counts their objects as missed.",
    "image-size": "Their boxes belong to another picture or another size of it: evaluation leaves them out.",
    "image-exchanged": "They were measured or labelled lying on their side: look whether the boxes fit.",
    "image-orientation": "They are turned upright once, in training, evaluation and prediction alike.",
    "image-odd": "They are used as the message says.",
    "image-mix": "They are converted to what the network takes; look whether train and val have the same mix.",
    "image-duplicate": "Remove one of each: it counts double.",
    "image-duplicate-labels": "One of the two is wrong, or each has half of the objects: merge or remove one.",
    "image-near-duplicate": "Copies in another size or compression, or frames of a video: they add little.",
    "leak-exact": "What was learnt by heart is measured, the numbers are too good: remove them from one split.",
    "leak-near": "Frames of one video or copies of one photo fell into two splits: split by source (detector dataset "
    "split --group).",
}


@dataclass(frozen=True)
class Offender:
    """An image that a finding is about, to be drawn.

    Attributes:
        split: the split it is in.
        image: its position there.
        rows: the boxes meant, as rows of `CocoAnnotations.boxes_xywh`; none where the whole image is.
        caption: what to write below it.
    """

    split: str
    image: int
    rows: tuple[int, ...]
    caption: str


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in a data set.

    Attributes:
        code: its lasting name, a key of `ADVICE`.
        severity: `error` stops training or makes its numbers meaningless, `warning` costs accuracy or trust, `note` is
            worth knowing.
        title: what was found, in words, with its count.
        counts: how often, by split; under `all` where it is the data set that has it.
        total: of how many, over these splits; 0 where that has no meaning.
        examples: where, at most `NUM_EXAMPLES` places, the worst first.
        offenders: what to draw, at most `NUM_DRAWN`.
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
        """How often, over all splits."""
        return sum(self.counts.values())

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.code]

    def extent(self) -> str:
        """Where and how often, as far as the title does not say it: `train 3, val 1; 0.10% of 3,943`."""
        if "all" in self.counts or (self.count == 1 and not self.total):
            return ""
        by_split = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        return by_split + (f"; {self.count / self.total:.2%} of {self.total:,}" if self.total else "")


@dataclass(frozen=True)
class SplitSummary:
    """The figures of one split.

    Attributes:
        name: train, val or test.
        annotations: the file that describes it.
        images: the folder of its images.
        num_images: its images, empty ones included.
        num_empty: its images without an object.
        num_objects: its boxes, crowd regions left out.
        num_crowds: its crowd regions.
        num_classes: classes with at least one object.
        max_objects: most objects in one image.
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
    """The figures of one class.

    Attributes:
        name: its name.
        category_id: its original id.
        num_objects: its objects, by split.
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
    """A setting that suits the data set.

    Attributes:
        name: what is suggested, such as `input.size`.
        value: as it would be written, such as `960`.
        reason: why, with the figures behind it.
        details: the same as data.
    """

    name: str
    value: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Report:
    """All that the examination of a data set says.

    Attributes:
        source: the data set, as it was named.
        canvas_hw: the network's input, which sizes of objects are held against.
        checked: what was looked at besides the annotations.
        splits: figures by split.
        classes: figures by class, in the order of the labels.
        findings: the worst first.
        suggestions: settings for it.
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
        """How many findings of a severity there are."""
        return sum(finding.severity == severity for finding in self.findings)

    def is_clean(self, strict: bool = False) -> bool:
        """Whether nothing stops training; if strict, whether nothing is wrong at all but for notes."""
        return not self.num("error") and not (strict and self.num("warning"))

    def to_plain(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON has it; the keys of `SCHEMA_VERSION` stay."""
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


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 box`, `1,204 boxes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
