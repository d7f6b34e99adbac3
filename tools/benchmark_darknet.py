"""Benchmark of a Darknet network's inference on this machine's CPU against OpenCV's DNN module, with one file.

    python3 -m venv /tmp/opencv && /tmp/opencv/bin/pip install "opencv-python-headless==4.14.*"
    python tools/benchmark_darknet.py --opencv-python /tmp/opencv/bin/python --cfg cfg/darknet/yolov4-tiny.cfg

OpenCV 5 has no Darknet importer, hence the second interpreter. Both programs read the same random weights, get a float
image that is in memory already and compute their raw outputs. They alternate image by image, so that a change in the
speed of the machine affects both. Prints the median of each and the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from turns import take_turns

if TYPE_CHECKING:
    from detector.darknet.network import DarknetNet

# Runs in the other interpreter, which has OpenCV and NumPy but not this package.
OPENCV_WORKER = """
import sys, time
import cv2, numpy as np
cfg, weights, height, width, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
cv2.setNumThreads(threads)
network = cv2.dnn.readNetFromDarknet(cfg, weights)
image = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
outputs = network.getUnconnectedOutLayersNames()
for _ in sys.stdin:
    started = time.perf_counter()
    network.setInput(image)
    network.forward(outputs)
    print(f"{(time.perf_counter() - started) * 1e3:.3f}", flush=True)
"""


def network(cfg: Path) -> DarknetNet:
    """Return the network of a file of 80 classes, with random weights."""
    from detector.darknet.network import CfgText, DarknetNet

    return DarknetNet(DarknetNet.Config(CfgText.of_file(str(cfg))), 80)


def worker(cfg: Path, weights: Path, precision: str) -> None:
    """Run one image for each line on stdin and print its milliseconds."""
    import time

    import torch

    from detector.models.folding import fold

    model = network(cfg)
    model.load_weights(weights)
    model = fold(model).to(memory_format=torch.channels_last)
    if precision == "bf16":
        model.to(torch.bfloat16)
    image = torch.rand(1, 3, model.cfg.net.height, model.cfg.net.width).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in sys.stdin:
            started_s = time.perf_counter()
            model(image)
            print(f"{(time.perf_counter() - started_s) * 1e3:.3f}", flush=True)


def main() -> None:
    """Write random weights, run the programs in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cfg", type=Path, default=Path("cfg/darknet/yolov4-tiny.cfg"))
    parser.add_argument("--opencv-python", help="an interpreter with OpenCV 4.14", required="--worker" not in sys.argv)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--worker", nargs=2, metavar=("WEIGHTS", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.cfg, Path(options.worker[0]), options.worker[1])
        return

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.weights"
        model = network(options.cfg)
        model.save_weights(weights)
        cfg, threads = str(options.cfg), str(os.cpu_count())
        ours = [sys.executable, __file__, "--cfg", cfg, "--worker", str(weights)]
        sides = [str(model.cfg.net.height), str(model.cfg.net.width)]
        commands = {
            "this package, fp32": [*ours, "fp32"],
            "this package, bf16": [*ours, "bf16"],
            "OpenCV DNN, fp32": [options.opencv_python, "-c", OPENCV_WORKER, cfg, str(weights), *sides, threads],
        }
        times = take_turns(commands, options.rounds, warmup=5)
    reference = statistics.median(times["OpenCV DNN, fp32"])
    print(f"{options.cfg.stem}, one image of {'x'.join(sides)}, folded, {os.cpu_count()} cores", end=", ")
    print(
        f"{platform.machine()}, median of {options.rounds}\n\n| program | ms | times as fast as OpenCV |\n|---|---|---|"
    )
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.1f} | {reference / statistics.median(values):.2f} |")


if __name__ == "__main__":
    main()
