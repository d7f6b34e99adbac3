"""ByteTrack: multi-object tracking that associates detections with objects from frame to frame.

Zhang et al. 2022, "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", algorithm 1: a Kalman filter
predicts the position of each object; certain detections are assigned to objects first, then uncertain ones, which a
detector would drop, to the remaining objects, so that a partly hidden object keeps its identity.

Two stages follow, for what is left: pairs of different classes that overlap much, because the class may change between
frames; and pairs of enlarged boxes, because small or fast objects do not overlap from frame to frame (Yang et
al. 2023, "Hard to Track Objects with Irregular Motions and Similar Appearances? Make It Easier by Buffering the
Matching Space").
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detector.inference.predictor import Prediction
from detector.media.camera_motion import CameraMotion
from detector.media.sources import VideoSource
from detector.structures.boxes import area_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
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
# Of the last stages of association; chosen on the scenes of tools/benchmark_tracking.py (docs/benchmarks/tracking.md).
_ALIKE_CLASS, _ALIKE_NEAR = 0.6, 0.7  # least ratio of the sizes of boxes of two classes, and of enlarged boxes
_RECENT_S, _RECENT_FRAMES = 0.25, 2.5  # time since a track was seen: the longer one of these
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
        match_class: the same for a detection of another class; 1 to keep classes apart.
        match_near: the same for boxes that are enlarged by `enlarge`, certain detections only.
        enlarge: share of its width and height by which a box is enlarged on each side; 0 to leave this stage out.
        buffer_s: seconds without a track after which it is dropped: 30 frames without it at 30 frames per second.
        class_agnostic: whether a track may have detections of different classes.
    """

    high: float = 0.6
    low: float = _LOW
    new: float = 0.7
    class_high: tuple[float, ...] | None = None
    match: float = 0.2
    match_low: float = 0.5
    match_new: float = 0.3
    match_class: float = 0.5
    match_near: float = 0.1
    enlarge: float = 0.5
    buffer_s: float = 1.0
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        matches = (self.match, self.match_low, self.match_new, self.match_class, self.match_near)
        shares = (*matches, *(self.class_high or ()))
        if not (0 <= self.low <= self.high <= self.new <= 1 and all(0 <= share <= 1 for share in shares)):
            raise ValueError(f"TrackConfig: expected 0 <= low <= high <= new <= 1 and overlaps of 0..1, got {self}")
        if not (0 <= self.buffer_s < math.inf and 0 <= self.enlarge < math.inf):
            raise ValueError(
                f"TrackConfig: expected buffer_s and enlarge of at least 0, got {self.buffer_s} and {self.enlarge}"
            )

    @classmethod
    def of(cls, select: SelectConfig) -> TrackConfig:
        """Return settings by which the detections that `select` keeps are certain and begin tracks."""
        high = select.confidence
        lowest = min((high, *(select.class_confidence or ())))
        return cls(high, min(_LOW, lowest), high, select.class_confidence, class_agnostic=select.class_agnostic)

    def changed(self, **given: float | None) -> TrackConfig:
        """Return the same settings with those values that are given and not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # fields of numbers

    def widened(self, select: SelectConfig) -> SelectConfig:
        """Return the same selection with uncertain detections added."""
        return replace(select, confidence=self.low, class_confidence=None)

    def is_certain(self, detections: Detections) -> Mask:
        """Return a mask, bool (N,), of the certain detections.

        Raises:
            ValueError: `class_high` does not have one score for each class.
        """
        scores = detections.scores.cpu().numpy()
        if self.class_high is None:
            return np.asarray(scores >= self.high)
        if len(self.class_high) != len(detections.class_names):
            raise ValueError(
                f"TrackConfig.class_high: expected a score for each of {len(detections.class_names)} classes, got "
                f"{len(self.class_high)}"
            )
        return np.asarray(scores >= np.array(self.class_high, np.float32)[detections.labels.cpu().numpy()])


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

    def warp(self, motion: Float64s) -> None:
        """Move the boxes with the camera: float64 (2, 3), a turn, zoom and shift of the picture."""
        zoom = math.sqrt(abs(float(np.linalg.det(motion[:, :2]))))
        self.places[:, :2] = self.places[:, :2] @ motion[:, :2].T + motion[:, 2]
        self.speeds[:, :2] = self.speeds[:, :2] @ motion[:, :2].T
        self.places[:, 2:] *= zoom
        self.speeds[:, 2:] *= zoom
        self.variances *= zoom**2

    def predict(self, seconds: float) -> None:
        """Advance the boxes by a time: F P F' + Q of a constant speed."""
        steps, sides = seconds * _FRAMES_PER_S, _sides(self.places)
        self.speeds[:, 2:][self.places[:, 2:] + steps * self.speeds[:, 2:] < 0] = 0  # no side becomes negative
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

    def restart(self, rows: Integers, cxcywh: Float64s, seconds: float) -> None:
        """Set the speeds of some rows, int64 (N,), by their places before a prediction of 0 speed and by what is seen.

        Args:
            rows: rows of boxes that were seen once.
            cxcywh: the boxes that were seen now, float64 (N, 4), pixels.
            seconds: the time between the two.
        """
        steps = max(seconds * _FRAMES_PER_S, 1e-3)
        place_noise = (_PLACE_STD * _sides(cxcywh)) ** 2
        self.speeds[rows, :2] = ((cxcywh - self.places[rows]) / steps)[:, :2]
        # Both places have the noise of a measurement (Bar-Shalom et al. 2001, "Estimation with Applications to Tracking
        # and Navigation", section 5.5.3, initialisation from two points).
        self.variances[rows] = np.stack([place_noise, place_noise / steps, 2 * place_noise / steps**2], axis=2)
        self.places[rows] = cxcywh

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
    from scipy.optimize import linear_sum_assignment  # its import takes long, and few predictions track objects

    is_possible = overlaps > lowest
    rows, columns = np.nonzero(is_possible)
    # A row and a column that have only each other are a pair of every best assignment; few others are left.
    is_lone = (is_possible.sum(1)[rows] == 1) & (is_possible.sum(0)[columns] == 1)
    other_rows, other_columns = np.unique(rows[~is_lone]), np.unique(columns[~is_lone])
    gains = np.maximum(overlaps[np.ix_(other_rows, other_columns)] - lowest, 0)
    row, column = linear_sum_assignment(gains, maximize=True)
    is_pair = gains[row, column] > 0
    row, column = other_rows[row[is_pair]], other_columns[column[is_pair]]
    return np.concatenate([rows[is_lone], row]), np.concatenate([columns[is_lone], column])


