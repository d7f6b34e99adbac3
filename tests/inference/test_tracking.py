from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from detector.errors import ConfigError
from detector.inference.predictor import Prediction
from detector.inference.tracking import BoxFilters, TrackConfig, Tracker, VideoTracks, assign
from detector.media.sources import FrameOrigin, ImageSource, VideoSource, require_videos
from detector.structures.boxes import cxcywh_to_xyxy
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections

Float64s = npt.NDArray[np.float64]
FRAME_S = 1 / 30


def found(*rows: tuple[float, ...]) -> Detections:
    """Return detections given as (cx, cy, w, h, score) or (cx, cy, w, h, score, label)."""
    table = torch.tensor([(*row, 0.0)[:6] for row in rows], dtype=torch.float32).reshape(-1, 6)
    boxes = torch.from_numpy(cxcywh_to_xyxy(table[:, :4].numpy()))
    return Detections(boxes, table[:, 4], table[:, 5].long(), (480, 640), ("car", "bus"), (1, 2))


# --- the filter ----------------------------------------------------------------------------------------------------


class FullFilter:
    """The same filter as in textbooks: one state of eight numbers, matrices, an inverse; speeds per frame."""

    def __init__(self, cxcywh: Float64s) -> None:
        sides = cxcywh[[2, 3, 2, 3]]
        self.state = np.concatenate([cxcywh, np.zeros(4)])
        self.covariance = np.diag(np.concatenate([(2 * sides / 20) ** 2, (10 * sides / 160) ** 2]))

    def predict(self, frames: float) -> None:
        sides = self.state[[2, 3, 2, 3]]
        move = np.eye(8)
        move[:4, 4:] = frames * np.eye(4)
        place, speed = np.diag((sides / 20) ** 2), np.diag((sides / 160) ** 2)
        noise = np.block(
            [
                [frames * place + frames**3 / 3 * speed, frames**2 / 2 * speed],
                [frames**2 / 2 * speed, frames * speed],
            ]
        )
        self.state = move @ self.state
        self.covariance = move @ self.covariance @ move.T + noise

    def update(self, cxcywh: Float64s) -> None:
        observe = np.eye(4, 8)
        measured = np.diag((self.state[[2, 3, 2, 3]] / 20) ** 2)
        gain = self.covariance @ observe.T @ np.linalg.inv(observe @ self.covariance @ observe.T + measured)
        self.state = self.state + gain @ (cxcywh - observe @ self.state)
        self.covariance = (np.eye(8) - gain @ observe) @ self.covariance


def test_filters_agree_with_a_textbook_kalman_filter() -> None:
    random = np.random.default_rng(5)
    boxes = random.uniform((0, 0, 20, 20), (600, 400, 90, 90), (6, 4))
    filters, references = BoxFilters(), [FullFilter(box) for box in boxes]
    filters.add(boxes)
    for _ in range(40):
        frames = float(random.choice([0, 0.5, 1, 1, 2.7]))
        boxes = boxes + random.normal(1, 1, boxes.shape)
        rows = np.flatnonzero(random.random(len(boxes)) < 0.7)
        filters.predict(frames * FRAME_S)
        filters.update(rows, boxes[rows])
        for row, reference in enumerate(references):
            reference.predict(frames)
            if row in rows:
                reference.update(boxes[row])
    for row, reference in enumerate(references):
        state = np.concatenate([filters.places[row], filters.speeds[row]])
        np.testing.assert_allclose(state, reference.state, rtol=1e-9)
        parts = [np.diag(filters.variances[row, :, part]) for part in range(3)]
        covariance = np.block([[parts[0], parts[1]], [parts[1], parts[2]]])
        np.testing.assert_allclose(covariance, reference.covariance, rtol=1e-9, atol=1e-9)


