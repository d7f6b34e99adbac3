"""Evaluation from start to end, of a model file of any task or of a results file."""

from __future__ import annotations

from detector.tasks.detection_evaluation import evaluate_results
from detector.tasks.requests import SILENT, EvaluationOutcome, ModelRequest, Observer, ResultsRequest
from detector.tasks.task import task_of_file


def evaluate_file(request: ModelRequest, observer: Observer = SILENT) -> EvaluationOutcome:
    """Evaluate a model file of any task on a split.

    Raises:
        DetectorError: as the task of the file raises.
    """
    return task_of_file(request.weights).evaluate_file(request, observer)


__all__ = ["EvaluationOutcome", "ModelRequest", "Observer", "ResultsRequest", "evaluate_file", "evaluate_results"]
