"""Benchmark of loading images: loose files against the tar shards made of them, and against a bucket.

    python tools/benchmark_shards.py data/coco128 shards/ --turns 7
    python tools/benchmark_shards.py data/coco128 shards/ --s3      # needs s3fs and moto[server]

All data sets have the same images. They take turns in a new random order each time, so that a change in the speed of
the machine affects all. One thread reads and decodes each image at full size. With `--s3`, the files are also put into
a bucket of moto's server on the loopback interface and read through the cache, which a turn that does not count fills.
Prints images per second of processor time, the median of the turns, and the ratios.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2

from detector.data.coco import CocoAnnotations
from detector.io.remote import RemoteCache, permit
from detector.media.images import load_image
from detector.tasks.detection_model import load_detection, read_split


def in_bucket(files: CocoAnnotations, cache: Path) -> list[Path]:
    """Put the images of a split into a bucket of a new server, permit it, and return their paths."""
    server = importlib.import_module("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()  # a thread of this process, which ends with it
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1")
    system = importlib.import_module("s3fs").S3FileSystem(skip_instance_cache=True)
    system.mkdir("benchmark")
    for index in range(len(files)):
        system.pipe(f"benchmark/{index:08d}", files.path(index).read_bytes())
    permit("s3://benchmark", RemoteCache(cache, 10**10))
    return [Path(f"s3:/benchmark/{index:08d}") for index in range(len(files))]


def main() -> int:
    """Load both data sets in turns and print the rates; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", help="data set of loose files")
    parser.add_argument("shards", help="folder that dataset to-shards made of it")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--s3", action="store_true", help="also read from a loopback S3 with a warm cache")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    splits = [
        read_split(load_detection("base", [f"data={name}"]), "train") for name in (arguments.files, arguments.shards)
    ]
    names = ("files", "shards")
    sets = {n: [split.path(i) for i in range(len(split))] for n, split in zip(names, splits, strict=True)}
    with tempfile.TemporaryDirectory() as cache:
        if arguments.s3:
            sets["s3"] = in_bucket(splits[0], Path(cache))
            for path in sets["s3"]:
                load_image(path)
        seconds: dict[str, list[float]] = {name: [] for name in sets}
        for turn in range(arguments.turns):
            for name in list(sets)[:: 1 if turn % 2 else -1]:
                order = random.Random(turn).sample(sets[name], len(sets[name]))
                began_s = time.process_time()
                for path in order:
                    load_image(path)
                seconds[name].append((time.process_time() - began_s) / len(order))
    each_s = {name: statistics.median(listed) for name, listed in seconds.items()}
    for name, taken_s in each_s.items():
        print(f"{name}: {1 / taken_s:.1f} images/s of CPU, {each_s['files'] / taken_s:.3f} of loose files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