def test_predicting_twice_half_the_time_equals_once() -> None:
    both = BoxFilters(), BoxFilters()
    for filters in both:
        filters.add(np.array([[50.0, 60, 20, 30]]))
        filters.speeds[:, :2] = 3, -1
    both[0].predict(0.2)
    for part in (0.05, 0.15):
        both[1].predict(part)
    np.testing.assert_allclose(both[0].places, both[1].places, rtol=1e-12)
    np.testing.assert_allclose(both[0].variances, both[1].variances, rtol=1e-12)


# --- the assignment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_assignment_maximises_the_overlap_above_the_lowest(seed: int) -> None:
    random = np.random.default_rng(seed)
    overlaps = random.random((random.integers(0, 5), random.integers(0, 5))) * (random.random() + 0.2)
    num_rows, num_columns = overlaps.shape
    lowest = 0.3

    def gain(choice: tuple[int, ...]) -> float:
        pairs = [(row, column) for row, column in enumerate(choice) if column < num_columns]
        return sum(max(overlaps[pair] - lowest, 0) for pair in pairs)

    # Columns beyond the last are none.
    best = max(gain(choice) for choice in itertools.permutations(range(num_columns + num_rows), num_rows))
    rows, columns = assign(overlaps, lowest)
    assert sum(overlaps[rows, columns] - lowest) == pytest.approx(best, abs=1e-12)
    assert (overlaps[rows, columns] > lowest).all()
    assert len(set(rows)) == len(rows) == len(set(columns))


# --- the tracker ---------------------------------------------------------------------------------------------------


def follow(tracker: Tracker, *frames: Detections, step_s: float = FRAME_S) -> list[list[int]]:
    return [tracker.update(frame, number * step_s).tolist() for number, frame in enumerate(frames)]


CAR, FAR = (100.0, 100.0, 40.0, 40.0), (400.0, 300.0, 40.0, 40.0)


def test_track_gets_its_id_at_the_second_sight_or_in_the_first_frame() -> None:
    both = found((*CAR, 0.9), (*FAR, 0.9))
    assert follow(Tracker(), found((*CAR, 0.9)), both, both) == [[1], [1, -1], [1, 2]]


def test_track_seen_only_once_is_dropped() -> None:
    one, both = found((*CAR, 0.9)), found((*CAR, 0.9), (*FAR, 0.9))
    assert follow(Tracker(), one, both, one, both, both) == [[1], [1, -1], [1], [1, -1], [1, 2]]


def test_uncertain_detection_continues_a_track_but_begins_none() -> None:
    frames = [found((*CAR, 0.9), (*FAR, 0.3)), *[found((*CAR, 0.2), (*FAR, 0.3))] * 3, found((*CAR, 0.05))]
    assert follow(Tracker(), *frames) == [[1, -1], [1, -1], [1, -1], [1, -1], [-1]]


def test_certain_detection_below_new_begins_no_track() -> None:
    assert follow(Tracker(), *[found((*CAR, 0.65))] * 3) == [[-1]] * 3


def test_uncertain_detection_does_not_revive_a_lost_track() -> None:
    frames = [found((*CAR, 0.9)), found(), found((*CAR, 0.3)), found((*CAR, 0.9))]
    assert follow(Tracker(), *frames) == [[1], [], [-1], [1]]


@pytest.mark.parametrize(
    ("step_s", "num_away", "last"), [(FRAME_S, 28, 1), (FRAME_S, 32, -1), (0.2, 3, 1), (0.2, 6, -1)]
)
def test_lost_track_is_kept_for_the_same_time_at_any_frame_rate(step_s: float, num_away: int, last: int) -> None:
    frames = [found((*CAR, 0.9))] * 2 + [found()] * num_away + [found((*CAR, 0.9))]
    assert follow(Tracker(), *frames, step_s=step_s)[-1] == [last]


def test_frames_further_apart_than_the_buffer_continue_tracks() -> None:
    assert follow(Tracker(), *[found((*CAR, 0.9))] * 3, step_s=5) == [[1]] * 3


