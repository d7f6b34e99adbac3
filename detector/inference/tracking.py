"""ByteTrack: multi-object tracking that associates detections with objects from frame to frame.

Zhang et al. 2022, "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", algorithm 1: a Kalman filter
predicts the position of each object; certain detections are assigned to objects first, then uncertain ones, which a
detector would drop, to the remaining objects, so that a partly hidden object keeps its identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from detector.inference.predictor import Prediction
from detector.media.sources import VideoSource
from detector.structures.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections

Float64s = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Standard deviations of the place and of the speed per frame, relative to the width and height of the box (Wojke et al.
# 2017, "Simple Online and Realtime Tracking with a Deep Association Metric", the authors' program, which uses the
# height for both; Aharon et al. 2022, "BoT-SORT", equations 3 to 6, uses each side for itself, as here).
_PLACE_STD, _SPEED_STD = 1 / 20, 1 / 160
_FIRST_PLACE_STDS, _FIRST_SPEED_STDS = 2, 10  # factors when an object is first seen, from the same sources
_FRAMES_PER_S = 30.0  # of the MOTChallenge videos for which these values were chosen
_LOW = 0.1  # lowest score of the authors' program of Zhang et al. 2022


@dataclass(frozen=True)
class TrackConfig:
    """Settings of tracking. The defaults are those of Zhang et al. 2022, section 4.1 and program.

    Attributes:
        high: lowest score, 0..1, of a certain detection.
        low: lowest score, 0..1, of an uncertain detection; at most `high`.
        new: lowest score, 0..1, of a certain detection that begins a track; at least `high`.
        class_high: scores of each class, 0..1, in place of `high` and `new`, or None.
        match: overlap, 0..1, that the predicted box of a track and a certain detection must exceed to match.
        match_low: the same for an uncertain detection and tracks that were seen in the previous frame.
        match_new: the same for a certain detection and tracks that were seen once.
        buffer_s: seconds for which a track that is not seen is kept: 30 frames at 30 frames per second.
        class_agnostic: whether a track may have detections of different classes.
    """

    high: float = 0.6
    low: float = _LOW
    new: float = 0.7
    class_high: tuple[float, ...] | None = None
    match: float = 0.2
    match_low: float = 0.5
    match_new: float = 0.3
    buffer_s: float = 1.0
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        shares = (self.match, self.match_low, self.match_new, *(self.class_high or ()))
        if not (0 <= self.low <= self.high <= self.new <= 1 and all(0 <= share <= 1 for share in shares)):
            raise ValueError(f"TrackConfig: expected 0 <= low <= high <= new <= 1 and overlaps of 0..1, got {self}")
        if not 0 <= self.buffer_s < math.inf:
            raise ValueError(f"TrackConfig: expected buffer_s of at least 0 seconds, got {self.buffer_s}")

    @classmethod
    def of(cls, select: SelectConfig) -> TrackConfig:
        """Return settings by which the detections that `select` keeps are certain and begin tracks."""
        high = select.confidence
        lowest = min((high, *(select.class_confidence or ())))
        return cls(high, min(_LOW, lowest), high, select.class_confidence, class_agnostic=select.class_agnostic)

    def widened(self, select: SelectConfig) -> SelectConfig:
        """Return the same selection with uncertain detections added."""
        return replace(select, confidence=self.low, class_confidence=None)


class BoxFilters:
    """Kalman filters of T boxes whose centre, width and height change at constant speeds.

    The noise of the four coordinates is independent, so each has a filter of two numbers, its place and its speed. The
    speed drifts as under white acceleration, so that two predictions over half the time equal one over the whole time.

    Attributes:
        places: float64 (T, 4), centre, width and height, pixels.
        speeds: float64 (T, 4), pixels per frame at 30 frames per second.
        variances: float64 (T, 4, 3): variance of the place, covariance of place and speed, variance of the speed.
    """

    def __init__(self) -> None:
        self.places = self.speeds = np.zeros((0, 4))
        self.variances = np.zeros((0, 4, 3))

    def add(self, cxcywh: Float64s) -> None:
        """Add boxes that were seen once, float64 (N, 4), pixels."""
        place = (_FIRST_PLACE_STDS * _PLACE_STD * _sides(cxcywh)) ** 2
        speed = (_FIRST_SPEED_STDS * _SPEED_STD * _sides(cxcywh)) ** 2
        self.places = np.concatenate([self.places, cxcywh])
        self.speeds = np.concatenate([self.speeds, np.zeros_like(cxcywh)])
        self.variances = np.concatenate([self.variances, np.stack([place, np.zeros_like(place), speed], axis=2)])

    def keep(self, rows: Mask) -> None:
        """Keep the boxes of a mask, bool (T,), and drop the others."""
        self.places, self.speeds, self.variances = self.places[rows], self.speeds[rows], self.variances[rows]

    def predict(self, seconds: float) -> None:
        """Advance the boxes by a time: F P F' + Q of a constant speed."""
        steps, sides = seconds * _FRAMES_PER_S, _sides(self.places)
        place_noise, speed_noise = (_PLACE_STD * sides) ** 2, (_SPEED_STD * sides) ** 2
        place, both, speed = np.moveaxis(self.variances, 2, 0)
        self.places = self.places + steps * self.speeds
        self.variances = np.stack(
            [
                place + 2 * steps * both + steps**2 * speed + steps * place_noise + steps**3 / 3 * speed_noise,
                both + steps * speed + steps**2 / 2 * speed_noise,
                speed + steps * speed_noise,
            ],
            axis=2,
        )

    def update(self, rows: Integers, cxcywh: Float64s) -> None:
        """Correct the boxes of some rows, int64 (N,), by the boxes that were seen, float64 (N, 4), pixels."""
        place, both, speed = np.moveaxis(self.variances[rows], 2, 0)
        total = place + (_PLACE_STD * _sides(self.places[rows])) ** 2
        place_gain, speed_gain = place / total, both / total
        residual = cxcywh - self.places[rows]
        self.places[rows] += place_gain * residual
        self.speeds[rows] += speed_gain * residual
        left = 1 - place_gain
        self.variances[rows] = np.stack([left * place, left * both, speed - speed_gain * both], axis=2)


