"""HOTA, IDF1 and MOTA: scores of tracks against true tracks, as TrackEval computes them.

TrackEval itself is no dependency: its wheel requires `opencv-python`, which would replace the files of
`opencv-python-headless`. `tests/evaluation/test_track_scores.py` compares with it where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Float64s = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_LEVELS = np.arange(0.05, 0.99, 0.05)  # overlaps over which HOTA is averaged (Luiten et al. 2021, section 4.2)
_MATCH_IOU = 0.5  # of MOTA and IDF1 (Bernardin and Stiefelhagen 2008; Ristani et al. 2016)
_ROUNDING = float(np.finfo(np.float64).eps)
_STAY_BONUS = 1000.0  # above every sum of overlaps: a pair of the frame before stays (Bernardin and Stiefelhagen)


@dataclass(frozen=True)
class TrackFrame:
    """True and found boxes of one frame.

    Attributes:
        true_ids: int64 (G,), each at most once.
        track_ids: int64 (T,), each at most once.
        true_xyxy: float64 (G, 4), pixels.
        track_xyxy: float64 (T, 4), pixels.
    """

    true_ids: Integers
    track_ids: Integers
    true_xyxy: Float64s
    track_xyxy: Float64s


@dataclass(frozen=True)
class TrackScores:
    """Scores of tracks; shares are 0..1.

    Attributes:
        hota: higher order tracking accuracy, the mean over overlaps of 0.05 to 0.95.
        det_a: its accuracy of detection.
        ass_a: its accuracy of association.
        idf1: F1 of the identities.
        mota: multiple object tracking accuracy; may be below 0.
        num_switches: changes of the identity of an object.
        num_false: boxes of tracks without an object.
        num_missed: objects without a box, in all frames.
        num_true: objects in all frames.
    """

    hota: float
    det_a: float
    ass_a: float
    idf1: float
    mota: float
    num_switches: int
    num_false: int
    num_missed: int
    num_true: int

    def to_plain(self) -> dict[str, float]:
        """Return the scores as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Pairs:
    """Frames with ids that count from 0, and the overlaps of their boxes (G, T)."""

    frames: list[tuple[Integers, Integers, Float64s]]
    true_counts: Float64s
    track_counts: Float64s


def score_tracks(frames: Sequence[TrackFrame]) -> TrackScores:
    """Return the scores of one video.

    Args:
        frames: its frames, in order, also those without boxes.

    Raises:
        ValueError: an id occurs twice in a frame.
    """
    for number, frame in enumerate(frames):
        for ids in (frame.true_ids, frame.track_ids):
            if len(np.unique(ids)) < len(ids):
                raise ValueError(f"frame {number}: expected each id once, got {ids.tolist()}")
    pairs = _paired(frames)
    hota, det_a, ass_a = _hota(pairs)
    num_matches, num_switches = _clear(pairs)
    num_true, num_found = int(pairs.true_counts.sum()), int(pairs.track_counts.sum())
    mota = (num_matches - (num_found - num_matches) - num_switches) / max(num_true, 1)
    return TrackScores(
        hota=hota,
        det_a=det_a,
        ass_a=ass_a,
        idf1=_idf1(pairs),
        mota=mota,
        num_switches=num_switches,
        num_false=num_found - num_matches,
        num_missed=num_true - num_matches,
        num_true=num_true,
    )


def _paired(frames: Sequence[TrackFrame]) -> _Pairs:
    true_all = np.unique(np.concatenate([np.zeros(0, np.int64), *(f.true_ids for f in frames)]))
    track_all = np.unique(np.concatenate([np.zeros(0, np.int64), *(f.track_ids for f in frames)]))
    rows: list[tuple[Integers, Integers, Float64s]] = []
    true_counts, track_counts = np.zeros(len(true_all)), np.zeros(len(track_all))
    for frame in frames:
        true, found = np.searchsorted(true_all, frame.true_ids), np.searchsorted(track_all, frame.track_ids)
        rows.append((true, found, box_overlaps(frame.true_xyxy, frame.track_xyxy)))
        true_counts[true] += 1
        track_counts[found] += 1
    return _Pairs(rows, true_counts, track_counts)


