"""`detector predict` on videos, cameras and streams, alone or among images."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli.options import refuse_given
from detector.cli.predict_tracks import Counts, add_track_options, tracking
from detector.errors import MediaError, StreamError

if TYPE_CHECKING:
    from detector.inference.pipeline import Pipeline, Result, Stage
    from detector.inference.predictor import Prediction
    from detector.media.file_names import FileNames
    from detector.media.sources import Source, VideoSource
    from detector.media.video_writer import VideoWriter
    from detector.media.writers import Writer
    from detector.structures.selection import SelectConfig
    from detector.tasks.detection_model import LoadedModel

_LINE_EVERY_S = 15.0  # in a pipe, a line now and then instead of a bar
# Frames in a batch. On two cores, two by two give 88 frames/s where one by one give 72: half as many steps of Python,
# for which the workers wait in turn (docs/benchmarks/video.md). Live frames do not wait for others.
_CPU_BATCH_SIZE, _LIVE_CPU_BATCH_SIZE, _GPU_BATCH_SIZE = 2, 1, 8


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for sources with frames."""
    group = parser.add_argument_group("videos, cameras (camera:0), streams (rtsp://, http://) and images on stdin (-)")
    group.add_argument("--allow-url", action="store_true", help="open sources that are addresses")
    group.add_argument("--stride", type=_positive, default=1, metavar="N", help="look at every Nth frame")
    group.add_argument("--every-frame", action="store_true", help="let live sources wait instead of dropping frames")
    group.add_argument(
        "--max-reconnect", type=_natural, default=5, metavar="N", help="attempts in a row to reach a lost live source"
    )
    group.add_argument(
        "--codec", default="mp4v", metavar="NAME", help="of annotated videos: mp4v (default), avc1, MJPG or VP90"
    )
    group.add_argument("--show", action="store_true", help="show what is found in a window")
    add_track_options(parser)