def test_class_that_flickers_continues_its_track_and_the_majority_is_its_class() -> None:
    tracker = Tracker()
    frames = [found((*CAR, 0.9, label)) for label in (0, 0, 1, 0, 1, 1, 0)]
    followed = [tracker.follow(frame, number * FRAME_S) for number, frame in enumerate(frames)]
    assert [ids.tolist() for ids, _ in followed] == [[1]] * 7
    assert [classes.tolist() for _, classes in followed] == [[0]] * 7
    assert tracker.follow(found((*FAR, 0.9, 1)), 7 * FRAME_S)[1].tolist() == [1]  # its own without a track


def test_other_class_needs_much_overlap() -> None:
    beside = (CAR[0] + 20, *CAR[1:])  # overlap 1/3
    frames = [found((*CAR, 0.9, 0))] * 2 + [found((*beside, 0.9, 1))] * 2
    assert follow(Tracker(TrackConfig(enlarge=0)), *frames) == [[1], [1], [-1], [2]]
    assert follow(Tracker(TrackConfig(class_agnostic=True)), *frames) == [[1], [1], [1], [1]]
    same_place = [found((*CAR, 0.9, label)) for label in (0, 0, 1, 1)]
    assert follow(Tracker(TrackConfig(match_class=1)), *same_place) == [[1], [1], [-1], [2]]


def test_object_of_two_classes_at_one_place_keeps_two_tracks() -> None:
    both = found((*CAR, 0.9, 0), (*CAR, 0.8, 1))
    assert follow(Tracker(), both, both, both) == [[1, 2]] * 3


@pytest.mark.parametrize("step_px", [5.0, 12.0, 15.0])
def test_small_fast_object_is_followed(step_px: float) -> None:
    frames = [found((50 + number * step_px, 100, 10, 10, 0.9)) for number in range(12)]
    assert follow(Tracker(), *frames) == [[1]] * 12
    others = [found((*FAR, 0.9))] + [found((*FAR, 0.9), (50 + n * step_px, 100, 10, 10, 0.9)) for n in range(6)]
    assert follow(Tracker(), *others) == [[1], [1, -1], *[[1, 2]] * 5]  # seen for the first time in a later frame


def test_box_of_another_size_nearby_is_not_taken_for_the_object() -> None:
    frames = [found((*CAR, 0.9))] * 3 + [found((CAR[0] + 60, CAR[1], 90, 90, 0.9))] * 2
    assert follow(Tracker(), *frames) == [[1], [1], [1], [-1], [2]]


@pytest.mark.parametrize("fps", [25.0, 29.97, 30.0, 59.94])
@pytest.mark.parametrize("start", [0, 7, 100, 12345])
def test_gap_of_exactly_the_buffer_is_matched_at_any_rate_and_start(fps: float, start: int) -> None:
    tracker, car = Tracker(), found((*CAR, 0.9))
    for number in (start, start + 1, start + 2):
        tracker.update(car, number / fps)
    gap = round(fps)  # one second
    for number in range(3, 2 + gap):
        tracker.update(found(), (start + number) / fps)
    assert tracker.update(car, (start + 2 + gap) / fps).tolist() == [1]


@pytest.mark.parametrize("fps", [5.0, 29.97, 30.0, 60.0])
@pytest.mark.parametrize(("num_more", "track_id"), [(0, 1), (1, -1)])
def test_buffer_counts_the_frames_without_the_object(fps: float, num_more: int, track_id: int) -> None:
    tracker, car, nothing = Tracker(), found((*CAR, 0.9)), found()
    for number in range(3):
        tracker.update(car, number / fps)
    num_missed = round(fps) + num_more
    for number in range(3, 3 + num_missed):
        tracker.update(nothing, number / fps)
    assert tracker.update(car, (3 + num_missed) / fps).tolist() == [track_id]


@pytest.mark.parametrize("gap_s", [2.0, 3600.0, 86400.0])
def test_track_does_not_survive_a_gap_without_frames(gap_s: float) -> None:
    tracker, car = Tracker(), found((*CAR, 0.9))
    for number in range(3):
        assert tracker.update(car, number * FRAME_S).tolist() == [1]
    assert tracker.update(car, gap_s).tolist() == [-1]
    assert tracker.update(car, gap_s + FRAME_S).tolist() == [2]


