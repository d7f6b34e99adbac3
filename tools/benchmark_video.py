"""Benchmark of a video end to end: decode, detect, draw and encode at once, against these stages one by one.

    python tools/benchmark_video.py best.safetensors --size 640x360 --frames 300 --rounds 3
    python tools/benchmark_video.py best.safetensors --soak 5000

Two cores allow 2 / (core-seconds of all stages per frame) frames per second. In each round, every stage runs alone over
the same frames, on one thread, and its processor time is measured. Then the pipeline runs, and its wall time is
measured. Both alternate, so that a change in the speed of the machine affects both. The second form runs the pipeline
for long and prints how memory and open files grew after the first fifth.

The source is drawn: discs that drift over a bright background, like blood cells under a microscope.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from detector.inference.pipeline import Pipeline, Result
from detector.inference.prediction_run import draw
from detector.inference.predictor import Prediction, Predictor
from detector.media.sources import ImageSource, Source, VideoSource
from detector.media.video import opencv_threads, video_frames
from detector.media.writers import PictureWriter
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import build_predictor, load_model

STAGES = ("decode", "detect", "draw", "encode")


def draw_video(path: Path, num_frames: int, size_wh: tuple[int, int], fps: float = 25.0, seed: int = 0) -> Path:
    """Draw a video in MPEG-4 of a size (width, height), with moving discs; return its path."""
    rng, (width, height) = np.random.default_rng(seed), size_wh
    num_discs = 16
    start_xy, step_xy = rng.uniform((0, 0), (width, height), (num_discs, 2)), rng.uniform(-1.5, 1.5, (num_discs, 2))
    radius = rng.uniform(0.07, 0.11, num_discs) * height
    ground = np.clip(rng.normal((225, 215, 228), 4, (height, width, 3)), 0, 255).astype(np.uint8)  # BGR
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_wh)
    for number in range(num_frames):
        frame = ground.copy()
        for (x, y), r in zip((start_xy + number * step_xy) % (width, height), radius, strict=True):
            cv2.circle(frame, (int(x), int(y)), int(r), (160, 140, 205), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(frame, (int(x), int(y)), int(r * 0.5), (190, 175, 222), cv2.FILLED, cv2.LINE_AA)
        writer.write(frame)
    writer.release()
    return path


def core_seconds(work: Callable[[], None]) -> float:
    """Return the processor time of some work, of all threads of this process."""
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def written(pictures: PictureWriter, result: Result) -> Result:
    """Add the picture of a result to its video; a stage of the pipeline."""
    if result.picture is not None:
        pictures.write(result.prediction.source, result.picture)
    return result


def stages_alone(
    predictor: Predictor, select: SelectConfig, video: Path, folder: Path, batch_size: int
) -> dict[str, float]:
    """Return the core-seconds of each stage over all frames of a video, one stage after the other."""
    frames: list[ImageSource] = []
    results: list[Result] = []
    pictures = PictureWriter(folder)

    def detect() -> None:
        for start in range(0, len(frames), batch_size):
            batch = frames[start : start + batch_size]
            found = predictor.detect([frame.pixels for frame in batch if frame.pixels is not None], select)
            pairs = zip(batch, found, strict=True)
            results.extend(Result(Prediction(frame, one, None, frame.pixels)) for frame, one in pairs)

    def drawn() -> None:
        results[:] = [draw(result) for result in results]

    def encode() -> None:
        for result in results:
            written(pictures, result)
        pictures.close()

    def decode() -> None:
        frames.extend(video_frames(VideoSource(str(video), video)))

    with opencv_threads(1):
        return {name: core_seconds(work) for name, work in zip(STAGES, (decode, detect, drawn, encode), strict=True)}


def pipelined(
    predictor: Predictor,
    select: SelectConfig,
    sources: Sequence[Source],
    folder: Path,
    batch_size: int,
    watch: Callable[[int], None] = lambda n: None,
) -> tuple[int, int, float, float]:
    """Return frames, detections, wall seconds and core-seconds of the pipeline; call `watch` with the frames done."""
    pictures = PictureWriter(folder)
    num_frames = num_found = 0
    started_s, started_core_s = time.perf_counter(), time.process_time()
    stages = {"drawing": draw, "writing": lambda result: written(pictures, result)}
    with Pipeline(predictor, select, sources, stages=stages, batch_size=batch_size) as results:
        for result in results:
            num_frames += 1
            num_found += 0 if result.prediction.detections is None else len(result.prediction.detections)
            watch(num_frames)
    pictures.close()
    return num_frames, num_found, time.perf_counter() - started_s, time.process_time() - started_core_s


def resident_mb() -> float:
    """Return the memory of this process in megabytes; Linux only."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def soak(
    predictor: Predictor, select: SelectConfig, video: Path, num_frames: int, folder: Path, batch_size: int
) -> None:
    """Run the pipeline over the same video again and again; print how memory and handles grew."""
    per_video = sum(1 for _ in video_frames(VideoSource(str(video), video)))
    sources = [VideoSource(str(video), video) for _ in range(-(-num_frames // per_video))]
    samples: list[tuple[int, float, int]] = []

    def watch(done: int) -> None:
        if done % 50 == 0 or done == len(sources) * per_video:
            samples.append((done, resident_mb(), len(os.listdir("/proc/self/fd"))))
        if done % per_video == 0:
            for written in folder.glob("*.mp4"):
                if time.time() - written.stat().st_mtime > 60:
                    written.unlink()

    done, _, wall_s, _ = pipelined(predictor, select, sources, folder, batch_size, watch)
    warm = [sample for sample in samples if sample[0] > done // 5]
    # The peaks at both ends, so that the place of a sample within a frame does not matter.
    num = max(1, len(warm) // 5)
    first, last = (max(mb for _, mb, _ in part) for part in (warm[:num], warm[-num:]))
    handles = [num for _, _, num in warm]
    print(
        f"soak: {done} frames in {wall_s:.0f} s, after the first fifth {last - first:+.2f} MB "
        f"({first:.1f} to {last:.1f} MB), handles {min(handles)} to {max(handles)}"
    )


def main() -> None:
    """Draw the source, run the requested measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--size", default="640x360", help="size of the source, WIDTHxHEIGHT")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument(
        "--batch", type=int, default=2, help="frames in a batch, in the stage alone and in the pipeline"
    )
    parser.add_argument("--soak", type=int, metavar="N", help="frames to run for, instead of the table")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the videos in this folder")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    loaded = load_model(options.weights)
    predictor, select = build_predictor(loaded, options.batch), loaded.config.predict
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        video, folder = folder / "source.mp4", folder / "annotated"
        folder.mkdir(parents=True, exist_ok=True)
        draw_video(video, options.frames, (width, height))
        torch.set_num_threads(options.cores)
        if options.soak:
            soak(predictor, select, video, options.soak, folder, options.batch)
            return
        sources: list[Source] = [VideoSource(str(video), video)]
        pipelined(predictor, select, sources, folder, options.batch)  # not counted
        rounds = []
        for _ in range(options.rounds):
            torch.set_num_threads(1)
            alone = stages_alone(predictor, select, video, folder, options.batch)
            torch.set_num_threads(options.cores)
            rounds.append((alone, pipelined(predictor, select, sources, folder, options.batch)))
    num_frames, num_found = rounds[0][1][:2]
    canvas = " x ".join(map(str, predictor.input.canvas_hw))
    print(f"{width} x {height} source, {num_frames} frames, network at {canvas}, batches of {options.batch}, ", end="")
    print(
        f"{platform.machine()}, {num_found / num_frames:.1f} detections a frame, medians of {options.rounds} rounds\n"
    )
    print("| stage | core-ms per frame |\n|---|---|")
    per_stage = {n: statistics.median(alone[n] for alone, _ in rounds) / num_frames * 1000 for n in STAGES}
    for name, milliseconds in per_stage.items():
        print(f"| {name} | {milliseconds:.2f} |")
    print(f"| all, one by one | {sum(per_stage.values()):.2f} |")
    within = statistics.median(core_s for _, (_, _, _, core_s) in rounds) / num_frames * 1000
    print(f"| all, at once | {within:.2f} |\n")
    rate = num_frames / statistics.median(wall_s for _, (_, _, wall_s, _) in rounds)
    shares = [(num / wall_s) / (options.cores / (sum(alone.values()) / num)) for alone, (num, _, wall_s, _) in rounds]
    busy = [core_s / (options.cores * wall_s) for _, (_, _, wall_s, core_s) in rounds]
    allowed, share = options.cores * 1000 / sum(per_stage.values()), statistics.median(shares)
    print(f"{rate:.1f} frames/s end to end of {allowed:.1f} that {options.cores} cores allow: {share:.3f}")
    print(f"against the core-seconds of the pipeline itself: {statistics.median(busy):.3f}")


if __name__ == "__main__":
    main()