def refuse_video_options(arguments: argparse.Namespace) -> None:
    """Refuses what says nothing where all sources are images.

    Raises:
        ConfigError: such an option was given.
    """
    names = ("stride", "every_frame", "max_reconnect", "codec", "show")
    refuse_given(arguments, names, "for videos and streams, found images only")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is wanted, found {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number is wanted, found {text!r}")
    return int(text)


def run_video(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    sources: Sequence[Source],
    select: SelectConfig,
    folder: Path,
    writers: Sequence[Writer],
    names: FileNames,
) -> int:
    """Predicts on sources of which some have frames; returns the exit code.

    Args:
        arguments: of the command.
        loaded: the model.
        sources: what to look at.
        select: which boxes are kept.
        folder: where pictures go: an annotated video for each video and an annotated picture for each image.
        writers: what else writes results, frame by frame.
        names: of the files that belong to one frame or image.
    """
    from detector.cli.progress import say
    from detector.inference.pipeline import Pipeline, PipelineConfig
    from detector.media.sources import VideoSource
    from detector.media.streams import ReconnectConfig
    from detector.media.writers import CropWriter, TxtWriter, record_of
    from detector.models.precision import choose_device
    from detector.tasks.detection_model import build_predictor

    is_live = all(isinstance(source, VideoSource) and source.is_live for source in sources)
    on_cpu = _LIVE_CPU_BATCH_SIZE if is_live else _CPU_BATCH_SIZE
    batch_size = on_cpu if choose_device(loaded.config.device).type == "cpu" else _GPU_BATCH_SIZE
    predictor = build_predictor(loaded, batch_size)
    outputs = Outputs(folder, arguments.codec, arguments.stride, [s.path for s in sources if s.path])
    config = PipelineConfig(
        arguments.stride, latest_only=not arguments.every_frame, reconnect=ReconnectConfig(arguments.max_reconnect)
    )
    stages: list[Stage] = []
    if arguments.track:
        select, follow = tracking(arguments, predictor, select)
        stages.append(follow)
    counts = Counts(arguments, folder) if arguments.line or arguments.zone else None
    stages += [] if arguments.no_pictures and not arguments.show else [draw]
    stages += [] if counts is None else [counts.count]
    stages += [] if arguments.no_pictures else [outputs.write]
    tallies: dict[str, Tally] = {}
    # Names that were given are remembered: of endless frames only where each has files of its own.
    has_files = any(isinstance(writer, (CropWriter, TxtWriter)) for writer in writers)
    with ExitStack() as opened:
        show = _window(opened) if arguments.show else lambda picture: True
        opened.callback(outputs.close)
        progress = opened.enter_context(Progress(arguments.quiet))
        pipeline = Pipeline(predictor, select, sources, stages=stages, config=config, batch_size=batch_size)
        results = opened.enter_context(pipeline)
        stopped = opened.enter_context(_stopping_gently(results))
        for result in results:
            stem = names.of(result.prediction.source) if has_files and result.prediction.detections is not None else ""
            for writer in writers:
                writer.add(result.prediction, stem)
            if arguments.json:
                print(json.dumps(record_of(result.prediction)))
            tallies.setdefault(result.prediction.source.name, Tally()).add(result.prediction)
            for warning in result.prediction.warnings:
                progress.say(f"warning: {warning}")
            if result.prediction.error is not None:
                progress.say(f"skipped: {result.prediction.error}")
            progress.update(result.prediction)
            if result.picture is not None and not show(result.picture):
                results.stop()
        outputs.close()
    for writer in writers:
        writer.close()
    for warning in outputs.warnings:
        say(f"warning: {warning}", arguments.quiet)
    for name, num_dropped in results.num_dropped.items():
        if num_dropped:
            say(f"{name}: {num_dropped} frames were dropped because newer ones had come", arguments.quiet)
    paths = [str(writer.path) for writer in writers]
    if counts is not None:
        for line in counts.write():
            say(line, arguments.quiet)
        paths.append(str(counts.path))
    return _ended(arguments, tallies, ", ".join(paths), len(outputs.warnings), stopped)


def _ended(
    arguments: argparse.Namespace, tallies: dict[str, Tally], paths: str, num_warnings: int, stopped: list[int]
) -> int:
    """Says what was found and returns the exit code, or raises what says more."""
    from detector.cli.main import Stopped
    from detector.cli.progress import say

    for name, tally in tallies.items():
        if not arguments.json:
            print(f"{name.encode('utf-8', 'backslashreplace').decode()}: {tally}")
    num_read, errors = sum(t.num_read for t in tallies.values()), [e for t in tallies.values() for e in t.errors]
    say(f"{num_read} images and frames, {len(errors)} skipped: {paths}", arguments.quiet)
    if stopped:
        raise Stopped(stopped[0])
    lost = [t.errors[0] for t in tallies.values() if t.is_live and t.errors]
    if lost:
        raise StreamError(lost[0])
    if errors and not num_read:
        more = f" (and {len(errors) - 1} more sources that cannot be read)" if len(errors) > 1 else ""
        raise MediaError(errors[0] + more)
    num_faults = len(errors) + num_warnings + sum(t.num_warnings for t in tallies.values())
    return 5 if arguments.strict and num_faults else 0


def _window(opened: ExitStack) -> Callable[[Any], bool]:
    from detector.cli.show import Window

    return opened.enter_context(Window()).show


@contextmanager
def _stopping_gently(results: Pipeline) -> Iterator[list[int]]:
    """At the first signal no more frames are read, and those on their way are still written; a second one ends all."""
    from detector.cli.main import Stopped

    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise Stopped(number)
        results.stop()

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def draw(result: Result) -> Result:
    """Draws what was found on a result's image; a stage of the pipeline."""
    from detector.media.drawing import draw_detections

    prediction = result.prediction
    if prediction.image is None or prediction.detections is None:
        return result
    return replace(result, picture=draw_detections(prediction.image, prediction.detections, prediction.track_ids))


@dataclass
class Tally:
    """What came of one source."""

    num_read: int = 0
    num_warnings: int = 0
    is_video: bool = False
    is_live: bool = False
    errors: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_tracks: int | None = None

    def add(self, prediction: Prediction) -> None:
        """Counts one more record."""
        frame = prediction.source.frame
        if frame is not None:
            self.is_video, self.is_live = True, frame.video.is_live
        self.num_warnings += len(prediction.warnings)
        if prediction.detections is None:
            self.errors.append(prediction.error or "no image")
        else:
            self.num_read += 1
            names = prediction.detections.names
            if prediction.track_ids is not None:  # a new track has a higher number than all before
                before = self.num_tracks = self.num_tracks or 0
                ids = prediction.track_ids.tolist()
                names = [name for name, track_id in zip(names, ids, strict=True) if track_id > before]
                self.num_tracks = max(before, *ids, 0)
            self.counts.update(names)

    def __str__(self) -> str:
        if not self.num_read:
            return "not read"
        listed = ", ".join(f"{count} {name}" for name, count in self.counts.most_common()) or "nothing"
        followed = "" if self.num_tracks is None else ", each followed,"
        return f"{listed}{followed} in {self.num_read} frames" if self.is_video else listed


class Outputs:
    """The annotated videos and pictures of a folder; a source in it is never written over.

    Attributes:
        warnings: what was done otherwise than asked, a sentence each.
    """

    def __init__(self, folder: Path, codec: str, stride: int, sources: Sequence[Path]) -> None:
        from detector.media.file_names import FileNames
        from detector.media.video_writer import require_codec

        require_codec(codec)
        self._folder, self._codec, self._stride = folder, codec, stride
        self._names = FileNames(folder, sources)
        self._writers: dict[int, tuple[VideoSource, VideoWriter]] = {}  # a video may be given twice
        self.warnings: list[str] = []

    def write(self, result: Result) -> Result:
        """Adds a result's picture to the video of its source, or writes it as a file of its own."""
        from detector.media.file_names import stem_of
        from detector.media.images import write_image
        from detector.media.video_writer import VideoWriter

        source, picture = result.prediction.source, result.picture
        if picture is None:
            return result
        if source.frame is None:
            write_image(self._folder / f"{self._names.of(source)}.jpg", picture)
            return result
        video = source.frame.video
        if id(video) not in self._writers:
            if not video.is_live:  # files come one after another: the last one is done
                self._close(lambda other: not other.is_live)
            path = self._folder / f"{self._names.free(stem_of(video.name))}.mp4"
            fps, image_hw = source.frame.fps / self._stride, (picture.shape[0], picture.shape[1])
            self._writers[id(video)] = video, VideoWriter(path, fps, image_hw, self._codec)
        self._writers[id(video)][1].write(picture)
        return result

    def _close(self, is_done: Callable[[VideoSource], bool] = lambda video: True) -> None:
        for key in [key for key, (video, _) in self._writers.items() if is_done(video)]:
            _, writer = self._writers.pop(key)
            self.warnings += writer.warnings
            writer.close()

    def close(self) -> None:
        """Ends every file, so that it can be played; where one fails, the others first.

        Raises:
            MediaError: a file does not hold what was written.
        """
        try:
            self._close()
        finally:
            if self._writers:
                self.close()


class Progress:
    """Frames done and frames per second: a bar on a terminal, else a line now and then."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._name = quiet, ""
        self._num_done, self._last_num, self._last_s = 0, 0, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        if not self._quiet and sys.stderr.isatty():
            self._bar = tqdm(unit="frame", dynamic_ncols=True, file=sys.stderr)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """A line that does not disturb the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def update(self, prediction: Prediction) -> None:
        """One more record."""
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