def box_overlaps(first_xyxy: Float64s, second_xyxy: Float64s) -> Float64s:
    """Return the intersection over union of boxes, float64 (N, 4) and (M, 4), as float64 (N, M); 0 without area."""
    low = np.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = np.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(2)
    first, second = ((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (first_xyxy, second_xyxy))
    total = first[:, None] + second - shared
    overlaps: Float64s = np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
    return overlaps


def _hota(pairs: _Pairs) -> tuple[float, float, float]:
    """Return HOTA, DetA and AssA (Luiten et al. 2021, "HOTA", equations 15 to 20 and section 5)."""
    shape = len(pairs.true_counts), len(pairs.track_counts)
    both = pairs.true_counts[:, None] + pairs.track_counts
    together = np.zeros(shape)
    for true, found, overlaps in pairs.frames:
        total = overlaps.sum(0)[None, :] + overlaps.sum(1)[:, None] - overlaps
        together[np.ix_(true, found)] += np.divide(overlaps, total, out=np.zeros_like(overlaps), where=total > 0)
    # Pairs of tracks that go together over the whole video are matched first.
    alignment = np.divide(together, both - together, out=np.zeros(shape), where=both > together)
    matched: list[tuple[Integers, Float64s]] = [(np.zeros(0, np.int64), np.zeros(0))]  # pair and overlap
    for true, found, overlaps in pairs.frames:
        row, column = linear_sum_assignment(alignment[np.ix_(true, found)] * overlaps, maximize=True)
        matched.append((true[row] * shape[1] + found[column], overlaps[row, column]))
    every, overlap = (np.concatenate(parts) for parts in zip(*matched, strict=True))
    used, place = np.unique(every, return_inverse=True)
    matches = np.stack([np.bincount(place[overlap >= least - _ROUNDING], minlength=len(used)) for least in _LEVELS])
    num_matches = matches.sum(1)
    num_all = pairs.true_counts.sum() + pairs.track_counts.sum() - num_matches
    det_a = num_matches / np.maximum(num_all, 1)
    association = matches / np.maximum(both.ravel()[used] - matches, 1)
    ass_a = (matches * association).sum(1) / np.maximum(num_matches, 1)
    return float(np.sqrt(det_a * ass_a).mean()), float(det_a.mean()), float(ass_a.mean())


def _clear(pairs: _Pairs) -> tuple[int, int]:
    """Return the numbers of matches and of switches of identity (Bernardin and Stiefelhagen 2008, "CLEAR MOT")."""
    num_matches = num_switches = 0
    last = np.full(len(pairs.true_counts), -1)  # track of each object when it was last matched
    before = last.copy()  # in the frame before
    for true, found, overlaps in pairs.frames:
        gains = np.where(
            overlaps >= _MATCH_IOU - _ROUNDING, overlaps + _STAY_BONUS * (before[true][:, None] == found), 0
        )
        row, column = linear_sum_assignment(gains, maximize=True)
        is_match = gains[row, column] > 0
        objects, tracks = true[row[is_match]], found[column[is_match]]
        num_matches += len(objects)
        num_switches += int(((last[objects] >= 0) & (last[objects] != tracks)).sum())
        before[:] = -1
        last[objects] = before[objects] = tracks
    return num_matches, num_switches


def _idf1(pairs: _Pairs) -> float:
    """Return the F1 of the best one-to-one choice of tracks for objects (Ristani et al. 2016, section 3)."""
    together = np.zeros((len(pairs.true_counts), len(pairs.track_counts)))
    for true, found, overlaps in pairs.frames:
        together[np.ix_(true, found)] += overlaps >= _MATCH_IOU
    rows, columns = linear_sum_assignment(together, maximize=True)
    total = pairs.true_counts.sum() + pairs.track_counts.sum()
    return float(2 * together[rows, columns].sum() / max(total, 1))
