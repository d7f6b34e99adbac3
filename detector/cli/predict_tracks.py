"""`detector predict --track`: objects followed from frame to frame, counted over lines and in zones."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.inference.counting import Point, TrackCounts
    from detector.inference.pipeline import Result, Stage
    from detector.inference.predictor import Predictor
    from detector.media.sources import VideoSource
    from detector.structures.selection import SelectConfig


_MOST_PX = 1_000_000  # no picture is as large; far beyond, OpenCV draws for minutes or not at all


def add_track_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for objects that are followed."""
    group = parser.add_argument_group("objects followed through videos (ByteTrack)")
    group.add_argument(
        "--track", action="store_true", help='number objects ("car 7") in pictures and records, write STEM.mot.csv'
    )
    group.add_argument(
        "--line",
        type=_line,
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2",
        help="count objects over a line, in pixels, each way; means --track; may be repeated",
    )
    group.add_argument(
        "--zone",
        type=_zone,
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2,X3,Y3,...",
        help="count objects in a polygon, in pixels; means --track; may be repeated",
    )


def _points(text: str) -> list[Point]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"numbers with commas between them are wanted, found {text!r}") from error
    if len(values) % 2 or not all(abs(value) <= _MOST_PX for value in values):  # false for NaN too
        raise argparse.ArgumentTypeError(
            f"two numbers within -{_MOST_PX}..{_MOST_PX} for each point are wanted, found {text!r}"
        )
    return list(zip(values[::2], values[1::2], strict=True))


def _line(text: str) -> tuple[Point, Point]:
    points = _points(text)
    if len(points) != 2 or points[0] == points[1]:
        raise argparse.ArgumentTypeError(f"two different points X1,Y1,X2,Y2 are wanted, found {text!r}")
    return points[0], points[1]


def _zone(text: str) -> list[Point]:
    points = _points(text)
    if len(set(points)) < 3:
        raise argparse.ArgumentTypeError(f"at least three different corners X,Y are wanted, found {text!r}")
    return points


def tracking(arguments: argparse.Namespace, predictor: Predictor, select: SelectConfig) -> tuple[SelectConfig, Stage]:
    """The selection that a tracker wants, with uncertain boxes, and the stage that leaves what is in tracks."""
    from detector.cli.progress import say
    from detector.inference.tracking import TrackConfig, VideoTracks

    config = TrackConfig.of(select)
    tracks = VideoTracks(config)
    if predictor.runtime.selection is None:
        select = config.widened(select)
    else:
        say("the file selects boxes by itself: objects are followed by their certain boxes only", arguments.quiet)

    def follow(result: Result) -> Result:
        return replace(result, prediction=tracks.follow(result.prediction))

    return select, follow


class Counts:
    """The counts of each video, and their file `counts.json`."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.path = folder / "counts.json"
        self._lines, self._zones = arguments.line, arguments.zone
        self._of_video: dict[int, tuple[VideoSource, TrackCounts]] = {}  # a video may be given twice

    def count(self, result: Result) -> Result:
        """Counts the tracks of a frame, and draws how things stand where it is drawn; a stage of the pipeline."""
        from detector.inference.counting import TrackCounts
        from detector.media.regions import draw_regions

        prediction, frame = result.prediction, result.prediction.source.frame
        if frame is None or prediction.detections is None or prediction.track_ids is None:
            return result
        new = frame.video, TrackCounts(self._lines, self._zones)
        counts = self._of_video.setdefault(id(frame.video), new)[1]
        counts.add(prediction.detections, prediction.track_ids)
        if result.picture is None:
            return result
        lines = [(c.start, c.end, str(c.to_left.total()), str(c.to_right.total())) for c in counts.lines]
        zones = [(c.corners, f"{c.present.total()} of {c.distinct.total()}") for c in counts.zones]
        return replace(result, picture=draw_regions(result.picture, lines, zones))

    def write(self) -> list[str]:
        """Writes the file and returns its text for people, a line for each count.

        Raises:
            MediaError: the disk refuses.
        """
        from detector.media.writers import write_text

        found = list(self._of_video.values())
        plain = [{"source": video.name, **counts.to_plain()} for video, counts in found]
        write_text(self.path, json.dumps(plain, indent=1))
        said = []
        for video, counts in found:
            for number, line in enumerate(counts.lines, start=1):
                said.append(
                    f"{video.name}: line {number}: {_listed(line.to_right)} to its right, "
                    f"{_listed(line.to_left)} to its left"
                )
            for number, zone in enumerate(counts.zones, start=1):
                said.append(
                    f"{video.name}: zone {number}: {_listed(zone.distinct)} in all, {_listed(zone.present)} at the end"
                )
        return said


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