def _overlaps(tracks_xyxy: Float64s, xyxy: Float64s) -> Float64s:
    """Return the IoU of boxes (T, 4) and (N, 4), float64 (T, N); 0 where neither box has an area."""
    overlaps = np.zeros((len(tracks_xyxy), len(xyxy)))
    # Few of many pairs touch each other: only those are computed.
    starts, ends = tracks_xyxy[:, None, :2], tracks_xyxy[:, None, 2:]
    touching = (starts[..., 0] < xyxy[:, 2]) & (ends[..., 0] > xyxy[:, 0])
    touching &= (starts[..., 1] < xyxy[:, 3]) & (ends[..., 1] > xyxy[:, 1])
    rows, columns = np.nonzero(touching)
    first, second = tracks_xyxy[rows], xyxy[columns]
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    union = area_xyxy(first) + area_xyxy(second) - shared
    overlaps[rows, columns] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps


def _enlarged(xyxy: Float64s, share: float) -> Float64s:
    """Return boxes that are larger by a share of their width and height on each side."""
    margins = share * (xyxy[:, 2:] - xyxy[:, :2])
    return np.concatenate([xyxy[:, :2] - margins, xyxy[:, 2:] + margins], axis=1)


def _alikeness(first_xyxy: Float64s, second_xyxy: Float64s) -> Float64s:
    """Return the ratio of the widths times that of the heights, the smaller by the larger, float64 (T, N), 0..1."""
    first, second = first_xyxy[:, None, 2:] - first_xyxy[:, None, :2], second_xyxy[:, 2:] - second_xyxy[:, :2]
    larger = np.maximum(first, second)
    ratios: Float64s = np.divide(np.minimum(first, second), larger, out=np.zeros_like(larger), where=larger > 0)
    return ratios[..., 0] * ratios[..., 1]


