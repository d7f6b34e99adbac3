"""`detector predict --track`: objects followed from frame to frame."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.engine.pipeline import Result, Stage
    from detector.engine.predictor import Predictor
    from detector.postprocess import SelectConfig


def add_track_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for objects that are followed."""
    group = parser.add_argument_group("objects followed through videos (ByteTrack)")
    group.add_argument(
        "--track", action="store_true", help='number objects ("car 7") in pictures and records, write STEM.mot.csv'
    )


def tracking(arguments: argparse.Namespace, predictor: Predictor, select: SelectConfig) -> tuple[SelectConfig, Stage]:
    """The selection that a tracker wants, with uncertain boxes, and the stage that leaves what is in tracks."""
    from detector.cli.progress import say
    from detector.engine.tracking import TrackConfig, VideoTracks

    config = TrackConfig.of(select)
    tracks = VideoTracks(config)
    if predictor.runtime.selection is None:
        select = config.widened(select)
    else:
        say("the file selects boxes by itself: objects are followed by their certain boxes only", arguments.quiet)

    def follow(result: Result) -> Result:
        return replace(result, prediction=tracks.follow(result.prediction))

    return select, follow
