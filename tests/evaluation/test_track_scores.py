from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detector.evaluation.track_scores import TrackFrame, TrackScores, box_overlaps, score_tracks


def boxes(*centres: tuple[float, float], side: float = 20.0) -> np.ndarray:
    return np.array([[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for x, y in centres]).reshape(-1, 4)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def drawn(seed: int, num_frames: int = 40) -> list[TrackFrame]:
    """Objects on straight lines; tracks with noise, misses, false boxes and exchanged ids."""
    random, frames = np.random.default_rng(seed), []
    start, step = random.uniform(0, 300, (8, 2)), random.uniform(-6, 6, (8, 2))
    names = random.permutation(8) + 10
    for number in range(num_frames):
        if random.random() < 0.2:
            first, second = random.choice(8, 2, replace=False)
            names[[first, second]] = names[[second, first]]
        if random.random() < 0.1:
            names[random.integers(8)] = 100 + number
        centres = start + number * step
        is_there, is_found = random.random(8) < 0.9, random.random(8) < 0.85
        noisy = boxes(*centres) + random.normal(0, 2.5, (8, 4))
        false = boxes(*random.uniform(0, 300, (random.poisson(0.5), 2)))
        frames.append(
            TrackFrame(
                np.flatnonzero(is_there) * 3,
                np.concatenate([names[is_found], 1000 + np.arange(len(false))]).astype(np.int64),
                boxes(*centres)[is_there],
                np.concatenate([noisy[is_found], false]),
            )
        )
    frames[5] = dataclasses.replace(frames[5], track_ids=ids(), track_xyxy=boxes())
    frames[7] = TrackFrame(ids(), ids(), boxes(), boxes())
    return frames


def by_trackeval(frames: list[TrackFrame]) -> TrackScores:
    metrics = pytest.importorskip("trackeval").metrics
    true_all, track_all = (
        np.unique(np.concatenate([getattr(f, name) for f in frames])) for name in ("true_ids", "track_ids")
    )
    data = {
        "num_timesteps": len(frames),
        "gt_ids": [np.searchsorted(true_all, f.true_ids) for f in frames],
        "tracker_ids": [np.searchsorted(track_all, f.track_ids) for f in frames],
        "similarity_scores": [box_overlaps(f.true_xyxy, f.track_xyxy) for f in frames],
        "num_gt_ids": len(true_all),
        "num_tracker_ids": len(track_all),
        "num_gt_dets": sum(len(f.true_ids) for f in frames),
        "num_tracker_dets": sum(len(f.track_ids) for f in frames),
    }
    hota = metrics.HOTA().eval_sequence(data)
    clear = metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
    identity = metrics.Identity({"PRINT_CONFIG": False}).eval_sequence(data)
    hota_mean, detection_mean, association_mean = (float(hota[name].mean()) for name in ("HOTA", "DetA", "AssA"))
    return TrackScores(
        hota_mean,
        detection_mean,
        association_mean,
        idf1=float(identity["IDF1"]),
        mota=float(clear["MOTA"]),
        num_switches=int(clear["IDSW"]),
        num_false=int(clear["CLR_FP"]),
        num_missed=int(clear["CLR_FN"]),
        num_true=sum(len(f.true_ids) for f in frames),
    )


@pytest.mark.parametrize("seed", range(6))
def test_scores_equal_trackeval(seed: int) -> None:
    frames = drawn(seed)
    ours, theirs = score_tracks(frames), by_trackeval(frames)
    np.testing.assert_allclose(list(ours.to_plain().values()), list(theirs.to_plain().values()), rtol=1e-12)


# Computed by TrackEval 1.3.0.
STORED = {
    0: (
        0.2967705820930312,
        0.4744136094629048,
        0.18726913669705267,
        0.4101633393829401,
        0.5467625899280576,
        21,
        50,
        55,
        278,
    ),
    1: (
        0.37132055586475143,
        0.4929543294100416,
        0.2808564705339356,
        0.5545927209705372,
        0.5767918088737202,
        13,
        51,
        60,
        293,
    ),
}


@pytest.mark.parametrize("seed", STORED)
def test_scores_equal_the_stored_numbers_of_trackeval(seed: int) -> None:
    np.testing.assert_allclose(list(score_tracks(drawn(seed)).to_plain().values()), STORED[seed], rtol=1e-9)


def test_perfect_tracks_score_one_and_no_tracks_zero() -> None:
    frames = [TrackFrame(ids(4, 9), ids(1, 2), boxes((20, 20), (90, 90)), boxes((20, 20), (90, 90)))] * 5
    perfect = score_tracks(frames)
    assert (perfect.hota, perfect.idf1, perfect.mota, perfect.num_switches) == (1.0, 1.0, 1.0, 0)
    nothing = score_tracks([dataclasses.replace(f, track_ids=ids(), track_xyxy=boxes()) for f in frames])
    assert (nothing.hota, nothing.idf1, nothing.mota, nothing.num_missed) == (0.0, 0.0, 0.0, 10)
    assert score_tracks([]).num_true == 0


def test_id_that_occurs_twice_in_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frame 0: expected each id once, got \[3, 3\]"):
        score_tracks([TrackFrame(ids(3, 3), ids(), boxes((1, 1), (9, 9)), boxes())])
