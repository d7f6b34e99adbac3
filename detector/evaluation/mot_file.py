"""Tracks in files of the MOTChallenge format: `frame,id,left,top,width,height,confidence,...` (motchallenge.net)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.data.problems import shown
from detector.errors import DatasetError
from detector.evaluation.track_scores import TrackFrame
from detector.io.text_file import read_text

Rows = npt.NDArray[np.float64]  # (N, 6): frame, id, x1, y1, x2, y2

_NUM_COLUMNS, _NUM_LISTED = 6, 10
_MAX_FRAMES = 1_000_000  # nine hours at 30 frames per second
_MAX_PAIRS = 2**25  # of an object and a track, 40 bytes each when they are scored
_LARGEST = 2.0**53  # the whole numbers up to it are exact


def read_mot_file(path: Path, is_truth: bool = False) -> Rows:
    """Return the boxes of a file, float64 (N, 6): frame, id, x1, y1, x2, y2.

    Args:
        path: a text file with a box in each line.
        is_truth: true for a ground truth, whose lines with a 0 in the seventh column do not count.

    Raises:
        DatasetError: the file cannot be read, or lines are malformed; all of them are named.
    """
    lines = read_text(path, "a text file of tracks").splitlines()
    rows: list[list[float]] = []
    problems: list[str] = []
    first: dict[tuple[float, float], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        values = _numbers(line)
        if values is None:
            problems.append(
                f"line {number}: expected frame,id,left,top,width,height with whole frame and id, got {shown(line)}"
            )
            continue
        if is_truth and len(values) > _NUM_COLUMNS and values[_NUM_COLUMNS] == 0:
            continue
        frame, track_id, left, top, width, height = values[:_NUM_COLUMNS]
        before = first.setdefault((frame, track_id), number)
        if before != number:
            problems.append(f"line {number}: id {track_id:g} is in frame {frame:g} already, in line {before}")
        rows.append([frame, track_id, left, top, left + width, top + height])
    if problems:
        more = f"; and {len(problems) - _NUM_LISTED} more" if len(problems) > _NUM_LISTED else ""
        raise DatasetError(f"{path}: {'; '.join(problems[:_NUM_LISTED])}{more}; correct these lines")
    return np.array(rows, np.float64).reshape(-1, _NUM_COLUMNS)


def _numbers(line: str) -> list[float] | None:
    try:
        values = [float(word) for word in line.split(",")]
    except ValueError:
        return None
    if len(values) < _NUM_COLUMNS or not all(abs(value) <= _LARGEST for value in values) or min(values[4:6]) < 0:
        return None
    return values if values[0] >= 1 and all(value.is_integer() for value in values[:2]) else None


def frames_of_tracks(truth: Rows, tracks: Rows) -> list[TrackFrame]:
    """Return the frames of two files for `score_tracks`, from 1 to the last one of the ground truth.

    Raises:
        DatasetError: tracks lie in frames after those of the ground truth, or there are too many frames or ids.
    """
    num_frames = int(truth[:, 0].max(initial=0))
    if (last := int(tracks[:, 0].max(initial=0))) > num_frames:
        raise DatasetError(
            f"the tracks go on to frame {last}, the ground truth ends at {num_frames}; give files of the same video"
        )
    num_ids = [len(np.unique(rows[:, 1])) for rows in (truth, tracks)]
    if num_frames > _MAX_FRAMES or num_ids[0] * num_ids[1] > _MAX_PAIRS:
        raise DatasetError(
            f"expected at most {_MAX_FRAMES} frames, and {_MAX_PAIRS} pairs of an object and a track, got {num_frames} "
            f"and {num_ids[0]} x {num_ids[1]}; give the parts of the video one by one"
        )
    parts = [_by_frame(rows, num_frames) for rows in (truth, tracks)]
    return [
        TrackFrame(true[:, 1].astype(np.int64), found[:, 1].astype(np.int64), true[:, 2:], found[:, 2:])
        for true, found in zip(*parts, strict=True)
    ]


def _by_frame(rows: Rows, num_frames: int) -> list[Rows]:
    ordered = rows[np.argsort(rows[:, 0], kind="stable")]
    ends = np.searchsorted(ordered[:, 0], np.arange(1, num_frames + 1), side="right")
    return [ordered[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