class _Pairing:
    """Pairs of tracks and detections that are made in stages.

    Attributes:
        found: the detection of each track, int64 (T,), or -1.
        is_free: whether each detection has no track, bool (N,).
    """

    def __init__(self, num_tracks: int, num_detections: int) -> None:
        self.found = np.full(num_tracks, -1, np.int64)
        self.is_free = np.ones(num_detections, np.bool_)

    def add(self, overlaps: Float64s, tracks: Mask, detections: Mask, lowest: float) -> None:
        """Pair the tracks and detections of two masks that are left, by overlaps (T, N) above the lowest."""
        rows, columns = np.flatnonzero(tracks & (self.found < 0)), np.flatnonzero(detections & self.is_free)
        if not (len(rows) and len(columns)):
            return
        row, column = assign(overlaps[np.ix_(rows, columns)], lowest)
        self.found[rows[row]], self.is_free[columns[column]] = columns[column], False


class Tracker:
    """Tracks of one video."""

    def __init__(self, config: TrackConfig | None = None) -> None:
        self._config = config or TrackConfig()
        self._filters = BoxFilters()
        self._ids = np.zeros(0, np.int64)  # 0 until a track is seen a second time
        self._votes = np.zeros((0, 0))  # sum of the scores of each class
        self._seen_s = np.zeros(0)
        self._is_lost = np.zeros(0, np.bool_)  # not seen in the frame before
        self._now_s = -math.inf
        self._step_s = math.inf  # time between the two frames before, unknown at first
        self._num_ids = 0

    @property
    def _labels(self) -> Integers:
        """The class of each track, int64 (T,): the one with most votes, the lowest index of several."""
        return self._votes.argmax(1) if self._votes.shape[1] else np.zeros(len(self._ids), np.int64)

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
        return self.follow(detections, time_s)[0]

    def follow(
        self, detections: Detections, time_s: float, motion: Float64s | None = None
    ) -> tuple[Integers, Integers]:
        """Return the track of each detection of the next frame as `update` does, and the class of each track.

        Args:
            detections: certain and uncertain detections.
            time_s: the time of the frame.
            motion: motion of the camera since the frame before, float64 (2, 3), or None.

        Returns:
            Ids, int64 (N,), and class indices, int64 (N,): the class with the largest sum of scores so far, or the
            detection's own without a track.
        """
        if not math.isfinite(time_s):
            raise ValueError(f"Tracker: expected a finite time_s, got {time_s}")
        is_first = math.isinf(self._now_s)
        xyxy = detections.source_xyxy.double().cpu().numpy()
        labels, scores = detections.labels.cpu().numpy(), detections.scores.double().cpu().numpy()
        if motion is not None:
            self._filters.warp(motion)
        step_s = self._advance(time_s, len(detections.class_names))
        certain = self._config.is_certain(detections)
        uncertain = ~certain & (scores >= self._config.low)
        beginning = certain if self._config.class_high is not None else scores >= self._config.new
        found, is_near = self._associate(xyxy, labels, certain, uncertain)
        rows = np.flatnonzero(found >= 0)
        self._correct(rows, xyxy_to_cxcywh(xyxy[found[rows]]), is_near[rows], step_s)
        self._votes[rows, labels[found[rows]]] += scores[found[rows]]
        self._seen_s[rows] = self._now_s
        self._name(rows[self._ids[rows] == 0])
        track_ids, classes = np.full(len(xyxy), -1, np.int64), labels.copy()
        track_ids[found[rows]], classes[found[rows]] = self._ids[rows], self._labels[rows]

        self._is_lost = found < 0
        self._keep(~self._is_lost | (self._ids > 0))  # a track that was seen only once is dropped
        begins = np.flatnonzero(beginning & (track_ids < 0))
        self._begin(xyxy[begins], labels[begins], scores[begins])
        if is_first:
            self._name(np.arange(len(begins)))
            track_ids[begins] = self._ids
        return track_ids, classes

    def _advance(self, time_s: float, num_classes: int) -> float:
        """Predict the tracks up to a time and drop those that were lost for too long; return the time that passed."""
        now_s = max(time_s, self._now_s)
        step_s = 0.0 if math.isinf(self._now_s) else now_s - self._now_s
        self._now_s = now_s
        # The time that counts is that of the frames without it, one step less than since it was seen; so frames may be
        # further apart than the buffer, but not further than usual. A quarter of a step is for the rounding of times.
        usual_s = self._step_s if math.isfinite(self._step_s) else step_s
        self._keep(now_s - self._seen_s - usual_s <= self._config.buffer_s + usual_s / 4)
        if step_s > 0:
            self._step_s = step_s
        if not self._votes.shape[1]:
            self._votes = np.zeros((len(self._ids), num_classes))
        self._filters.speeds[self._is_lost, 2:] = 0  # the size of a lost track is unknown: it stays as it was
        self._filters.predict(step_s)
        return step_s

    def _correct(self, rows: Integers, cxcywh: Float64s, is_near: Mask, step_s: float) -> None:
        """Correct tracks by the boxes that were seen; a new one that moved beyond its box gets its speed from it."""
        is_new = is_near & (self._ids[rows] == 0)
        self._filters.restart(rows[is_new], cxcywh[is_new], step_s)
        self._filters.update(rows[~is_new], cxcywh[~is_new])

    def _begin(self, xyxy: Float64s, labels: Integers, scores: Float64s) -> None:
        num = len(xyxy)
        self._filters.add(xyxy_to_cxcywh(xyxy))
        self._ids = np.append(self._ids, np.zeros(num, np.int64))
        votes = np.zeros((num, self._votes.shape[1]))
        votes[np.arange(num), labels] = scores
        self._votes = np.concatenate([self._votes, votes])
        self._seen_s = np.append(self._seen_s, np.full(num, self._now_s))
        self._is_lost = np.append(self._is_lost, np.zeros(num, np.bool_))

    def _associate(self, xyxy: Float64s, labels: Integers, certain: Mask, uncertain: Mask) -> tuple[Integers, Mask]:
        """Return the detection of each track, int64 (T,) or -1, and a mask of those that only enlarged boxes found."""
        config, tracks_xyxy = self._config, cxcywh_to_xyxy(self._filters.places)
        overlaps = _overlaps(tracks_xyxy, xyxy)
        is_same = np.ones(overlaps.shape, np.bool_) if config.class_agnostic else self._labels[:, None] == labels
        same, has_id = overlaps * is_same, self._ids > 0
        pairing = _Pairing(len(self._ids), len(xyxy))
        pairing.add(same, has_id, certain, config.match)
        pairing.add(same, has_id & ~self._is_lost, uncertain, config.match_low)
        pairing.add(same, ~has_id, certain, config.match_new)

        # The last stages take less evidence, so they need boxes of like size, and tracks whose place is well known.
        rows, columns = np.flatnonzero(pairing.found < 0), np.flatnonzero(pairing.is_free)
        is_near = np.zeros(len(self._ids), np.bool_)
        if not (len(rows) and len(columns)):
            return pairing.found, is_near
        cut, left = np.ix_(rows, columns), _Pairing(len(rows), len(columns))
        tracks_xyxy, xyxy, overlaps, is_same = tracks_xyxy[rows], xyxy[columns], overlaps[cut], is_same[cut]
        certain, uncertain, has_id, is_lost = certain[columns], uncertain[columns], has_id[rows], self._is_lost[rows]
        alikeness = _alikeness(tracks_xyxy, xyxy)
        step_s = self._step_s if math.isfinite(self._step_s) else 0.0
        is_recent = self._now_s - self._seen_s[rows] <= max(_RECENT_S, _RECENT_FRAMES * step_s)
        if not config.class_agnostic:
            left.add(overlaps * (alikeness > _ALIKE_CLASS), is_recent, certain, config.match_class)
            left.add(overlaps * (alikeness > _ALIKE_CLASS), ~is_lost, uncertain, config.match_class)
        is_left = left.found < 0
        if config.enlarge and is_left.any():
            near = _overlaps(_enlarged(tracks_xyxy, config.enlarge), _enlarged(xyxy, config.enlarge))
            near = near * (is_same & (alikeness > _ALIKE_NEAR))
            left.add(near, has_id & is_recent, certain, config.match_near)
            left.add(near, ~has_id, certain, config.match_near)
        is_found = left.found >= 0
        pairing.found[rows[is_found]] = columns[left.found[is_found]]
        is_near[rows] = is_left & is_found
        return pairing.found, is_near

    def _name(self, rows: Integers) -> None:
        self._ids[rows] = np.arange(len(rows)) + self._num_ids + 1
        self._num_ids += len(rows)

    def _keep(self, rows: Mask) -> None:
        self._filters.keep(rows)
        self._ids, self._votes = self._ids[rows], self._votes[rows]
        self._seen_s, self._is_lost = self._seen_s[rows], self._is_lost[rows]


