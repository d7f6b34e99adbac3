"""Teacher of a run of detection: any detector, run on each training image as the model in training sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector.data.class_matching import match_classes
from detector.data.coco import CocoAnnotations
from detector.errors import CheckpointError, ConfigError
from detector.export.export_runtime import ExportRuntime
from detector.inference.predictor import Predictor, RawBoxes
from detector.inference.runtime import TorchRuntime
from detector.io.nouns import plural
from detector.media.images import with_channels
from detector.models.published_weights import model_sha256, resolve_weights
from detector.structures.boxes import clip_xyxy
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig, select_rows
from detector.structures.types import Batch, TaughtObjects
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import LoadedModel, load_model
from detector.training.events import Noted, Report

# Lower scores teach nothing: their target is nearly that of background, and a detector has thousands of them.
_LOWEST_SCORE = 0.05
_MOST_PER_IMAGE = 100  # as COCO counts; it bounds the work of the assignment
_LEAST_SIDE_PX = 1.0  # of a box on the canvas, whose aspect ratio the loss takes


class Teacher:
    """Detector that labels training batches; it has no gradients, no moving average and no place in saved files.

    Attributes:
        is_taught: for each class of the model in training whether the teacher has it.
        identity: file and hash of the teacher, and its licence where it is known, for the provenance of the run.
    """

    def __init__(self, config: DetectionConfig, annotations: CocoAnnotations, report: Report) -> None:
        """Open `train.teacher` and match its classes with those of the training split; report what has no partner.

        Raises:
            CheckpointError: the file cannot be read.
            DatasetError: no class matches.
            ConfigError: the file selects boxes itself, or its channels do not fit.
        """
        given = config.train.teacher
        assert given is not None  # opened only for a run with a teacher
        path = _resolved(given)
        # Building a network draws random numbers, and those of the run must not depend on its teacher.
        with torch.random.fork_rng(devices=[]):
            self._loaded = load_model(path)
        self._path, self._report = path, report
        self._require_usable(config)
        file = self._loaded.file
        match = match_classes(file.class_names, file.category_ids, annotations, f"the teacher {path.name}")
        own_class = {label: row for row, label in enumerate(match.of_class) if label is not None}
        self._rows = [own_class.get(label, -1) for label in range(len(annotations.class_names))]
        self.is_taught = tuple(row >= 0 for row in self._rows)
        for text in match.notes:
            report(Noted(text))
        lacking = [name for name, known in zip(annotations.class_names, self.is_taught, strict=True) if not known]
        if lacking:
            text = f"the teacher {path.name} does not have {plural(len(lacking), 'class', 'classes')} of the data set"
            report(Noted(f"{text}, which are learnt from the annotations alone: {', '.join(lacking)}", is_warning=True))
        self.identity = {"teacher": str(path), "teacher_sha256": model_sha256(path)}
        if "licence" in file.provenance:
            self.identity["teacher_licence"] = file.provenance["licence"]
        self._batch_size, self._channels = config.loader.batch_size, config.input.channels

    def _require_usable(self, config: DetectionConfig) -> None:
        """Reject a teacher that does not give all boxes or cannot take the images of the run."""
        model, channels = self._loaded.model, self._loaded.config.input.channels
        if isinstance(model, ExportRuntime) and model.selection is not None:
            raise ConfigError(
                f"train.teacher={self._path}: expected a model that gives all boxes, got a file that selects by "
                f"itself; export it without --nms"
            )
        if channels != config.input.channels and not {channels, config.input.channels} <= {1, 3}:
            raise ConfigError(
                f"train.teacher={self._path}: expected a model for images of {config.input.channels} channels, got one "
                f"for {channels}; choose a teacher that was trained on such images"
            )

    def taught(self, batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
        """Yield batches with the detections of the teacher, and report its cost.

        Args:
            batches: the batches, on the CPU.
            device: the device to run on; an export runs on the CPU.
        """
        predictor = _predictor(self._loaded, device, self._batch_size)
        select = replace(
            self._loaded.config.predict,
            confidence=_LOWEST_SCORE,
            class_confidence=None,
            classes=None,
            best_class=True,
            max_detections=_MOST_PER_IMAGE,
        )
        height, width = predictor.input.canvas_hw
        blank = np.zeros((height, width, predictor.input.channels), np.uint8)
        took_s = 0.0
        for _ in range(2):  # the first pass includes one-time work
            started_s = time.monotonic()
            predictor.raw_boxes([blank] * self._batch_size)[0].scores.sum().item()
            took_s = (time.monotonic() - started_s) / self._batch_size
        self._report(
            Noted(
                f"teacher: {self._path} (SHA-256 {self.identity['teacher_sha256'][:12]}) labels every training image "
                f"at {width} x {height} px, {1000 * took_s:.1f} ms per image in addition to training"
            )
        )
        for batch in batches:
            images = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
            found = predictor.raw_boxes([self._converted(image) for image in images])
            taught = self._padded([self._detected(raw, select) for raw in found])
            yield replace(batch, targets=replace(batch.targets, taught=taught))

    def _converted(self, image: Image) -> Image:
        """Return an image (H, W, C) with the channels of the teacher."""
        converted = with_channels(image, self._loaded.config.input.channels)
        assert converted is not None  # `_require_usable` checked it
        return converted

    def _detected(self, raw: RawBoxes, select: SelectConfig) -> tuple[torch.Tensor, ...]:
        """Return the boxes float32 (N, 4) in pixels of the image and the scores of the student's classes (N, C)."""
        boxes, of_teacher = raw.canvas_xyxy.cpu(), raw.scores.cpu()
        scores = torch.cat([of_teacher, of_teacher.new_zeros(len(of_teacher), 1)], dim=1)[:, self._rows]
        row, _ = select_rows(boxes, scores, select, raw.letterbox.resized_hw)
        source_xyxy = clip_xyxy(raw.letterbox.boxes_to_source(boxes[row]), raw.letterbox.source_hw)
        is_large = (source_xyxy[:, 2:] - source_xyxy[:, :2] >= _LEAST_SIDE_PX).all(dim=1)
        return source_xyxy[is_large], scores[row[is_large]]

    def _padded(self, found: Sequence[tuple[torch.Tensor, ...]]) -> TaughtObjects:
        """Return the detections of the images of a batch as padded rows."""
        most = max(len(scores) for _, scores in found)
        canvas_xyxy = torch.zeros(len(found), most, 4)
        padded = torch.zeros(len(found), most, len(self._rows))
        for index, (boxes, scores) in enumerate(found):
            canvas_xyxy[index, : len(boxes)], padded[index, : len(scores)] = boxes, scores.clamp(0, 1)
        return TaughtObjects(canvas_xyxy, padded)


def _predictor(loaded: LoadedModel, device: torch.device, batch_size: int) -> Predictor:
    """Return the predictor of a teacher, with one plain view of each image."""
    model = loaded.model
    runtime = model if isinstance(model, ExportRuntime) else TorchRuntime(model, device)
    names, ids = loaded.file.class_names, loaded.file.category_ids
    return Predictor(runtime, loaded.config.input, names, ids, batch_size=batch_size)


def _resolved(given: Path) -> Path:
    """Return the file of a teacher.

    Raises:
        CheckpointError: it is not there.
    """
    try:
        path = resolve_weights(given)
    except CheckpointError as error:
        raise CheckpointError(f"train.teacher: {error}") from error
    if not path.exists():
        raise CheckpointError(f"train.teacher={path}: there is no such file; check the path")
    return path