def _sides(cxcywh: Float64s) -> Float64s:
    """Return the side that each coordinate is relative to, (T, 4); at least a pixel."""
    return np.maximum(cxcywh[:, [2, 3, 2, 3]], 1.0)


def assign(overlaps: Float64s, lowest: float) -> tuple[Integers, Integers]:
    """Pair rows and columns, each at most once, with the largest sum of overlaps above `lowest`.

    Args:
        overlaps: float64 (T, N), 0..1.
        lowest: overlap that every pair exceeds.

    Returns:
        Rows and columns, int64 (K,) each.
    """
    gains = np.maximum(overlaps - lowest, 0)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    is_pair = gains[rows, columns] > 0
    return rows[is_pair], columns[is_pair]


class Tracker:
    """Tracks of one video."""

    def __init__(self, config: TrackConfig | None = None) -> None:
        self._config = config or TrackConfig()
        self._filters = BoxFilters()
        self._ids = np.zeros(0, np.int64)  # 0 until a track is seen a second time
        self._labels = np.zeros(0, np.int64)
        self._seen_s = np.zeros(0)
        self._is_lost = np.zeros(0, np.bool_)  # not seen in the frame before
        self._last_s: float | None = None
        self._num_ids = 0

    def update(self, detections: Detections, time_s: float) -> Integers:
        """Return the track of each detection of the next frame.

        A track gets its id when it is seen a second time, in the first frame at once.

        Args:
            detections: certain and uncertain detections.
            time_s: the time of the frame; if it is not later than the previous one, no time has passed.

        Returns:
            The id of each detection's track, int64 (N,): 1, 2, 3 in the order in which tracks got theirs; -1 without a
            track.

        Raises:
            ValueError: the time is not finite, or `class_high` does not have one score for each class.
        """
        if not math.isfinite(time_s):
            raise ValueError(f"Tracker: expected a finite time_s, got {time_s}")
        is_first = self._last_s is None
        before_s = time_s if self._last_s is None else self._last_s
        now_s = self._last_s = max(time_s, before_s)
        self._keep(~self._is_lost | (now_s - self._seen_s <= self._config.buffer_s))
        self._filters.speeds[self._is_lost, 2:] = 0  # the size of a lost track is unknown: it stays as it was
        self._filters.predict(now_s - before_s)

        xyxy = detections.source_xyxy.double().cpu().numpy()
        labels = detections.labels.cpu().numpy()
        certain, uncertain, beginning = self._sorted(detections)
        found = self._associate(xyxy, labels, certain, uncertain)
        rows = np.flatnonzero(found >= 0)
        self._filters.update(rows, xyxy_to_cxcywh(xyxy[found[rows]]))
        self._labels[rows], self._seen_s[rows] = labels[found[rows]], now_s
        self._name(rows[self._ids[rows] == 0])
        track_ids = np.full(len(xyxy), -1, np.int64)
        track_ids[found[rows]] = self._ids[rows]

        self._is_lost = found < 0
        self._keep(~self._is_lost | (self._ids > 0))  # a track that was seen only once is dropped
        begins = np.flatnonzero(beginning & (track_ids < 0))
        self._filters.add(xyxy_to_cxcywh(xyxy[begins]))
        self._ids = np.append(self._ids, np.zeros(len(begins), np.int64))
        self._labels = np.append(self._labels, labels[begins])
        self._seen_s = np.append(self._seen_s, np.full(len(begins), now_s))
        self._is_lost = np.append(self._is_lost, np.zeros(len(begins), np.bool_))
        if is_first:
            self._name(np.arange(len(begins)))
            track_ids[begins] = self._ids
        return track_ids

    def _sorted(self, detections: Detections) -> tuple[Mask, Mask, Mask]:
        """Return masks of certain detections, of uncertain ones and of those that may begin a track: bool (N,) each."""
        config, scores = self._config, detections.scores.cpu().numpy()
        if config.class_high is None:
            certain = scores >= config.high
            return certain, ~certain & (scores >= config.low), scores >= config.new
        if len(config.class_high) != len(detections.class_names):
            raise ValueError(
                f"TrackConfig.class_high: expected a score for each of {len(detections.class_names)} classes, got "
                f"{len(config.class_high)}"
            )
        certain = scores >= np.array(config.class_high, np.float32)[detections.labels.cpu().numpy()]
        return certain, ~certain & (scores >= config.low), certain

    def _associate(self, xyxy: Float64s, labels: Integers, certain: Mask, uncertain: Mask) -> Integers:
        """Return the index of the detection of each track, int64 (T,), or -1."""
        tracks_xyxy = cxcywh_to_xyxy(self._filters.places)
        overlaps = np.nan_to_num(box_iou(torch.from_numpy(tracks_xyxy), torch.from_numpy(xyxy)).numpy())  # 0/0: points
        if not self._config.class_agnostic:
            overlaps[self._labels[:, None] != labels] = 0
        found, is_free = np.full(len(self._ids), -1, np.int64), np.ones(len(xyxy), np.bool_)
        has_id = self._ids > 0
        for tracks, candidates, lowest in (
            (has_id, certain, self._config.match),
            (has_id & ~self._is_lost, uncertain, self._config.match_low),
            (~has_id, certain, self._config.match_new),
        ):
            rows, columns = np.flatnonzero(tracks & (found < 0)), np.flatnonzero(candidates & is_free)
            row, column = assign(overlaps[np.ix_(rows, columns)], lowest)
            found[rows[row]], is_free[columns[column]] = columns[column], False
        return found

    def _name(self, rows: Integers) -> None:
        self._ids[rows] = np.arange(len(rows)) + self._num_ids + 1
        self._num_ids += len(rows)

    def _keep(self, rows: Mask) -> None:
        self._filters.keep(rows)
        self._ids, self._labels = self._ids[rows], self._labels[rows]
        self._seen_s, self._is_lost = self._seen_s[rows], self._is_lost[rows]


class VideoTracks:
    """Tracks of any mix of videos, each with a tracker of its own."""

    def __init__(self, config: TrackConfig | None = None) -> None:
        self._config = config
        self._trackers: dict[int, tuple[VideoSource, Tracker]] = {}  # by id: a video may be given twice

    def follow(self, prediction: Prediction) -> Prediction:
        """Return the record of the next frame with only the detections that belong to a track, and their ids.

        Raises:
            ValueError: the record is not of a frame of a video.
        """
        if prediction.detections is None:
            return prediction
        frame = prediction.source.frame
        if frame is None:
            raise ValueError(f"VideoTracks: expected a frame of a video, got the image {prediction.source.name}")
        if id(frame.video) not in self._trackers:
            if not frame.video.is_live:  # files come one after another: the last one is complete
                self._trackers = {key: kept for key, kept in self._trackers.items() if kept[0].is_live}
            self._trackers[id(frame.video)] = frame.video, Tracker(self._config)
        track_ids = self._trackers[id(frame.video)][1].update(prediction.detections, frame.moment_s)
        is_tracked = track_ids >= 0
        return replace(prediction, detections=prediction.detections[is_tracked], track_ids=track_ids[is_tracked])
