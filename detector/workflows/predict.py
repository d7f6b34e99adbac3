"""Prediction from start to end, with a model file of any task."""

from __future__ import annotations

from detector.inference.prediction_run import OnPicture
from detector.tasks.requests import SILENT, Observer, PredictionRequest, TaskRun
from detector.tasks.task import task_of_file


def predict_file(
    request: PredictionRequest, observer: Observer = SILENT, on_picture: OnPicture | None = None
) -> TaskRun:
    """Open a model file of any task and sources and return the run over them.

    Raises:
        DetectorError: as the task of the file raises.
    """
    return task_of_file(request.weights).predict_file(request, observer, on_picture)
