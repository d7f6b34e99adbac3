"""`detector predict --shard` and `--engine`: predictions in parts."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tqdm import tqdm

from detector.cli.options import refuse_given
from detector.cli.progress import say
from detector.errors import MediaError
from detector.io.nouns import plural
from detector.tasks.requests import Observer, PredictionRequest
from detector.workflows.prediction_parts import open_parts, run_parts
from detector.workflows.ray_engine import RayPool

# Options of one process that writes pictures, or goes through videos.
_OF_ONE_PROCESS = (
    *("backend", "crops", "no_pictures", "show", "fps", "stride", "every_frame", "max_reconnect", "codec"),
    *("track", "line", "zone", "untracked", "camera_motion", "track_match", "track_enlarge", "track_buffer"),
)


def run_in_parts(arguments: argparse.Namespace, request: PredictionRequest, observer: Observer) -> int:
    """Write the parts that are missing and print their numbers; return the exit code.

    Raises:
        MediaError: no image could be read.
    """
    refuse_given(
        arguments, _OF_ONE_PROCESS, "not with --shard or --engine, whose parts hold boxes only, the same everywhere"
    )
    job = open_parts(request, observer, arguments.images_per_part)
    pool = None
    if arguments.engine is not None:
        pool = RayPool(request, arguments.images_per_part, arguments.workers, arguments.ray_address).written
    with tqdm(unit="part", disable=arguments.quiet or not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = run_parts(job, arguments.shard or (0, 1), pool, progress)
    counts = summary.counts
    if arguments.json:
        print(json.dumps(asdict(summary)))
    if counts.num_images and counts.num_unread == counts.num_images:
        raise MediaError(f"none of {plural(counts.num_images, 'image')} could be read; check {arguments.words[-1]}")
    say(
        f"{plural(counts.num_images, 'image')}, {counts.num_unread} skipped: {plural(summary.num_written, 'part')} "
        f"written, {summary.num_kept} kept, of {summary.num_parts} in {arguments.out}",
        arguments.quiet,
    )
    return 5 if arguments.strict and counts.num_unread + counts.num_warnings else 0