class VideoTracks:
    """Tracks of any mix of videos, each with a tracker of its own.

    Attributes:
        num_left_out: certain detections of each video, by its name, that joined no track; see `keep_untracked`.
    """

    def __init__(
        self, config: TrackConfig | None = None, keep_untracked: bool = False, follow_camera: bool = False
    ) -> None:
        """Begin without tracks.

        Args:
            config: settings of tracking.
            keep_untracked: true to keep certain detections that joined no track, with the id -1.
            follow_camera: true to move tracks with the camera, whose motion is estimated from the frames.
        """
        self._follow_camera = follow_camera
        self._config, self._keep_untracked = config or TrackConfig(), keep_untracked
        self._trackers: dict[int, tuple[VideoSource, Tracker, CameraMotion]] = {}  # by id: a video may be given twice
        self.num_left_out: Counter[str] = Counter()

    def follow(self, prediction: Prediction) -> Prediction:
        """Return the record of the next frame with the detections that belong to a track, their ids and classes.

        The class of a detection becomes that of its track.

        Raises:
            ValueError: the record is not of a frame of a video.
        """
        found = prediction.detections
        if found is None:
            return prediction
        frame = prediction.source.frame
        if frame is None:
            raise ValueError(f"VideoTracks: expected a frame of a video, got the image {prediction.source.name}")
        if id(frame.video) not in self._trackers:
            if not frame.video.is_live:  # files come one after another: the last one is complete
                self._trackers = {key: kept for key, kept in self._trackers.items() if kept[0].is_live}
            self._trackers[id(frame.video)] = frame.video, Tracker(self._config), CameraMotion()
        _, tracker, camera = self._trackers[id(frame.video)]
        motion = camera.add(prediction.image) if self._follow_camera and prediction.image is not None else None
        track_ids, classes = tracker.follow(found, frame.moment_s, motion)
        is_kept = track_ids >= 0
        is_untracked = ~is_kept & self._config.is_certain(found)
        if self._keep_untracked:
            is_kept |= is_untracked
        else:
            self.num_left_out[frame.video.name] += int(is_untracked.sum())
        kept = replace(found, labels=found.labels.new_tensor(classes))[is_kept]
        return replace(prediction, detections=kept, track_ids=track_ids[is_kept])
