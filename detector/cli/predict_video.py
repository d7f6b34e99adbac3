"""`detector predict` on videos, cameras and streams, alone or among images."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from detector.cli.main import Stopped
from detector.cli.options import refuse_given
from detector.cli.predict_tracks import counts_text
from detector.cli.progress import say
from detector.cli.show import Window
from detector.errors import StreamError
from detector.inference.prediction_summary import PredictionSummary, SourceSummary
from detector.inference.predictor import Prediction
from detector.io.guarded_stream import has_failed
from detector.io.nouns import plural
from detector.tasks.requests import TaskRun

_LINE_EVERY_S = 15.0  # in a pipe, a line at intervals instead of a bar


def refuse_video_options(arguments: argparse.Namespace) -> None:
    """Reject options that have no effect where all sources are images.

    Raises:
        ConfigError: such an option was given.
    """
    names = ("fps", "stride", "every_frame", "max_reconnect", "codec", "show")
    refuse_given(arguments, names, "for videos and streams, got images only")


def run_video(arguments: argparse.Namespace, records: TaskRun, progress: VideoProgress, window: Window | None) -> int:
    """Run a prediction of which some sources have frames; return the exit code.

    Args:
        arguments: of the command.
        records: the run.
        progress: shown while it lasts.
        window: opened while it lasts, or None.
    """
    with ExitStack() as opened:
        if window is not None:
            opened.enter_context(window)
        opened.enter_context(progress)
        opened.enter_context(records)
        stopped = opened.enter_context(_stopping_gently(records))
        for prediction in records:
            if arguments.json:
                print(json.dumps(records.to_record(prediction)))
            progress.update(prediction)
            frame = prediction.source.frame
            if frame is not None and frame.video.is_live and has_failed(sys.stdout):
                records.stop()  # nobody reads what has no end otherwise
    return _ended(arguments, records.summary, stopped)


def _ended(arguments: argparse.Namespace, summary: PredictionSummary, stopped: list[int]) -> int:
    """Say what was detected; return the exit code, or raise the error that tells more.

    Raises:
        Stopped: a signal ended the run.
        StreamError: a live source was lost.
        MediaError: nothing could be read.
    """
    for warning in summary.warnings:
        say(f"warning: {warning}", arguments.quiet)
    for note in summary.notes:
        say(note, arguments.quiet)
    for name, num_dropped in summary.num_dropped.items():
        if num_dropped:
            say(
                f"{name}: {plural(num_dropped, 'frame was', 'frames were')} dropped because newer ones had come",
                arguments.quiet,
            )
    for name, num_untracked in summary.num_untracked.items():
        if num_untracked:
            number = plural(num_untracked, "detection that joined no track", "detections that joined no track")
            say(f"{name}: {number}, left out; --untracked keeps them", arguments.quiet)
    for name, counts in summary.counts:
        for line in counts_text(name, counts):
            say(line, arguments.quiet)
    for name, source in summary.sources.items():
        if not arguments.json:
            print(f"{name.encode('utf-8', 'backslashreplace').decode()}: {_source_text(source)}")
    paths = ", ".join(map(str, summary.paths))
    read = plural(summary.num_read, "image or frame", "images and frames")
    say(f"{read}, {len(summary.errors)} skipped: {paths}", arguments.quiet)
    if summary.limit_text:
        say(summary.limit_text, arguments.quiet)
    if stopped:
        raise Stopped(stopped[0])
    lost = [source.errors[0] for source in summary.sources.values() if source.is_live and source.errors]
    if lost:
        raise StreamError(lost[0])
    summary.require_read()
    return 5 if arguments.strict and summary.num_faults else 0


def _source_text(source: SourceSummary) -> str:
    if not source.num_read:
        return "not read"
    listed = ", ".join(f"{count} {name}" for name, count in source.counts.most_common()) or "nothing"
    followed = ", each followed," if source.counts and source.num_tracks is not None else ""
    return f"{listed}{followed} in {plural(source.num_read, 'frame')}" if source.is_video else listed


@contextmanager
def _stopping_gently(records: TaskRun) -> Iterator[list[int]]:
    """Stop reading at the first signal and write the frames that were read; a second signal ends the process."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise Stopped(number)
        records.stop()

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class VideoProgress:
    """Frames done and frames per second: a bar on a terminal, else a line at intervals."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._name = quiet, ""
        self._num_done, self._last_num, self._last_s = 0, 0, time.monotonic()
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> VideoProgress:
        self._last_s = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            self._bar = tqdm(unit="frame", dynamic_ncols=True, file=sys.stderr)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        """Print a line that does not disturb the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            say(text, self._quiet)

    def update(self, prediction: Prediction) -> None:
        """Show one more record."""
        frame, self._num_done = prediction.source.frame, self._num_done + 1
        total = None if frame is None else frame.num_frames
        if self._bar is not None:
            if prediction.source.name != self._name:
                self._name = prediction.source.name
                self._bar.reset(total)
                self._bar.set_description_str(Path(self._name).name)
            self._bar.update(1 if total is None or frame is None else frame.index + 1 - self._bar.n)
        elif time.monotonic() - self._last_s >= _LINE_EVERY_S:
            now_s = time.monotonic()
            rate = (self._num_done - self._last_num) / (now_s - self._last_s)
            self._last_num, self._last_s = self._num_done, now_s
            place = "" if frame is None else f", frame {frame.index + 1}" + (f"/{total}" if total else "")
            self.say(f"{prediction.source.name}{place}: {rate:.1f} frames/s")