def test_predicted_box_keeps_a_size_of_at_least_zero() -> None:
    filters = BoxFilters()
    filters.add(np.array([[50.0, 50, 30, 20]]))
    filters.speeds[0] = (1, 0, -40, -3)
    for _ in range(5):
        filters.predict(FRAME_S)
        assert (filters.places[:, 2:] >= 0).all()
    np.testing.assert_allclose(filters.places[0], (55, 50, 30, 5))


def test_tracks_move_with_the_camera() -> None:
    tracker = Tracker(TrackConfig(enlarge=0))
    for number in range(3):
        tracker.update(found((*CAR, 0.9)), number * FRAME_S)
    moved = found((CAR[0] * 1.1 + 60, CAR[1] * 1.1 - 30, CAR[2] * 1.1, CAR[3] * 1.1, 0.9))
    motion = np.array([[1.1, 0, 60], [0, 1.1, -30]])
    assert tracker.follow(moved, 3 * FRAME_S, motion)[0].tolist() == [1]
    assert Tracker(TrackConfig(enlarge=0)).follow(moved, 0.0, motion)[0].tolist() == [1]  # nothing to move yet


def test_warp_agrees_with_the_warped_state() -> None:
    filters, angle = BoxFilters(), 0.3
    filters.add(np.array([[50.0, 60, 20, 40]]))
    filters.speeds[0] = (2, -1, 0.5, 0)
    variances = filters.variances.copy()
    turn = 1.2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    filters.warp(np.hstack([turn, [[7.0], [-3.0]]]))
    np.testing.assert_allclose(filters.places[0], [*(turn @ (50, 60) + (7, -3)), 24, 48])
    np.testing.assert_allclose(filters.speeds[0], [*(turn @ (2, -1)), 0.6, 0])
    np.testing.assert_allclose(filters.variances, 1.44 * variances)


def test_restart_is_the_initialisation_from_two_points() -> None:
    filters = BoxFilters()
    filters.add(np.array([[50.0, 60, 20, 40]]))
    filters.restart(np.array([0]), np.array([[62.0, 60, 20, 40]]), 2 * FRAME_S)
    np.testing.assert_allclose(filters.places[0], (62, 60, 20, 40))
    np.testing.assert_allclose(filters.speeds[0], (6, 0, 0, 0))
    noise = np.array([1.0, 4, 1, 4])  # (side / 20) ** 2
    np.testing.assert_allclose(filters.variances[0], np.stack([noise, noise / 2, 2 * noise / 4], axis=1))


def test_each_class_can_have_its_own_threshold() -> None:
    tracker = Tracker(TrackConfig(class_high=(0.8, 0.2), low=0.1))
    assert tracker.update(found((*CAR, 0.7, 0), (*FAR, 0.3, 1)), 0).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="a score for each of 2 classes, got 1"):
        Tracker(TrackConfig(class_high=(0.8,))).update(found((*CAR, 0.7)), 0)


def test_speed_is_per_second_with_uneven_frames() -> None:
    tracker, times = Tracker(), np.cumsum([0, 1, 1, 1, 1, 1, 1, 4, 1, 6, 2]) * FRAME_S
    for time_s in times:  # 300 pixels a second: 60 in six frames, which is more than the box is wide
        ids = tracker.update(found((50 + 300 * time_s, 100, 40, 40, 0.9)), float(time_s))
        assert ids.tolist() == [1]


def test_time_that_does_not_advance_counts_as_zero_and_nan_is_refused() -> None:
    tracker, car = Tracker(), found((*CAR, 0.9))
    assert [tracker.update(car, time_s).tolist() for time_s in (1.0, 1.0, 0.5, 1.1)] == [[1]] * 4
    with pytest.raises(ValueError, match="a finite time_s, got nan"):
        tracker.update(car, float("nan"))


def test_empty_frames_and_boxes_without_area_are_accepted() -> None:
    point = found((100, 100, 0, 0, 0.9))
    assert follow(Tracker(), found(), point, point, found()) == [[], [-1], [-1], []]


