"""Benchmark of prediction in parts: two workers, each pinned to a core, against one worker.

    python tools/benchmark_parts.py yolox-nano data/coco128/images --turns 3

Each turn runs one worker with half of the images (shard 0/2) on the first core, then two workers (shards 0/2 and 1/2)
on two cores at once. The rate of a worker is that between the ends of its first and last whole part, so that starting
Python and reading the model do not count. Prints the rates in images per second, and the ratio of the sum of two to
twice the rate of one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def start(words: list[str], folder: Path, share: int, core: int, images_per_part: int) -> subprocess.Popen[bytes]:
    """Start a worker on a core."""
    own = [*words, "--out", str(folder), "--shard", f"{share}/2", "--images-per-part", str(images_per_part), "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["taskset", "-c", str(core), sys.executable, "-m", "detector", "predict", *own]
    return subprocess.Popen(command, env=environment)


def rate_of(folder: Path, share: int, images_per_part: int) -> float:
    """Return the images per second between the ends of the first and the last part of a share."""
    paths = [path for path in folder.glob("part-*.parquet") if int(path.stem[5:]) % 2 == share]
    ended_s = sorted(path.stat().st_mtime for path in paths)
    if len(ended_s) < 3:
        raise SystemExit(f"{folder}: expected three parts or more for each worker, got {len(ended_s)}")
    # The last part may hold fewer images; it is the last of one share only.
    return images_per_part * (len(ended_s) - 2) / (ended_s[-2] - ended_s[0])


def main() -> int:
    """Run the turns and print the rates; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", help="folder of images, at least 100")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--images-per-part", type=int, default=8)
    arguments = parser.parse_args()
    words, size = [arguments.model, arguments.images], arguments.images_per_part
    print(f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}")
    ratios = []
    for turn in range(arguments.turns):
        with tempfile.TemporaryDirectory() as folder:
            alone, both = Path(folder, "alone"), Path(folder, "both")
            if start(words, alone, 0, arguments.cores[0], size).wait():
                return 1
            workers = [start(words, both, share, arguments.cores[share], size) for share in (0, 1)]
            codes = [worker.wait() for worker in workers]
            if any(codes):
                return 1
            single = rate_of(alone, 0, size)
            pair = [rate_of(both, share, size) for share in (0, 1)]
        ratios.append(sum(pair) / (2 * single))
        listed = " + ".join(f"{rate:.2f}" for rate in pair)
        print(f"turn {turn}: one {single:.2f}, two {listed} images/s, {ratios[-1]:.3f} of twice one", flush=True)
    print(f"median {statistics.median(ratios):.3f} of twice the throughput of one worker")
    return 0


if __name__ == "__main__":
    sys.exit(main())
