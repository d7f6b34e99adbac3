"""Workers that die or hang, reduced decoding, and memory over many epochs."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from detector.data import worker_processes
from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.loader import BatchRange, LoaderConfig, SampleKey, StreamSampler, TrainingSamples, training_batches
from detector.errors import ConfigError, DetectorError
from detector.structures.canvas import Canvas
from detector.structures.types import Sample

ROOT = Path(__file__).parents[2]
CANVAS = Canvas((64, 64), 3, "letterbox")


def read(root: Path, split: str = "train") -> CocoAnnotations:
    return read_coco(root / f"annotations/{split}.json", root / "images" / split)


def sampler(num_samples: int, stop: int = 6) -> StreamSampler:
    return StreamSampler(num_samples, 4, 0, BatchRange(0, stop, closing_from=10**9))


# ---- workers


class DeadlySamples(TrainingSamples):
    """Samples of which one ends its worker or keeps it for ever."""

    deed: Any = None

    def __getitem__(self, key: SampleKey) -> Sample:
        if key.image_index == 5:
            self.deed()
        return super().__getitem__(key)


def deadly(annotations: CocoAnnotations, deed: Any) -> DeadlySamples:
    samples = DeadlySamples(annotations, CANVAS, AugmentConfig(), seed=0, cache_mb=16)
    samples.deed = deed
    return samples


@pytest.mark.parametrize(
    ("deed", "how"),
    [  # torch learns of the end from a signal or by asking, whichever comes first, and only then knows what it was
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed \(Killed\)|exited without a message"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"was killed \(Segmentation fault\)|exited without a message"),
        (lambda: os._exit(3), "exited without a message"),
    ],
    ids=["killed", "crashed", "exited"],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_worker_that_dies_is_reported_in_one_line_with_advice(deed: Any, how: str, tiny_shapes: Path) -> None:
    annotations = read(tiny_shapes)
    batches = training_batches(deadly(annotations, deed), sampler(12), LoaderConfig(4, workers=2, timeout_s=600))
    started_s = time.monotonic()
    with pytest.raises(DetectorError, match=rf"a worker of the loader, process \d+, ({how}), most often") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert "fewer loader.workers" in str(caught.value)
    assert time.monotonic() - started_s < 300  # it does not wait for the time limit


def test_a_worker_that_hangs_is_reported_after_the_timeout(tiny_shapes: Path) -> None:
    samples = deadly(read(tiny_shapes), lambda: time.sleep(3600))
    batches = training_batches(samples, sampler(12), LoaderConfig(4, workers=1, timeout_s=1))
    with pytest.raises(DetectorError, match=r"no batch from its 1 workers within 1 s; raise loader\.timeout_s"):
        list(batches)


def test_batches_are_the_same_bits_where_shared_memory_is_too_small(
    tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch, assert_same: Any
) -> None:
    samples = TrainingSamples(read(tiny_shapes), CANVAS, AugmentConfig(), seed=0, cache_mb=16)
    config = LoaderConfig(4, workers=1, timeout_s=60)
    expected = list(training_batches(samples, sampler(12, stop=3), config))
    free_bytes = 6 * 4 * 64 * 64 * 3  # four batches in the worker and two in this process
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))
    monkeypatch.setattr(worker_processes, "SHARED_MEMORY", tiny_shapes)
    with pytest.warns(RuntimeWarning, match="no room for the batches of 1 workers, 0 MB: they are sent through pipes"):
        batches = list(training_batches(samples, sampler(12, stop=3), config))
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.images.stride() == theirs.images.stride()
        assert not ours.images.is_shared()
        assert theirs.images.is_shared()
        for name in ("canvas_xyxy", "labels", "image_index", "ignore", "num_images"):
            assert_same(getattr(ours.targets, name), getattr(theirs.targets, name))
        assert_same(ours.images, theirs.images)
        assert (ours.image_ids, ours.skipped, ours.warnings) == (theirs.image_ids, theirs.skipped, theirs.warnings)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(training_batches(samples, sampler(12, stop=1), config))) == 1


@pytest.mark.parametrize(
    ("text", "start", "reason"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "fork",
            r"ran out of shared memory \(.* has 64 MB free\); give the container more \(docker run --shm-size=2g\)",
        ),
        ("unable to allocate shared memory(shm) for file </torch_7>", "fork", "ran out of shared memory"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "spawn", r"process 7, was killed \(Killed\), most"),
        (
            "DataLoader worker (pid 7) exited unexpectedly with exit code 1.",
            "spawn",
            r'a message of its own, above; .*start by spawn here, so .* below if __name__ == "__main__":',
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "fork", "process 7, 8, exited without a message, most"),
        ("a defect", "spawn", None),
    ],
)
def test_cause_of_a_lost_worker_is_named(
    text: str, start: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "start_method", lambda: start)
    monkeypatch.setattr(worker_processes, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64_000_000))
    found = worker_processes.lost_worker_reason(text)
    assert found is None if reason is None else re.search(reason, found or "")


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    ("script", "num_workers", "is_worker", "is_refused"),
    [
        ("train()", 2, False, True),
        ("train()", 0, False, False),
        ('if __name__ == "__main__":\n    train()', 2, False, False),
        (None, 2, False, False),  # a notebook or a shell
        ("train()", 0, True, True),
        ("__name__\ntrain()", 2, True, True),
    ],
)
def test_script_that_workers_would_run_again_is_refused(
    script: str | None,
    num_workers: int,
    is_worker: bool,
    is_refused: bool,
    start: str,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    main = SimpleNamespace() if script is None else SimpleNamespace(__file__=str(tmp_path / "script.py"))
    (tmp_path / "script.py").write_text(script or "", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(worker_processes, "start_method", lambda: start)
    if is_worker:
        monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    if is_refused and (start != "fork" or is_worker):
        with pytest.raises(
            ConfigError, match=rf'script\.py: each worker .* by {start} here; .* if __name__ == "__main'
        ):
            worker_processes.require_main_guard(num_workers)
    else:
        worker_processes.require_main_guard(num_workers)


def test_unguarded_script_under_spawn_ends_with_the_cause_and_leaves_no_run_folder(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    splits = {
        name: {"annotations": f"{tiny_shapes}/annotations/{name}.json", "images": f"{tiny_shapes}/images/{name}"}
        for name in ("train", "val")
    }
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "from detector import Detector\n"
        'multiprocessing.set_start_method("spawn", force=True)\n'
        f"data = {{'name': 'coco', **{splits!r}}}\n"
        "Detector('mish-n').train(data, loader={'workers': 1}, device='cpu')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "script.py: each worker of the loader runs the script again" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_an_error_of_another_type_is_raised_unchanged(tiny_shapes: Path) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    for workers in (0, 1):
        batches = training_batches(deadly(read(tiny_shapes), fail), sampler(12), LoaderConfig(4, workers=workers))
        with pytest.raises(RuntimeError, match="a defect") as caught:
            list(batches)
        assert not isinstance(caught.value, DetectorError)


def test_samples_are_pickled_without_cached_pixels(tiny_shapes: Path) -> None:
    samples = TrainingSamples(read(tiny_shapes), CANVAS, AugmentConfig(), seed=0, cache_mb=64)
    before = len(pickle.dumps(samples))
    for index in range(12):
        samples[SampleKey(0, index, False)]
    assert len(pickle.dumps(samples)) == before < 20_000


# ---- caches and reduced decoding


@pytest.fixture
def large(tiny_shapes: Path, tmp_path: Path) -> Path:
    """The tiny data set with images of 512 x 512 pixels: smooth, and white where the boxes are."""
    root = Path(shutil.copytree(tiny_shapes, tmp_path / "large"))
    content = json.loads((root / "annotations/train.json").read_text())
    for entry in content["images"]:
        entry["height"] = entry["width"] = 512
        picture = np.zeros((512, 512, 3), np.uint8)
        for box in content["annotations"]:
            if box["image_id"] == entry["id"]:
                box["bbox"] = [8 * value for value in box["bbox"]]
                x, y, w, h = (round(value) for value in box["bbox"])
                picture[y : y + h, x : x + w] = 255
        cv2.imwrite(str(root / "images/train" / entry["file_name"]), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
    (root / "annotations/train.json").write_text(json.dumps(content))
    return root


STILL = AugmentConfig(mosaic=0, scale=0, translate=0, flip_horizontal=0, hue=0, saturation=0, value=0)


@pytest.mark.parametrize(
    ("config", "canvas", "side"),
    [
        (STILL, 64, 64),  # an eighth
        (STILL, 65, 128),  # slightly more than an eighth: a quarter
        (replace(STILL, scale=0.5, mosaic=1.0), 64, 128),
        (replace(STILL, scale=0.5, mosaic=1.0), 192, 512),  # 0.375 x 1.5 is more than a half: whole
        (replace(STILL, crop=1.0), 64, 256),
    ],
)
def test_reduced_decoding_moves_no_box_and_loses_no_pixel_that_is_shown(
    config: AugmentConfig, canvas: int, side: int, large: Path
) -> None:
    annotations = read(large)

    def samples(reduced: bool) -> TrainingSamples:
        square = Canvas((canvas, canvas), 3, "letterbox")
        return TrainingSamples(annotations, square, config, seed=0, cache_mb=64, reduced_decode=reduced)

    whole, reduced = samples(False), samples(True)
    for index in range(12):
        for closing in (False, True):
            first, second = whole[SampleKey(0, index, closing)], reduced[SampleKey(0, index, closing)]
            if closing:  # as evaluation sees them
                assert np.array_equal(first.image, second.image)
            if not config.crop:  # a window in whole pixels may lie a few pixels elsewhere
                assert np.allclose(second.canvas_xyxy, first.canvas_xyxy, rtol=0, atol=1e-4)
                assert np.abs(second.image.astype(int) - first.image).mean() < 6  # averaged first: smoother edges
            assert np.array_equal(second.labels, first.labels) or config.crop
    kept = {image.shape[0] for (_, reduction), image in reduced._cache._kept.items() if reduction > 1}
    assert kept == ({side} if side < 512 else set())


def test_an_image_of_another_size_than_listed_is_decoded_whole(large: Path) -> None:
    path = sorted((large / "images/train").iterdir())[0]
    cv2.imwrite(str(path), np.full((510, 512, 3), 90, np.uint8))
    annotations = read(large)
    index = next(i for i in range(len(annotations)) if annotations.path(i) == path)
    samples = TrainingSamples(annotations, CANVAS, STILL, seed=0, cache_mb=64, reduced_decode=True)
    image, objects = samples.source(index, zoom=1.0)
    if image.shape[:2] == (510, 512):
        assert np.array_equal(objects.xyxy, annotations.source_xyxy(index))


def test_batches_are_the_same_bits_from_every_cache(large: Path, tmp_path: Path) -> None:
    annotations = read(large)

    def batches(**options: Any) -> list[bytes]:
        usual = {"cache_mb": 0, "reduced_decode": True}
        canvas = Canvas((96, 96), 3, "letterbox")
        samples = TrainingSamples(annotations, canvas, AugmentConfig(), seed=0, **{**usual, **options})
        return [
            batch.images.numpy().tobytes() + batch.targets.canvas_xyxy.numpy().tobytes()
            for batch in training_batches(samples, sampler(12), LoaderConfig(4, workers=2))
        ]

    alone = batches()
    assert batches(cache_mb=64) == alone
    for _ in range(2):
        assert batches(disk_cache=tmp_path / "cache") == alone
    assert len(list((tmp_path / "cache").rglob("*.pixels"))) == 12


# ---- memory

SOAK = """
import os, sys
from pathlib import Path
from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import read_coco
from detector.data.loader import BatchRange, LoaderConfig, StreamSampler, TrainingSamples, training_batches
from detector.structures.canvas import Canvas

