"""Benchmark of the tracker on drawn scenes with known tracks: HOTA, IDF1, switches and time per frame.

    python tools/benchmark_tracking.py                    # every scene, 4 seeds
    python tools/benchmark_tracking.py --scenes small,jerk --seeds 2
    python tools/benchmark_tracking.py --motion           # with compensation of the camera's motion
    python tools/benchmark_tracking.py --times 100,500    # time per frame of so many objects, on one thread

A scene is a function of its name and seed: objects on straight paths that turn back at the edges, what a detector
reports of them (noise, misses, scores that fall with occlusion, false boxes, wrong classes), and the camera. The scores
are those of TrackEval (`detector.evaluation.track_scores`); `best` is the HOTA of the same boxes with their true ids.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch

from detector.evaluation.track_scores import TrackFrame, TrackScores, score_tracks
from detector.inference.tracking import TrackConfig, Tracker
from detector.media.camera_motion import CameraMotion
from detector.structures.types import Detections

Float64s = npt.NDArray[np.float64]
CLASSES = ("car", "bus", "van")
SETTINGS = TrackConfig(high=0.25, low=0.1, new=0.25)


@dataclass(frozen=True)
class Scene:
    """Settings of a scene; lengths in pixels, speeds in pixels per frame at 30 frames per second.

    Attributes:
        image_hw: height and width of the picture.
        num_objects: objects at the same time.
        side: least and largest side of a box.
        speed: least and largest speed.
        seconds: duration.
        every: only every n-th frame is seen.
        jitter: standard deviation of each edge, relative to the side of the box.
        miss: share of boxes that are not found.
        false: false boxes per frame.
        flips: share of boxes with a wrong class.
        drops: share of frames that are missing.
        hides: true if nearer objects hide others.
        lives_s: mean time between entry and exit, 0 for objects that stay.
        shake: standard deviation of the camera's place in each frame.
        jerk: jump of the camera once a second.
        gap_s: each object is away for this time, every 3 seconds.
    """

    image_hw: tuple[int, int] = (720, 1280)
    num_objects: int = 16
    side: tuple[float, float] = (40, 90)
    speed: tuple[float, float] = (1, 5)
    seconds: float = 8.0
    every: int = 1
    jitter: float = 0.02
    miss: float = 0.03
    false: float = 0.5
    flips: float = 0.0
    drops: float = 0.0
    hides: bool = True
    lives_s: float = 0.0
    shake: float = 0.0
    jerk: float = 0.0
    gap_s: float = 0.0


CROWD = Scene(image_hw=(480, 640), num_objects=14, side=(30, 60))
SCENES = {
    "easy": Scene(miss=0.0, false=0.0, hides=False),
    "plain": Scene(),
    "crowd": CROWD,
    "class flips 10 %": replace(CROWD, flips=0.1),
    "misses 20 %": replace(CROWD, miss=0.2),
    "jitter 6 %": replace(CROWD, jitter=0.06),
    "false boxes": replace(CROWD, false=6.0),
    "gaps of 0.5 s": replace(CROWD, gap_s=0.5),
    "gaps of 1 s": replace(CROWD, gap_s=1.0),
    "small, 5-12 px per frame": Scene(side=(8, 14), speed=(5, 12), num_objects=20, jitter=0.05),
    "small, slow": Scene(side=(8, 14), speed=(0.5, 2), num_objects=30, jitter=0.05),
    "fast": Scene(speed=(10, 25)),
    "5 fps": replace(CROWD, every=6, seconds=24.0, speed=(0.5, 3)),
    "5 fps fast": Scene(every=6, seconds=24.0, speed=(3, 8)),
    "dropped frames 30 %": replace(CROWD, drops=0.3),
    "entries and exits": Scene(num_objects=24, lives_s=2.5),
    "jerk 60 px every second": Scene(jerk=60.0),
    "shake 8 px": Scene(shake=8.0),
    "all at once": Scene(
        num_objects=40, side=(10, 60), speed=(1, 10), miss=0.15, jitter=0.05, false=3.0, flips=0.1, drops=0.1,
        lives_s=3.0, shake=3.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SceneFrame:
    """One frame of a scene.

    Attributes:
        time_s: its time.
        true_ids: int64 (G,).
        true_xyxy: float64 (G, 4).
        detections: what the detector reports.
        owners: the true id behind each detection, int64 (N,), -1 for false ones.
        camera_xy: place of the camera, pixels.
    """

    time_s: float
    true_ids: npt.NDArray[np.int64]
    true_xyxy: Float64s
    detections: Detections
    owners: npt.NDArray[np.int64]
    camera_xy: Float64s


def back_and_forth(places: Float64s, span: Float64s) -> Float64s:
    """Return places that turn back at 0 and at the span."""
    return span - np.abs(places % (2 * span) - span)


def hidden_shares(xyxy: Float64s) -> Float64s:
    """Return the largest share of each box, float64 (N,), that a later box covers."""
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    area = (xyxy[:, 2:] - xyxy[:, :2]).prod(1)
    shares: Float64s = np.triu((high - low).clip(0).prod(2) / area[:, None], 1).max(1)
    return shares


def draw_scene(scene: Scene, seed: int) -> list[SceneFrame]:
    """Return the frames of a scene."""
    random = np.random.default_rng(seed)
    num, hw = scene.num_objects, scene.image_hw
    span = np.array([hw[1], hw[0]], np.float64)
    starts = random.uniform(0, 1, (num, 2)) * span
    angles = random.uniform(0, 2 * np.pi, num)
    speeds = random.uniform(*scene.speed, (num, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sides = random.uniform(*scene.side, (num, 1)) * random.uniform(0.8, 1.25, (num, 2))
    labels, phases = random.integers(0, len(CLASSES), num), random.uniform(0, 3, num)
    births = random.uniform(0, max(scene.lives_s, 0.001), num)
    camera, frames = np.zeros(2), []
    for number in range(0, round(scene.seconds * 30), scene.every):
        time_s = number / 30
        if scene.jerk and number and number % 30 == 0:
            angle = random.uniform(0, 2 * np.pi)
            camera = camera + scene.jerk * np.array([np.cos(angle), np.sin(angle)])
        seen_from = camera + random.normal(0, scene.shake, 2)
        if random.random() < scene.drops and number:
            continue
        centres = back_and_forth(starts + number * speeds, span) - seen_from
        lives = np.floor((time_s + births) / scene.lives_s).astype(int) if scene.lives_s else np.zeros(num, int)
        # An object comes back elsewhere, as another one.
        moved = np.where(lives[:, None] > 0, back_and_forth(centres + lives[:, None] * (331.0, 173.0), span), centres)
        xyxy = np.concatenate([moved - sides / 2, moved + sides / 2], axis=1)
        is_there = (time_s + phases) % 3 >= scene.gap_s
        true_ids = np.arange(num) + num * lives
        detections, rows = seen_boxes(scene, random, xyxy, labels, is_there)
        owners = np.where(rows >= 0, true_ids[rows], -1)
        frames.append(SceneFrame(time_s, true_ids, xyxy, detections, owners, seen_from))
    return frames


def seen_boxes(
    scene: Scene,
    random: np.random.Generator,
    xyxy: Float64s,
    labels: npt.NDArray[np.int64],
    is_there: npt.NDArray[np.bool_],
) -> tuple[Detections, npt.NDArray[np.int64]]:
    """Return what a detector reports of the objects of one frame, and the object behind each box, -1 for none."""
    num, (height, width) = len(xyxy), scene.image_hw
    hidden = hidden_shares(xyxy) if scene.hides else np.zeros(num)
    is_found = is_there & (hidden < 0.8) & (random.random(num) >= scene.miss)
    scores = (0.92 * (1 - hidden) + random.normal(0, 0.03, num)).clip(0.01, 0.99)
    sides = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)
    noisy = xyxy + random.normal(0, scene.jitter, (num, 4)) * sides
    seen_as = np.where(random.random(num) < scene.flips, (labels + 1) % len(CLASSES), labels)
    num_false = random.poisson(scene.false)
    corners = random.uniform((0, 0), (width, height), (num_false, 2))
    false = np.concatenate([corners, corners + random.uniform(*scene.side, (num_false, 2))], axis=1)
    boxes = np.concatenate([noisy[is_found], false])
    all_scores = np.concatenate([scores[is_found], random.uniform(0.1, 0.5, num_false)])
    all_labels = np.concatenate([seen_as[is_found], random.integers(0, len(CLASSES), num_false)])
    order = np.argsort(-all_scores)
    as_tensor = torch.from_numpy
    found = Detections(
        as_tensor(boxes[order]).float(),
        as_tensor(all_scores[order]).float(),
        as_tensor(all_labels[order]).long(),
        scene.image_hw,
        CLASSES,
        tuple(range(1, 1 + len(CLASSES))),
    )
    rows: npt.NDArray[np.int64] = np.concatenate([np.flatnonzero(is_found), np.full(num_false, -1)])[order]
    return found, rows


def background(seed: int = 0, side: int = 2048) -> npt.NDArray[np.uint8]:
    """Return a grey picture with details of several sizes, larger than any scene."""
    random = np.random.default_rng(seed)
    picture = np.zeros((side, side), np.float32)
    for scale in (4, 16, 64):
        noise = random.normal(0, 1, (side // scale, side // scale)).astype(np.float32)
        picture += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 40 * picture, 0, 255).astype(np.uint8)


def best_hota(frames: list[SceneFrame]) -> float:
    """Return the HOTA of the same boxes with their true ids."""
    rows = []
    for frame in frames:
        is_true = frame.owners >= 0
        boxes = frame.detections.source_xyxy.double().numpy()[is_true]
        rows.append(TrackFrame(frame.true_ids, frame.owners[is_true], frame.true_xyxy, boxes))
    return score_tracks(rows).hota


def seen_picture(picture: npt.NDArray[np.uint8], frame: SceneFrame) -> npt.NDArray[np.uint8]:
    """Return the part of a background, (H, W, 1), that the camera sees."""
    height, width = frame.detections.image_hw
    middle = (np.array(picture.shape[::-1]) - 1) / 2 + frame.camera_xy
    part = cv2.getRectSubPix(picture, (width, height), (float(middle[0]), float(middle[1])))
    return np.asarray(part, np.uint8)[..., None]


def track_scene(
    frames: list[SceneFrame], config: TrackConfig, picture: npt.NDArray[np.uint8] | None = None
) -> tuple[TrackScores, float]:
    """Return the scores of the tracks of a scene, and the median seconds per frame of the tracker.

    Args:
        frames: the scene.
        config: settings of tracking.
        picture: background from which the motion of the camera is estimated, or None to leave that out.
    """
    tracker, camera, rows, durations = Tracker(config), CameraMotion(), [], []
    for frame in frames:
        image = None if picture is None else seen_picture(picture, frame)
        started = time.perf_counter()
        motion = None if image is None else camera.add(image)
        ids = tracker.follow(frame.detections, frame.time_s, motion)[0]
        durations.append(time.perf_counter() - started)
        is_tracked = ids >= 0
        boxes = frame.detections.source_xyxy.double().numpy()[is_tracked]
        rows.append(TrackFrame(frame.true_ids, ids[is_tracked], frame.true_xyxy, boxes))
    return score_tracks(rows), statistics.median(durations)


def milliseconds_of(num_objects: int, repeats: int = 7) -> float:
    """Return the processor time per frame of many objects: the median over frames of the fastest repetition.

    Unlike the time of a clock, it does not count what other programs take.
    """
    frames = draw_scene(Scene(image_hw=(2160, 3840), num_objects=num_objects, seconds=2.0), seed=0)
    fastest = [float("inf")] * len(frames)
    for _ in range(repeats):
        tracker = Tracker(SETTINGS)
        for number, frame in enumerate(frames):
            started = time.thread_time()
            tracker.follow(frame.detections, frame.time_s)
            fastest[number] = min(fastest[number], time.thread_time() - started)
    return 1000 * statistics.median(fastest)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default=",".join(SCENES), help="names, or parts of names, with commas between them")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--times", metavar="N,N", help="print the time per frame of so many objects instead")
    parser.add_argument("--motion", action="store_true", help="compensate the motion of the camera")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.times:
        for number in map(int, arguments.times.split(",")):
            text = f"{number} objects: {milliseconds_of(number):.2f} ms per frame"
            print(f"{text}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        return
    names = [name for name in SCENES if any(word in name for word in arguments.scenes.split(","))]
    picture = background() if arguments.motion else None
    print(f"{'scene':28} {'HOTA':>6} {'best':>6} {'IDF1':>6} {'MOTA':>6} {'switches':>8} {'ms per frame':>12}")
    for name in names:
        scenes = [draw_scene(SCENES[name], arguments.first_seed + n) for n in range(arguments.seeds)]
        runs = [track_scene(frames, SETTINGS, picture) for frames in scenes]
        hota, idf1, mota = (100 * statistics.mean(getattr(s, key) for s, _ in runs) for key in ("hota", "idf1", "mota"))
        best = 100 * statistics.mean(map(best_hota, scenes))
        switches = statistics.mean(s.num_switches for s, _ in runs)
        milliseconds = 1000 * statistics.median(s for _, s in runs)
        print(
            f"{name:28} {hota:6.1f} {best:6.1f} {idf1:6.1f} {mota:6.1f} {switches:8.1f} {milliseconds:12.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
