"""The numbers of classification: accuracy, of all images and of each class, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from detector.evaluation.number_text import class_table, number_text, with_note
from detector.io.nouns import plural

_TOP = 5


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the images of one class.

    Attributes:
        name: the class.
        num_images: its images.
        num_right: images whose highest score is that of the class.
        accuracy: their share; NaN without images.
    """

    name: str
    num_images: int
    num_right: int
    accuracy: float


@dataclass(frozen=True)
class ClassificationMetrics:
    """Numbers of one evaluation; a number without images to measure it on is NaN, printed as n/a.

    Attributes:
        stats: top1, top5 (where there are more than 5 classes), mean_class (the mean over classes of their accuracy)
            and entropy (the mean cross-entropy), by name.
        classes: the accuracy of each class.
        confusion: int64 (classes, classes): images by their class (rows) and the predicted class (columns).
        num_images: images measured.
        num_without_answer: images with a score that is not a number: wrong everywhere, in no column of `confusion`.
    """

    first_columns: ClassVar[Sequence[str]] = ()

    stats: dict[str, float]
    classes: tuple[ClassAccuracy, ...]
    confusion: npt.NDArray[np.int64] = field(repr=False, compare=False)
    num_images: int
    num_without_answer: int

    @property
    def headline(self) -> float:
        """Top-1 accuracy, 0..1; NaN without images."""
        return self.stats["top1"]

    def columns(self) -> dict[str, float]:
        """Return the numbers of a row of `results.csv` by column."""
        return {f"metrics/{name}": value for name, value in self.stats.items()}

    def to_plain(self) -> dict[str, object]:
        """Return the numbers as plain data for JSON; a number that does not exist is None."""

        def known(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "metric": "classification",
            **{name: known(value) for name, value in self.stats.items()},
            "classes": [{**vars(row), "accuracy": known(row.accuracy)} for row in self.classes],
            "confusion": self.confusion.tolist(),
            "num_images": self.num_images,
            "num_without_answer": self.num_without_answer,
        }

    def to_text(self) -> str:
        """Return accuracy of all images and of each class, with the class it is most often confused with, as text."""
        rows = []
        for index, (row, counts) in enumerate(zip(self.classes, self.confusion.tolist(), strict=True)):
            counts[index] = 0
            most = max(counts)
            taken_for = f"{self.classes[counts.index(most)].name} ({most})" if most else ""
            rows.append((row.name, number_text(row.accuracy), str(row.num_images), taken_for))
        without = f", {self.num_without_answer} without an answer" if self.num_without_answer else ""
        lines = [
            f"{plural(self.num_images, 'image')}{without}",
            "  ".join(f"{name} {number_text(value, 4)}" for name, value in self.stats.items()),
            "",
            *class_table(("class", "accuracy", "images", "most often taken for"), rows),
        ]
        return with_note("\n".join(lines))


def classification_metrics(
    logits: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    class_names: Sequence[str],
) -> ClassificationMetrics:
    """Return the numbers of classification scores.

    Of equal scores that of the first class ranks higher, as for `argmax`, so that accuracy, confusion and prediction
    agree. An image with a NaN or an infinite score counts as wrong, and its entropy is left out.

    Args:
        logits: (N, classes), before softmax.
        labels: int64 (N,), 0-based.
        class_names: name of each class.
    """
    num_images, num_classes = len(labels), len(class_names)
    scores = np.asarray(logits, np.float64)
    is_answered = np.isfinite(scores).all(axis=1)
    rows = np.flatnonzero(is_answered)
    answered, wanted = scores[rows], labels[rows]
    own = answered[np.arange(len(rows)), wanted][:, None]
    comes_first = np.arange(num_classes)[None] < wanted[:, None]
    ranks = ((answered > own) | ((answered == own) & comes_first)).sum(axis=1)  # 0 for the highest score
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (wanted, answered.argmax(axis=1) if len(rows) else wanted), 1)
    num_of_class = np.bincount(labels, minlength=num_classes)
    classes = tuple(
        ClassAccuracy(name, int(num), int(right), _share(int(right), int(num)))
        for name, num, right in zip(class_names, num_of_class, np.diagonal(confusion), strict=True)
    )
    shifted = answered - answered.max(axis=1, keepdims=True, initial=-np.inf)
    entropy = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(rows)), wanted]
    seen = [row.accuracy for row in classes if row.num_images]
    stats = {"top1": _share(int((ranks == 0).sum()), num_images)}
    if num_classes > _TOP:
        stats["top5"] = _share(int((ranks < _TOP).sum()), num_images)
    stats["mean_class"] = sum(seen) / len(seen) if seen else math.nan
    stats["entropy"] = float(entropy.mean()) if len(rows) else math.nan
    return ClassificationMetrics(stats, classes, confusion, num_images, num_images - len(rows))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