def resident_mb():
    own = os.getpid()
    pids = [own, *Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    return sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in pids) * os.sysconf("SC_PAGE_SIZE") / 2**20

root = Path(sys.argv[1])
annotations = read_coco(root / "annotations/train.json", root / "images/train")
config = AugmentConfig(
    mosaic_nine=0.3, crop=0.3, degrees=9, perspective=0.2, mixup=0.3, copy_paste=0.3, grayscale=0.1, blur=2, noise=9,
    jpeg=50, degraded_share=0.3, cutout=0.2, albumentations=({"name": "GaussNoise", "p": 0.2},),
)
samples = TrainingSamples(annotations, Canvas((320, 320), 3, "letterbox"), config, seed=0, cache_mb=64)
per_epoch = 30
sampler = StreamSampler(12, 4, 0, BatchRange(0, per_epoch * 20, closing_from=per_epoch * 17))
for number, batch in enumerate(training_batches(samples, sampler, LoaderConfig(4, workers=2)), start=1):
    if number in (per_epoch * 4, per_epoch * 20 - 8):
        print(resident_mb())
"""


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_twenty_epochs(tiny_shapes: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SOAK, str(tiny_shapes)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    early_mb, late_mb = (float(line) for line in done.stdout.split())
    assert late_mb < early_mb + 40  # of some 1,200 in three processes; a leak of one canvas a batch would be 180
