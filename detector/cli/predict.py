"""`detector predict`."""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.cli.model_file import runtime_overrides
from detector.cli.options import refuse_given, refuse_unsupported
from detector.cli.predict_parts import run_in_parts
from detector.cli.predict_parts_options import has_parts
from detector.cli.predict_video import VideoProgress, refuse_video_options, run_video
from detector.cli.progress import say, say_warning
from detector.cli.show import Window
from detector.cli.usage import split_words
from detector.cli.views import require_effect, view_overrides
from detector.config.name_suggestions import did_you_mean, near_names
from detector.errors import ConfigError, MediaError
from detector.inference.prediction_run import PredictionOptions
from detector.io.nouns import plural
from detector.media.sources import can_be_source
from detector.media.writers import require_format
from detector.models.published_weights import DEFAULT_MODEL, model_names, resolve_weights
from detector.tasks.detection_model import is_model, is_model_name
from detector.tasks.requests import Observer, PredictionRequest, TaskRun
from detector.tasks.task import task_of_file
from detector.workflows.predict import predict_file


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    words, overrides = split_words(arguments)
    words = _with_model(arguments, words)
    formats = _formats(arguments.format)
    _require_tracks(arguments)
    weights = resolve_weights(Path(words[0]))
    if words[0] == DEFAULT_MODEL:
        say(f"model: {DEFAULT_MODEL}, 80 classes of COCO ({weights})", arguments.quiet)
    task = task_of_file(weights)
    refuse_unsupported(arguments, task.predict_options, task.product)
    progress, window = VideoProgress(arguments.quiet), Window() if arguments.show else None
    request = PredictionRequest(
        weights=weights,
        sources=words[1] if len(words) == 2 else words[1:],
        options=_options(arguments, formats),
        selection=_selection(arguments),
        overrides=(*overrides, *runtime_overrides(arguments), *view_overrides(arguments)),
        cfg=arguments.cfg,
        names=arguments.names,
        annotations=arguments.annotations,
        allow_url=arguments.allow_url,
        check_views=functools.partial(require_effect, arguments),
        check_frames=lambda has_frames: None if has_frames else refuse_video_options(arguments),
    )
    if has_parts(arguments):
        return run_in_parts(arguments, request, Observer(progress.say, say_warning))
    if arguments.backend == "auto":
        from detector.workflows.backend_choice import with_fastest_backend  # loads the exports

        request = with_fastest_backend(request, functools.partial(say, quiet=arguments.quiet))
    records = predict_file(request, Observer(progress.say, say_warning), None if window is None else window.show)
    if records.has_frames:
        return run_video(arguments, records, progress, window)
    _print_images(arguments, records, formats, words[1:])
    return 5 if arguments.strict and records.summary.num_faults else 0


def _with_model(arguments: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Return the model and its sources; the model that is used where none is named comes before sources only.

    Raises:
        ConfigError: a source is missing, or the words name a model at another place or one that does not exist.
    """
    if arguments.weights is not None:
        return [str(arguments.weights), *words]
    if is_model(words[0]):
        if len(words) == 1:
            raise ConfigError(f"expected a source after the model {words[0]}, got none; add an image, video or folder")
        return list(words)
    if len(words) > 1 and not can_be_source(words[0]):  # a mistyped model must not give the detections of another one
        close = near_names(words[0], model_names())
        meant = did_you_mean(close) if close else "; check the first word"
        raise ConfigError(f"{words[0]}: no such model file, run folder, published weights, image or folder{meant}")
    if models := [word for word in words[1:] if is_model_name(word)]:
        raise ConfigError(f"{models[0]}: expected the model before the sources, got it after {words[0]}; put it first")
    return [DEFAULT_MODEL, *words]


def _print_images(
    arguments: argparse.Namespace, records: TaskRun, formats: Sequence[str], words: Sequence[str]
) -> None:
    """Print what is detected in each image, and the numbers of them all."""
    started_s = time.perf_counter()
    with records:
        for prediction in records:
            if formats != ["coco"]:
                as_json = arguments.json
                print(json.dumps(records.to_record(prediction)) if as_json else records.to_line(prediction))
    summary = records.summary
    if arguments.json and formats == ["coco"]:
        print(summary.paths[0].read_text("utf-8"))
    num_unread, paths = len(summary.errors), ", ".join(map(str, summary.paths))
    if not summary.num_read:
        raise MediaError(f"none of {plural(num_unread, 'image')} could be read; check {', '.join(words)}")
    each_ms = 1000 * (time.perf_counter() - started_s) / summary.num_read
    read = plural(summary.num_read, "image")
    say(f"{read}, {num_unread} skipped, {each_ms:.1f} ms per image: {paths}", arguments.quiet)
    if summary.limit_text:
        say(summary.limit_text, arguments.quiet)


def _formats(given: Sequence[str] | None) -> list[str]:
    """Return the formats asked for, each once; `json` without any."""
    asked = [word.strip() for text in given or ("json",) for word in text.split(",")]
    for word in asked:
        require_format(word, "--format")
    return list(dict.fromkeys(asked))


def _require_tracks(arguments: argparse.Namespace) -> None:
    """Reject options that have no effect where no objects are followed.

    Raises:
        ConfigError: such an option was given.
    """
    if not (arguments.track or arguments.line or arguments.zone):
        names = ("untracked", "camera_motion", "track_match", "track_enlarge", "track_buffer")
        refuse_given(arguments, names, "for objects that are followed, and neither --track, --line nor --zone is given")


def _options(arguments: argparse.Namespace, formats: Sequence[str]) -> PredictionOptions:
    return PredictionOptions(
        save_dir=arguments.out,
        formats=tuple(formats),
        crops=arguments.crops,
        pictures=not arguments.no_pictures,
        fps=arguments.fps,
        stride=arguments.stride,
        every_frame=arguments.every_frame,
        max_reconnect=arguments.max_reconnect,
        codec=arguments.codec,
        track=arguments.track,
        lines=tuple(arguments.line),
        zones=tuple(arguments.zone),
        untracked=arguments.untracked,
        camera_motion=arguments.camera_motion,
        track_match=arguments.track_match,
        track_enlarge=arguments.track_enlarge,
        track_buffer_s=arguments.track_buffer,
    )


def _selection(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that select boxes, as far as they were given."""
    names = ("confidence", "iou", "max_detections")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.class_agnostic:
        given["class_agnostic"] = True
    if arguments.classes is not None:
        given["classes"] = tuple(word.strip() for word in arguments.classes.split(","))
    return given
