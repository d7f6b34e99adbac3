"""Example of a task: one file in `detector/tasks/`, or a file given with `--import`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np

from detector.config.registry import register
from detector.data.classification_batches import ImageAugmentConfig
from detector.data.classification_split import LabelledImages
from detector.data.problems import num_accepted, num_skipped
from detector.media.writers import write_text
from detector.tasks.classification import ClassificationTask
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.classification_model import evaluate_classifier, load_classifier, read_images
from detector.tasks.requests import EvaluationOutcome, ModelRequest, Observer
from detector.tasks.task import Headline
from detector.training.events import Report
from detector.training.run_folder import results_folder

_TURNS = ("0", "90", "180", "270")


@register("toy")
class TurnTask(ClassificationTask):
    """Task to tell how far an image was turned, which needs no labels (Gidaris et al. 2018, section 3).

    It shares the networks, losses and image sets of classification and replaces the classes of the images. A task with
    data and outputs of another kind derives from `Task` and implements every method.
    """

    @dataclass(frozen=True)
    class Config(ClassificationConfig):
        """Settings of classification, on a square canvas.

        Attributes:
            augment: the augmentation of training images; without flips, which would change the turn of an image.
        """

        augment: ImageAugmentConfig = field(default_factory=lambda: ImageAugmentConfig(flip_horizontal=0.0))

        def __post_init__(self) -> None:
            height, width = self.input.canvas_hw
            if height != width:
                raise ValueError(f"input.size: expected a square canvas for the task toy, got {height} x {width}")

    product = "turner"
    headline = Headline("turns told", "best_turns")

    def __init__(self, config: ClassificationConfig, report: Report) -> None:
        """Read the splits and turn their images; report what was left out of them.

        Raises:
            DatasetError: a split cannot be used.
        """
        super().__init__(config, report)
        self._images = turned(self._images)
        self._val = None if self._val is None else turned(self._val)
        self.class_names, self.category_ids = _TURNS, tuple(range(len(_TURNS)))
        self.num_images = len(self._images)
        self.num_val_images = 0 if self._val is None else len(self._val)

    @classmethod
    def evaluate_file(cls, request: ModelRequest, observer: Observer) -> EvaluationOutcome:
        """Evaluate a model on the turned images of a split and write its numbers."""
        loaded = load_classifier(request.weights, request.overrides)
        split = turned(read_images(loaded.config, request.split or "val", observer.report))
        metrics = evaluate_classifier(loaded, split)
        folder = results_folder(request.save_dir, "val", loaded.config.train.project)
        write_text(folder / "metrics.json", json.dumps(metrics.to_plain(), indent=1))
        observer.note(f"numbers: {folder / 'metrics.json'}")
        num_faults = num_skipped(split.problems) + num_accepted(split.problems)
        return EvaluationOutcome(metrics, metrics.to_plain(), (), num_faults)


def turned(split: LabelledImages) -> LabelledImages:
    """Return each image of a split turned by 0, 90, 180 and 270 degrees, with its turn as its class."""
    images = np.concatenate([np.rot90(split.images, turn, axes=(1, 2)) for turn in range(len(_TURNS))])
    labels = np.repeat(np.arange(len(_TURNS), dtype=np.int64), len(split))
    sources = tuple(f"{source}, {turn} degrees" for turn in _TURNS for source in split.sources)
    return replace(split, images=images, labels=labels, class_names=_TURNS, sources=sources)
