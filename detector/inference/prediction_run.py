"""One pass of a model over images, videos and live streams: a record of each image or frame, and files of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from detector.inference.counting import Counts, TrackCounts, line_of, zone_of
from detector.inference.pipeline import Pipeline, PipelineConfig, Result, Stage
from detector.inference.prediction_summary import PredictionSummary, SourceSummary
from detector.inference.predictor import Prediction, Predictor
from detector.inference.views import ViewsConfig
from detector.media.frame_sequences import require_fps
from detector.media.sources import ImageSource, Source, VideoSource, require_videos, videos_only
from detector.media.streams import ReconnectConfig, frames_of_each
from detector.media.video_writer import DEFAULT_CODEC, require_codec
from detector.media.writers import (
    CropWriter,
    FileNames,
    PictureWriter,
    TxtWriter,
    Writer,
    record_of,
    require_format,
    result_writers,
    write_text,
)
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig

Report = Callable[[str], None]  # told of what is odd, a sentence each
OnPicture = Callable[[Image], bool]  # shown each annotated picture, RGB; false ends the run

_MOST_IMAGES = 8  # in a batch
# Frames in a batch. On two cores, two by two give 88 frames/s where one by one give 72: half as many steps of Python,
# for which the workers wait in turn (docs/benchmarks/video.md). Live frames do not wait for others.
_CPU_BATCH_SIZE, _LIVE_CPU_BATCH_SIZE, _GPU_BATCH_SIZE = 2, 1, 8


@dataclass(frozen=True)
class PredictionOptions:
    """Options of a prediction run, named as on the command line.

    Attributes:
        save_dir: folder of results, which exists; None to write no files.
        formats: files of records, keys of `writers.FORMATS`; with `coco` no pictures are written.
        crops: whether each detection is written as a picture of its own.
        pictures: whether annotated pictures and videos are written.
        fps: frames per second of images and stdin, which carry no times; the images of each folder become one video.
        stride: the run looks at every `stride`-th frame of a video or stream.
        every_frame: whether live sources wait while the model is busy instead of dropping frames.
        max_reconnect: attempts in a row to reach a lost live source.
        codec: codec of annotated videos, a key of `video_writer.CODECS`.
        track: whether objects are followed from frame to frame; videos only.
        lines: lines over which tracks are counted, x1, y1, x2, y2 each, pixels of the source; a line implies `track`.
        untracked: whether detections that joined no track are kept, with the id -1, when objects are followed.
        camera_motion: whether tracks move with the camera, whose motion is estimated from the frames.
        track_match, track_enlarge, track_buffer_s: `match`, `enlarge` and `buffer_s` of `TrackConfig`, or None.
        zones: polygons in which tracks are counted, x1, y1, x2, y2, x3, y3, ... each; a zone implies `track`.
    """

    save_dir: Path | None = None
    formats: tuple[str, ...] = ("json",)
    crops: bool = False
    pictures: bool = True
    fps: float | None = None
    stride: int = 1
    every_frame: bool = False
    max_reconnect: int = 5
    codec: str = DEFAULT_CODEC
    track: bool = False
    lines: tuple[tuple[float, ...], ...] = ()
    zones: tuple[tuple[float, ...], ...] = ()
    untracked: bool = False
    camera_motion: bool = False
    track_match: float | None = None
    track_enlarge: float | None = None
    track_buffer_s: float | None = None

    def __post_init__(self) -> None:
        if self.stride < 1 or self.max_reconnect < 0:
            raise ValueError(
                f"expected stride of at least 1 and max_reconnect of at least 0, got {self.stride} and "
                f"{self.max_reconnect}"
            )
        if self.fps is not None:
            require_fps(self.fps)
        for name in self.formats:
            require_format(name, "formats")
        require_codec(self.codec)
        for line in self.lines:
            line_of(line)
        for zone in self.zones:
            zone_of(zone)

    @property
    def has_counts(self) -> bool:
        """True if tracks are counted."""
        return bool(self.lines or self.zones)

    @property
    def has_tracks(self) -> bool:
        """True if objects are followed."""
        return self.track or self.has_counts

    @property
    def pictures_dir(self) -> Path | None:
        """Folder of annotated pictures and videos; None if none are written."""
        return self.save_dir if self.pictures and "coco" not in self.formats else None


def batch_size_for(sources: Sequence[Source], views: ViewsConfig, device: torch.device) -> int:
    """Return the number of images in a batch that suits the sources.

    Args:
        sources: the sources of a run.
        views: the views of each image.
        device: the device of the network.
    """
    if all(isinstance(source, ImageSource) for source in sources):
        return min(max(len(sources), 1), _MOST_IMAGES) if views.is_plain else _MOST_IMAGES
    if device.type != "cpu":
        return _GPU_BATCH_SIZE
    is_live = all(isinstance(source, VideoSource) and source.is_live for source in sources)
    return _LIVE_CPU_BATCH_SIZE if is_live else _CPU_BATCH_SIZE


class PredictionRun:
    """One pass of a model over any mix of sources; a context manager and, once, an iterable of records.

    with PredictionRun(predictor, sources, select, options) as run:
        for prediction in run: ...
    print(run.summary.num_read)

    Each image and each frame gives a record when its files have been written. Videos, live streams and folders of
    images go through the overlapping stages of a `Pipeline`; a few images, and images in several views, through the
    predictor's own stream. Leaving the block early without an error finishes the files, too; after an error the videos
    can be played.

    Attributes:
        has_frames: true if a source is a video or stream.
    """

    def __init__(
        self,
        predictor: Predictor,
        sources: Sequence[Source] | Iterator[Source],
        select: SelectConfig,
        options: PredictionOptions = PredictionOptions(),
        *,
        category_ids: Sequence[int] | None = None,
        num_input_faults: int = 0,
        on_picture: OnPicture | None = None,
        report: Report = lambda text: None,
    ) -> None:
        """Prepare the files; nothing is read yet.

        Args:
            predictor: the model.
            sources: images, videos and streams. From an iterator each is taken when the one before it is done: it may
                have no end, so its records are written like those of frames.
            select: which of the model's boxes are kept.
            options: what is written, and how videos are gone through.
            category_ids: category ids that COCO records may have; those of the predictor without it.
            num_input_faults: faults of the annotation file, which count as faults of the run.
            on_picture: shown each annotated picture in the thread that iterates.
            report: told of each warning and each skipped image.

        Raises:
            ConfigError: objects of an image are to be followed.
            MediaError: a folder holds files already, or the disk refuses.
        """
        self._arriving = sources if isinstance(sources, Iterator) else None
        self._sources: Sequence[Source] = () if isinstance(sources, Iterator) else sources
        is_endless = self._arriving is not None
        self.has_frames = is_endless or not all(isinstance(source, ImageSource) for source in self._sources)
        self._predictor, self._options = predictor, options
        self._on_picture, self._report, self._num_input_faults = on_picture, report, num_input_faults
        self._select, self._stages = select, dict[str, Stage]()
        self._lines, self._zones = [line_of(line) for line in options.lines], [zone_of(zone) for zone in options.zones]
        self._counts: dict[int, tuple[VideoSource, TrackCounts]] = {}  # by id: a video may be given twice
        self._num_untracked = Counter[str]()
        if options.has_tracks:
            self._add_tracks()
        known = predictor.category_ids if category_ids is None else category_ids
        self._open_files(known)
        self._pipeline: Pipeline | None = None
        self._opened = ExitStack()
        self._is_stopped = self._is_finished = False
        self._num_read = self._num_warnings = 0
        self._errors: list[str] = []
        self._tallies: dict[str, SourceSummary] = {}

    def _add_tracks(self) -> None:
        """Add the stage that follows objects; let it see uncertain boxes, too."""
        from detector.inference.tracking import TrackConfig, VideoTracks  # loads SciPy's optimisers

        require_videos(self._sources)
        if self._arriving is not None:
            self._arriving = videos_only(self._arriving)
        given = self._options
        config = TrackConfig.of(self._select).changed(
            match=given.track_match, enlarge=given.track_enlarge, buffer_s=given.track_buffer_s
        )
        tracks = VideoTracks(config, given.untracked, given.camera_motion)
        self._num_untracked = tracks.num_left_out
        if self._predictor.runtime.selection is None:
            self._select = config.widened(self._select)
        else:
            self._report("the file selects boxes by itself: objects are followed by their certain boxes only")
        self._stages["tracking"] = lambda result: replace(result, prediction=tracks.follow(result.prediction))

    def _open_files(self, category_ids: Sequence[int]) -> None:
        """Open the writers and add the stages that draw, count and write pictures."""
        options, paths = self._options, [source.path for source in self._sources if source.path]
        if self._arriving is not None and options.save_dir is not None:
            paths = list(options.save_dir.glob("*"))  # any of them may be a source that is still to come
        self._writers: list[Writer] = []
        self._names: FileNames | None = None
        if options.save_dir is not None:
            self._writers = result_writers(
                options.formats,
                options.save_dir,
                self._predictor.class_names,
                category_ids,
                has_frames=self.has_frames,
                has_tracks=options.has_tracks,
                has_crops=options.crops,
            )
            # Names that were given are remembered: of endless frames only where each has files of its own.
            if any(isinstance(writer, (CropWriter, TxtWriter)) for writer in self._writers):
                self._names = FileNames(options.save_dir)  # in new folders, which hold no source
        folder = options.pictures_dir
        self._pictures = None if folder is None else PictureWriter(folder, paths, options.codec, options.stride)
        if self._pictures is not None or self._on_picture is not None:
            self._stages["drawing"] = draw
        if options.has_counts:
            self._stages["counting"] = self._count
        if self._pictures is not None:
            self._stages["writing"] = self._write_picture

    def __enter__(self) -> PredictionRun:
        if self._arriving is None and (self.has_frames or self._fills_batches()):
            options = self._options
            reconnect = ReconnectConfig(options.max_reconnect)
            config = PipelineConfig(options.stride, latest_only=not options.every_frame, reconnect=reconnect)
            self._pipeline = self._opened.enter_context(
                Pipeline(
                    self._predictor,
                    self._select,
                    self._sources,
                    stages=self._stages,
                    config=config,
                    batch_size=self._predictor.batch_size,
                )
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as closing:
            if self._pictures is not None:
                closing.callback(self._pictures.close)
            self._opened.close()
            if kind is None or issubclass(kind, GeneratorExit):
                self._finish()

    def _fills_batches(self) -> bool:
        """Return true for more images than a batch; several views of each fill their batches in the predictor."""
        return self._predictor.views.is_plain and len(self._sources) > self._predictor.batch_size

    def __iter__(self) -> Iterator[Prediction]:
        """Yield a record of each image and frame, in order.

        Raises:
            MediaError: a file cannot be written.
            ConfigError: a line or zone lies outside the picture.
        """
        for result in self._results():
            self._tally(result.prediction)
            named = self._names is not None and result.prediction.detections is not None
            stem = self._names.of(result.prediction.source) if self._names is not None and named else ""
            for writer in self._writers:
                writer.add(result.prediction, stem)
            yield result.prediction
            if self._on_picture is not None and result.picture is not None and not self._on_picture(result.picture):
                self.stop()
        self._finish()

    def records(self) -> Iterator[Prediction]:
        """Enter the block and yield its records."""
        with self:
            yield from self

    @staticmethod
    def to_record(prediction: Prediction) -> dict[str, Any]:
        """Return a record as plain data, as files of results have it."""
        return record_of(prediction)

    @staticmethod
    def to_line(prediction: Prediction) -> str:
        """Return a record as a line of text: the source and its detections by class."""
        name = prediction.source.name.encode("utf-8", "backslashreplace").decode()  # the name may not be UTF-8
        if prediction.detections is None:
            return f"{name}: not read"
        counts = Counter(prediction.detections.names)
        return f"{name}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'nothing'}"

    def stop(self) -> None:
        """Read no further; what is on its way still comes. May be called by a signal's handler."""
        self._is_stopped = True
        if self._pipeline is not None:
            self._pipeline.stop()

    @property
    def summary(self) -> PredictionSummary:
        """Result of the run so far; complete once the iteration or the block has ended."""
        pictures, pipeline = self._pictures, self._pipeline
        counts = tuple((video.name, counts.so_far()) for video, counts in self._counts.values())
        return PredictionSummary(
            num_read=self._num_read,
            num_warnings=self._num_warnings,
            errors=tuple(self._errors),
            sources=self._tallies,
            num_dropped={} if pipeline is None else pipeline.num_dropped,
            busy_shares={} if pipeline is None else pipeline.busy_shares,
            counts=counts,
            paths=(*(writer.path for writer in self._writers), *([] if (p := self._counts_path) is None else [p])),
            videos=() if pictures is None else tuple(pictures.videos),
            warnings=() if pictures is None else tuple(pictures.warnings),
            notes=() if pictures is None else tuple(pictures.notes),
            num_input_faults=self._num_input_faults,
            num_untracked=dict(self._num_untracked),
        )

    def _results(self) -> Iterator[Result]:
        if self._pipeline is not None:
            yield from self._pipeline
            return
        given, reconnect = self._arriving or self._sources, ReconnectConfig(self._options.max_reconnect)
        images = frames_of_each(given, self._predictor.input.channels, self._options.stride, reconnect)
        for prediction in self._predictor.stream(images, self._select, reads_ahead=self._arriving is None):
            result = Result(prediction)
            for stage in self._stages.values():
                result = stage(result)
            yield result
            if self._is_stopped:
                return

    def _tally(self, prediction: Prediction) -> None:
        """Count a record and report what is odd about it."""
        for warning in prediction.warnings:
            self._report(f"warning: {warning}")
        if prediction.error is not None:
            self._report(f"skipped: {prediction.error}")
        self._num_warnings += len(prediction.warnings)
        if prediction.detections is None:
            self._errors.append(prediction.error or "no image")
        else:
            self._num_read += 1
        if self.has_frames:
            self._tallies.setdefault(prediction.source.name, SourceSummary()).add(prediction)

    def _count(self, result: Result) -> Result:
        """Count the tracks of a frame, and draw the counts if the frame is drawn."""
        prediction, frame = result.prediction, result.prediction.source.frame
        if frame is None or prediction.detections is None or prediction.track_ids is None:
            return result
        new = frame.video, TrackCounts(self._lines, self._zones)
        counts = self._counts.setdefault(id(frame.video), new)[1]
        counts.add(prediction.detections, prediction.track_ids, frame.moment_s)
        counted = counts.so_far()
        picture = None if result.picture is None else _draw_counts(result.picture, counted)
        return Result(replace(prediction, counts=counted), picture)

    def _write_picture(self, result: Result) -> Result:
        if self._pictures is not None and result.picture is not None:
            self._pictures.write(result.prediction.source, result.picture)
        return result

    @property
    def _counts_path(self) -> Path | None:
        folder = self._options.save_dir
        return folder / "counts.json" if folder is not None and self._options.has_counts else None

    def _finish(self) -> None:
        """Close all files, once."""
        if self._is_finished:
            return
        self._is_finished = True
        if self._pictures is not None:
            self._pictures.close()
        for writer in self._writers:
            writer.close()
        if (path := self._counts_path) is not None:
            plain = [{"source": video.name, **counts.to_plain()} for video, counts in self._counts.values()]
            write_text(path, json.dumps(plain, indent=1))


def draw(result: Result) -> Result:
    """Draw the detections or tracks of a result on its image; a stage of the pipeline."""
    from detector.media.drawing import draw_detections  # loads fonts

    prediction = result.prediction
    if prediction.image is None or prediction.detections is None:
        return result
    return replace(result, picture=draw_detections(prediction.image, prediction.detections, prediction.track_ids))


def _draw_counts(picture: Image, counts: Counts) -> Image:
    from detector.media.regions import draw_regions  # loads fonts

    lines = [(c.start, c.end, str(c.to_left.total()), str(c.to_right.total())) for c in counts.lines]
    zones = [(c.corners, f"{c.present.total()} of {c.distinct.total()}") for c in counts.zones]
    return draw_regions(picture, lines, zones)