@pytest.mark.parametrize(
    "settings",
    [{"low": 0.7}, {"new": 0.5}, {"match": 1.2}, {"buffer_s": -1}, {"class_high": (2.0,)}, {"buffer_s": float("nan")}],
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="TrackConfig: expected"):
        TrackConfig(**settings)  # type: ignore[arg-type]  # some are of another type


def test_selected_detections_are_certain() -> None:
    config = TrackConfig.of(SelectConfig(confidence=0.4, class_agnostic=True))
    assert (config.high, config.low, config.new, config.class_agnostic) == (0.4, 0.1, 0.4, True)
    assert config.widened(SelectConfig(confidence=0.4, iou=0.5)) == SelectConfig(confidence=0.1, iou=0.5)
    config = TrackConfig.of(SelectConfig(class_confidence=(0.05, 0.5)))
    assert (config.low, config.class_high) == (0.05, (0.05, 0.5))
    assert config.widened(SelectConfig(class_confidence=(0.05, 0.5))) == SelectConfig(confidence=0.05)


# --- a drawn scene: objects that cross, occlude each other and shake -----------------------------------------------


def scene(num_frames: int = 200, seed: int = 3) -> list[tuple[Detections, list[int]]]:
    """Frames with the number of the object behind each detection, -1 for false ones.

    Twelve objects go back and forth on lanes that cross. What a nearer one (a higher number) covers is found with a
    score that falls with what is left of it; from 80 % on it is not found at all.
    """
    random = np.random.default_rng(seed)
    start = random.uniform((60, 60), (580, 420), (12, 2))
    speed = random.uniform(1, 5, (12, 2)) * random.choice([-1, 1], (12, 2))
    size = random.uniform(30, 60, (12, 2))
    frames = []
    for number in range(num_frames):
        place = start + number * speed
        span = np.array([540, 380])
        place = 50 + span - np.abs((place - 50) % (2 * span) - span)  # back and forth
        rows, owners = [], []
        for index in range(12):
            hidden = 0.0
            for other in range(index + 1, 12):
                sides = np.minimum(place[index] + size[index] / 2, place[other] + size[other] / 2) - np.maximum(
                    place[index] - size[index] / 2, place[other] - size[other] / 2
                )
                hidden = max(hidden, float(sides.clip(min=0).prod() / size[index].prod()))
            if hidden < 0.8 and random.random() > 0.03:
                seen = np.concatenate([place[index], size[index]]) + random.normal(0, 1, 4)
                rows.append((*seen, 0.9 * (1 - hidden)))
                owners.append(index)
        for _ in range(random.poisson(0.5)):
            rows.append((*random.uniform((50, 50, 20, 20), (590, 430, 60, 60)), random.uniform(0.1, 0.5)))
            owners.append(-1)
        order = sorted(range(len(rows)), key=lambda row: -rows[row][4])
        frames.append((found(*(rows[row] for row in order)), [owners[row] for row in order]))
    return frames


def count_switches(frames: list[tuple[Detections, list[int]]], all_ids: list[list[int]]) -> int:
    """Return how often an object changes its id."""
    last: dict[int, int] = {}
    num_switches = 0
    for (_, owners), ids in zip(frames, all_ids, strict=True):
        for owner, track_id in zip(owners, ids, strict=True):
            if owner >= 0 and track_id > 0:
                num_switches += last.setdefault(owner, track_id) != track_id
                last[owner] = track_id
    return num_switches


