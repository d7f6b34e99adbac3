"""Benchmark of loading images: loose files against the tar shards made of them.

    python tools/benchmark_shards.py data/coco128 shards/ --turns 7

Both data sets have the same images. They take turns in a new random order each time, so that a change in the speed of
the machine affects both. One thread reads and decodes each image at full size. Prints images per second of processor
time, the median of the turns, and the ratio.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time

import cv2

from detector.media.images import load_image
from detector.tasks.detection_model import load_detection, read_split


def main() -> int:
    """Load both data sets in turns and print the rates; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", help="data set of loose files")
    parser.add_argument("shards", help="folder that dataset to-shards made of it")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    sets = {
        name: read_split(load_detection("base", [f"data={name}"]), "train")
        for name in (arguments.files, arguments.shards)
    }
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    for turn in range(arguments.turns):
        for name in list(sets)[:: 1 if turn % 2 else -1]:
            order = random.Random(turn).sample(range(len(sets[name])), len(sets[name]))
            began_s = time.process_time()
            for index in order:
                load_image(sets[name].path(index))
            seconds[name].append((time.process_time() - began_s) / len(order))
    files_s, shards_s = (statistics.median(seconds[name]) for name in sets)
    print(f"files {1 / files_s:.1f}, shards {1 / shards_s:.1f} images/s of CPU, ratio {files_s / shards_s:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
