"""`detector evaluate` and `detector predict` with a classifier."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.cli.options import refuse_unsupported
from detector.cli.progress import say
from detector.errors import MediaError
from detector.media.sources import as_sources, require_images
from detector.media.writers import write_text
from detector.models.checkpoint import peek_config
from detector.tasks.classification_model import (
    ClassPrediction,
    classify,
    load_classifier,
)
from detector.training.run_folder import results_folder

_NUM_SHOWN = 5  # classes shown per image


def is_classifier_file(path: Path) -> bool:
    """Return True for the model file of a classifier; a file that cannot be read is reported when it is opened."""
    return peek_config(path).get("task") == "classify"


def predict(arguments: argparse.Namespace, weights: Path, words: Sequence[str], overrides: Sequence[str]) -> int:
    """Classify images and return the exit code."""
    refuse_unsupported(arguments, frozenset({"save_dir"}), "classifier")
    loaded = load_classifier(weights, overrides)
    images = require_images(as_sources(words[0] if len(words) == 1 else list(words))[0], "a classifier")
    folder = results_folder(arguments.save_dir, "predict", loaded.config.train.project)
    records, num_unread, num_warnings = list[dict[str, Any]](), 0, 0
    for prediction in classify(loaded, images):
        num_warnings += len(prediction.warnings)
        for warning in prediction.warnings:
            say(f"warning: {warning}", arguments.quiet)
        if prediction.error is not None:
            num_unread += 1
            say(f"skipped: {prediction.error}", arguments.quiet)
        records.append(_record(prediction))
        print(json.dumps(records[-1]) if arguments.json else _line(prediction))
    path = folder / "predictions.json"
    write_text(path, json.dumps(records, indent=1))
    say(f"{len(images) - num_unread} images, {num_unread} skipped: {path}", arguments.quiet)
    if num_unread == len(images):
        raise MediaError(f"none of {num_unread} images could be read; check {', '.join(words)}")
    return 5 if arguments.strict and num_unread + num_warnings else 0


def _record(prediction: ClassPrediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"source": prediction.source, "error": prediction.error, "classes": []}
    classes = [{"class": name, "probability": round(share, 6)} for name, share in prediction.top(_NUM_SHOWN)]
    warnings = {"warnings": list(prediction.warnings)} if prediction.warnings else {}
    return {"source": prediction.source, **warnings, "classes": classes}


def _line(prediction: ClassPrediction) -> str:
    name = prediction.source.encode("utf-8", "backslashreplace").decode()  # a file's name may be no UTF-8
    if prediction.error is not None:
        return f"{name}: not read"
    return f"{name}: " + ", ".join(f"{label} {share:.3f}" for label, share in prediction.top(_NUM_SHOWN))
