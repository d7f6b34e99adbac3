"""Prediction with a classifier: the classes of images, written to `predictions.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from detector.inference.prediction_summary import PredictionSummary
from detector.media.sources import as_sources, require_images
from detector.media.writers import write_text
from detector.tasks.classification_model import ClassPrediction, classify, load_classifier
from detector.tasks.requests import Observer, PredictionRequest
from detector.training.run_folder import results_folder

_NUM_SHOWN = 5  # classes of an image in records and lines


class ClassificationRun:
    """A run of a classifier over images: a context manager and, once, an iterable of records.

    Attributes:
        has_frames: false: a classifier takes images only.
    """

    has_frames = False

    def __init__(self, request: PredictionRequest, observer: Observer) -> None:
        """Open the model and the images.

        Raises:
            CheckpointError: the model file cannot be read.
            MediaError: a source is not an image.
            DetectorError: the folder of results cannot be made.
        """
        self._loaded = load_classifier(request.weights, request.overrides)
        self._images = require_images(as_sources(request.sources)[0], "a classifier")
        folder = results_folder(request.options.save_dir, "predict", self._loaded.config.train.project)
        self._path, self._note = folder / "predictions.json", observer.note
        self._records: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._num_warnings = 0
        self._is_stopped = False

    def __enter__(self) -> ClassificationRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            write_text(self._path, json.dumps(self._records, indent=1))

    def __iter__(self) -> Iterator[ClassPrediction]:
        """Yield the classes of each image, in order."""
        for prediction in classify(self._loaded, self._images):
            self._num_warnings += len(prediction.warnings)
            for warning in prediction.warnings:
                self._note(f"warning: {warning}")
            if prediction.error is not None:
                self._errors.append(prediction.error)
                self._note(f"skipped: {prediction.error}")
            self._records.append(self.to_record(prediction))
            yield prediction
            if self._is_stopped:
                return

    @staticmethod
    def to_record(prediction: ClassPrediction) -> dict[str, Any]:
        """Return a record as plain data, as `predictions.json` has it."""
        if prediction.error is not None:
            return {"source": prediction.source, "error": prediction.error, "classes": []}
        classes = [
            # class: the old name of the field, up to version 0.2
            {"name": name, "probability": round(share, 6), "class": name}
            for name, share in prediction.top(_NUM_SHOWN)
        ]
        warnings = {"warnings": list(prediction.warnings)} if prediction.warnings else {}
        return {"source": prediction.source, **warnings, "classes": classes}

    @staticmethod
    def to_line(prediction: ClassPrediction) -> str:
        """Return a record as a line of text: the source and its most probable classes."""
        name = prediction.source.encode("utf-8", "backslashreplace").decode()  # the name may not be UTF-8
        if prediction.error is not None:
            return f"{name}: not read"
        return f"{name}: " + ", ".join(f"{label} {share:.3f}" for label, share in prediction.top(_NUM_SHOWN))

    def stop(self) -> None:
        """Read no further images."""
        self._is_stopped = True

    @property
    def summary(self) -> PredictionSummary:
        """Result of the run so far."""
        num_read = len(self._records) - len(self._errors)
        return PredictionSummary(num_read, self._num_warnings, tuple(self._errors), (self._path,))