def test_objects_that_cross_and_hide_each_other_keep_their_ids() -> None:
    scenes = [scene(seed=seed) for seed in range(3)]
    num_switches, num_tracked = {}, {}
    for low in (0.1, 0.6):  # with uncertain detections and without
        ids_of = [follow(Tracker(TrackConfig(low=low)), *(seen for seen, _ in frames)) for frames in scenes]
        rows = [
            (owner, track_id)
            for frames, all_ids in zip(scenes, ids_of, strict=True)
            for (_, owners), ids in zip(frames, all_ids, strict=True)
            for owner, track_id in zip(owners, ids, strict=True)
            if track_id > 0
        ]
        num_tracked[low] = sum(owner >= 0 for owner, _ in rows)
        assert len(rows) - num_tracked[low] <= 1  # of about 300 false detections
        num_switches[low] = sum(map(count_switches, scenes, ids_of))
    num_found = sum(owner >= 0 for frames in scenes for _, owners in frames for owner in owners)
    # Found here: 4 and 9 switches of 36 objects that cross all the time; 98 % and 94 % of what is found is in tracks.
    assert num_switches[0.1] <= 5 < num_switches[0.6]
    assert num_tracked[0.1] > 0.97 * num_found > num_tracked[0.6]


# --- many videos ---------------------------------------------------------------------------------------------------


def frame(video: VideoSource, index: int, detections: Detections | None, time_s: float | None = None) -> Prediction:
    origin = FrameOrigin(video, index, time_s, 10.0)
    return Prediction(ImageSource(video.name, frame=origin), detections)


def test_each_video_has_its_own_tracks_and_untracked_detections_are_dropped() -> None:
    videos, cars = [VideoSource("a"), VideoSource("a")], found((*CAR, 0.9), (*FAR, 0.2))
    tracks = VideoTracks()
    for video in videos:
        for index in range(3):
            followed = tracks.follow(frame(video, index, cars))
            assert followed.track_ids is not None
            assert followed.track_ids.tolist() == [1]
            assert followed.detections is not None
            assert len(followed.detections) == 1
    unread = frame(videos[0], 3, None)
    assert tracks.follow(unread) is unread
    with pytest.raises(ValueError, match=r"got the image x\.jpg"):
        tracks.follow(Prediction(ImageSource("x.jpg"), cars))


def test_certain_detections_without_a_track_are_counted_or_kept() -> None:
    video, frames = VideoSource("a"), [found((*CAR, 0.9)), found((*CAR, 0.9), (*FAR, 0.8), (300, 100, 30, 30, 0.2))]
    tracks, keeping = VideoTracks(), VideoTracks(keep_untracked=True)
    for index, detections in enumerate(frames):
        left, kept = (each.follow(frame(video, index, detections)) for each in (tracks, keeping))
    assert tracks.num_left_out == {"a": 1}
    assert keeping.num_left_out == {}
    assert left.track_ids is not None
    assert kept.track_ids is not None
    assert (left.track_ids.tolist(), kept.track_ids.tolist()) == ([1], [1, -1])


def test_tracks_of_parallel_live_sources_do_not_mix() -> None:
    cameras, tracks = [VideoSource(f"camera:{n}", camera=n) for n in range(2)], VideoTracks()
    for index in range(6):
        for number, camera in enumerate(cameras):
            place = CAR if (index + number) % 2 == 0 else FAR  # no track would survive both
            seen = found((*(CAR if number == 0 else FAR), 0.9)) if index < 4 else found((*place, 0.9))
            followed = tracks.follow(frame(camera, index, seen, index * 0.1))
            assert followed.track_ids is not None
            if index < 4:
                assert followed.track_ids.tolist() == [1]


def test_frame_without_a_time_uses_its_number() -> None:
    video, tracks = VideoSource("stdin"), VideoTracks()
    car = found((*CAR, 0.9))
    tracks.follow(frame(video, 0, car))
    tracks.follow(frame(video, 1, car))
    tracks.follow(frame(video, 2, found()))
    kept = tracks.follow(frame(video, 10, car)).track_ids  # 0.9 seconds after it was seen
    assert kept is not None
    assert kept.tolist() == [1]


def test_image_source_is_refused_by_name() -> None:
    require_videos([VideoSource("a.mp4", Path("a.mp4"))])
    with pytest.raises(ConfigError, match=r"got the image b\.jpg; give videos only"):
        require_videos([VideoSource("a.mp4", Path("a.mp4")), ImageSource("b.jpg", Path("b.jpg"))])
