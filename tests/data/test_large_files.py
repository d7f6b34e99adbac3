"""Memory of a large annotation file, and its sharing between workers."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.coco import CocoAnnotations, read_coco

MEASURE = """
    import sys, time
    from pathlib import Path
    from detector.data.coco import read_coco

    def mb(what):
        return int(Path("/proc/self/status").read_text().split(what)[1].split()[0]) / 1024

    before_mb, start_s = mb("VmRSS:"), time.process_time()
    coco = read_coco(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
    print(mb("VmRSS:") - before_mb, mb("VmHWM:") - before_mb, time.process_time() - start_s, len(coco), coco.num_boxes)
"""


def write_large(path: Path, num_images: int, num_boxes: int, polygons: bool = False) -> Path:
    """A file like those of COCO, its sections in their order."""
    rng = random.Random(0)
    with path.open("w") as file:
        file.write('{"info": {}, "images": [')
        for i in range(num_images):
            image = {"id": 1000 + i, "file_name": f"{1000 + i:012d}.jpg", "width": 640, "height": 480}
            file.write((", " if i else "") + json.dumps(image))
        file.write('], "annotations": [')
        for i in range(num_boxes):
            x, y, w, h = (round(rng.uniform(2, 230), 2) for _ in range(4))
            entry: dict[str, Any] = {"id": i + 1, "image_id": 1000 + rng.randrange(num_images)}
            entry |= {"category_id": 1 + i % 80, "bbox": [x, y, w, h], "area": round(w * h, 2), "iscrowd": 0}
            if polygons:
                entry["segmentation"] = [[round(rng.uniform(2, 400), 2) for _ in range(40)]]
            file.write((", " if i else "") + json.dumps(entry))
        categories = [{"id": 1 + i, "name": f"class {i}", "supercategory": "thing"} for i in range(80)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path


def measured(*arguments: Path) -> tuple[float, ...]:
    """Megabytes that stay, megabytes at most, seconds of the processor, images, boxes."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return tuple(map(float, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="the figures are those of Linux's /proc")
@pytest.mark.parametrize(
    ("num_images", "num_boxes", "polygons", "resident_mb"),
    [
        (4_000, 30_000, False, 30),
        (2_000, 8_000, True, 30),
        pytest.param(120_000, 900_000, False, 120, marks=pytest.mark.nightly),
    ],
)
def test_a_large_file_stays_small_in_memory(
    num_images: int, num_boxes: int, polygons: bool, resident_mb: float, tmp_path: Path
) -> None:
    path = write_large(tmp_path / "x.json", num_images, num_boxes, polygons)
    file_mb = path.stat().st_size / 2**20
    stays_mb, peak_mb, cpu_s, *counts = measured(path)
    print(f"{file_mb:.0f} MB: {cpu_s:.1f} s of the processor, {stays_mb:.0f} MB stay, {peak_mb:.0f} MB at most")
    assert counts == [num_images, num_boxes]
    assert stays_mb < resident_mb
    assert peak_mb < 7 * file_mb


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the figures are those of Linux's /proc")
def test_a_large_folder_of_images_is_listed_within_the_same_bounds(tmp_path: Path) -> None:
    path, folder = write_large(tmp_path / "x.json", 120_000, 900_000), tmp_path / "images"
    folder.mkdir()
    for i in range(120_000):
        (folder / f"{1000 + i:012d}.jpg").touch()
    stays_mb, peak_mb, cpu_s, *counts = measured(path, folder)
    print(f"{cpu_s:.1f} s of the processor, {stays_mb:.0f} MB stay, {peak_mb:.0f} MB at most")
    assert counts == [120_000, 900_000]
    assert stays_mb < 120
    assert peak_mb < 7 * path.stat().st_size / 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> CocoAnnotations:
    return read_coco(write_large(tmp_path_factory.mktemp("large") / "x.json", 20_000, 40_000), None)


def test_annotations_are_pickled_as_a_few_arrays(large: CocoAnnotations) -> None:
    start_s = time.process_time()
    pickled = pickle.dumps(large)
    copy: CocoAnnotations = pickle.loads(pickled)
    assert time.process_time() - start_s < 0.5
    own_bytes = sum(v.nbytes for v in vars(large).values() if isinstance(v, np.ndarray))
    assert len(pickled) < own_bytes + 20_000 * (16 + 8) + 20_000  # the arrays, the names, some words
    assert copy.file_names == large.file_names
    np.testing.assert_array_equal(copy.boxes_xywh, large.boxes_xywh)


def private_kb_after_reading(annotations: CocoAnnotations, results: multiprocessing.Queue[int]) -> None:
    """Return the memory that a worker copies by reading the annotations of every sample."""

    def private_kb() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    for index in range(100):  # what the first reading allocates for itself is no copy
        annotations.source_xyxy(index)
    before_kb = private_kb()
    for index in range(len(annotations)):
        annotations.source_xyxy(index)
        annotations.labels_of(index)
        annotations.is_crowd_of(index)
        annotations.file_names[index]
        int(annotations.image_ids[index])
    results.put(private_kb() - before_kb)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the figures are those of Linux's /proc")
def test_a_forked_worker_copies_nothing_by_reading(large: CocoAnnotations) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    worker = context.Process(target=private_kb_after_reading, args=(large, results))
    worker.start()
    grown_kb = results.get(timeout=120)
    worker.join(timeout=120)
    assert worker.exitcode == 0
    assert grown_kb < 512  # the file names alone, as Python objects, are 1.4 MB of pages
