"""Benchmark of scoring a large results file, time and memory: 5,000 images, 36,500 objects, 500,000 detections.

    python tools/benchmark_evaluation.py                     (reading and scoring by the fast back end)
    python tools/benchmark_evaluation.py --compare           (pycocotools too; checks that every number is the same)
    python tools/benchmark_evaluation.py --write FOLDER      (instances.json and results.json, for other programs)

The data are drawn, the same for the same seed: 80 classes of very different sizes, 7.3 objects per image, one per cent
of them crowd regions, and 100 detections per image: up to three near every object, the others anywhere. The measured
process only reads the two files and scores them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.data.coco import read_coco
from detector.evaluation.coco_metrics import BACKENDS, summarize
from detector.evaluation.precision_recall import LIMITS
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth

NUM_CLASSES, WIDTH, HEIGHT = 80, 640, 480


def _boxes(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Return boxes xywh inside the image: float64 (count, 4)."""
    sides = np.exp(rng.uniform(np.log(8), np.log(350), (count, 2)))
    return np.column_stack([rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides), sides])


def write_set(folder: Path, num_images: int, num_objects: int, num_detections: int, seed: int) -> None:
    """Draw the data and write `instances.json` and `results.json`."""
    rng = np.random.default_rng(seed)
    class_shares = rng.dirichlet(np.full(NUM_CLASSES, 0.5))
    image_ids = np.sort(rng.choice(600_000, num_images, replace=False))
    category_ids = np.sort(rng.choice(np.arange(1, 91), NUM_CLASSES, replace=False))
    images, labels = rng.integers(0, num_images, num_objects), rng.choice(NUM_CLASSES, num_objects, p=class_shares)
    boxes = _boxes(rng, num_objects)
    areas, is_crowd = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, num_objects), rng.random(num_objects) < 0.01
    near = np.repeat(np.arange(num_objects), rng.integers(0, 4, num_objects))
    off = rng.normal(0, 0.08, (len(near), 4)) * boxes[near][:, [2, 3, 2, 3]]
    num_stray = num_detections - len(near)
    found_boxes = np.concatenate([np.abs(boxes[near] + off), _boxes(rng, num_stray)])
    found_images = np.concatenate([images[near], rng.integers(0, num_images, num_stray)])
    found_labels = np.concatenate([labels[near], rng.choice(NUM_CLASSES, num_stray, p=class_shares)])
    scores = np.concatenate([rng.beta(3, 2, len(near)), rng.beta(1, 6, num_stray)])
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in image_ids.tolist()],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids.tolist()],
        "annotations": [
            {"id": row, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for row, (image, category, box, area, crowd) in enumerate(
                zip(
                    image_ids[images].tolist(),
                    category_ids[labels].tolist(),
                    boxes.tolist(),
                    areas.tolist(),
                    is_crowd.astype(int).tolist(),
                    strict=True,
                ),
                start=1,
            )
        ],
    }
    results = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(
            image_ids[found_images].tolist(),
            category_ids[found_labels].tolist(),
            np.round(found_boxes, 3).tolist(),
            np.round(scores, 5).tolist(),
            strict=True,
        )
    ]
    (folder / "instances.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def measure(folder: Path, backends: list[str]) -> None:
    """Read and score the two files; print time and memory."""
    start_s = time.perf_counter()
    truth = GroundTruth.of_annotations(read_coco(folder / "instances.json", None))
    results, _ = read_results(folder / "results.json", truth)
    read_s = time.perf_counter() - start_s
    print(
        f"{len(truth.image_ids)} images, {len(truth.areas)} objects, {len(results)} detections; read in {read_s:.2f} s"
    )
    found = []
    for backend in backends:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        curves = BACKENDS[backend](truth, results, LIMITS)
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
        print(f"{backend}: scored in {wall_s:.2f} s ({cpu_s:.2f} s of processors); peak so far {peak_gb:.2f} GB")
        metrics = summarize(truth, results, curves, backend)
        print("  " + " ".join(f"{name} {value!r}" for name, value in metrics.stats.items()))
        found.append(curves)
    if len(found) == 2:
        arrays = ("precision", "recall", "scores")
        is_equal = all(np.array_equal(getattr(found[0], name), getattr(found[1], name)) for name in arrays)
        print(f"every number of the two is the same bits: {is_equal}")


def main() -> None:
    """Run the benchmark that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--objects", type=int, default=36_500)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="fast")
    parser.add_argument("--compare", action="store_true", help="score with both")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the files there and score nothing")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="score the files that --write wrote")
    arguments = parser.parse_args()
    if arguments.read is not None:
        measure(arguments.read, ["fast", "pycocotools"] if arguments.compare else [arguments.backend])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.write or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_set(folder, arguments.images, arguments.objects, arguments.detections, arguments.seed)
        if arguments.write is None:  # in a process of its own, so that its memory excludes the drawing
            how = ["--compare"] if arguments.compare else ["--backend", arguments.backend]
            subprocess.run([sys.executable, __file__, "--read", str(folder), *how], check=True)


if __name__ == "__main__":
    main()
