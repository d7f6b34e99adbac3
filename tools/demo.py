"""Demo in a few minutes on two CPU cores: draw a data set, train, evaluate, predict, and print where the results are.

Run by `make demo`; needs no network once the package is installed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from detector.cli.main import run

ROOT = Path("runs/demo")


def step(title: str, *words: str) -> None:
    """Run one command as a user types it; stop the demo if it fails."""
    print(f"\n== {title}\n$ detector {' '.join(words)}", flush=True)
    code = run(words)
    if code:
        sys.exit(code)


def main() -> None:
    """Train, evaluate and predict."""
    started_s = time.monotonic()
    number = 1
    while (project := ROOT / str(number)).exists():
        number += 1
    best = str(project / "train/weights/best.safetensors")
    step("1 of 3: train", "train", "demo", f"train.project={project}")
    step("2 of 3: evaluate on the validation images", "evaluate", best, "--save-dir", str(project / "evaluate"))
    step(
        "3 of 3: predict", "predict", best, "data/shapes/images/val/00001?.jpg", "--save-dir", str(project / "predict")
    )
    pictures = sorted((project / "predict").glob("*.jpg"))
    print(f"\nDone in {(time.monotonic() - started_s) / 60:.1f} minutes.")
    print(f"Detections drawn: {len(pictures)} pictures such as {pictures[0]}")
    print(f"What the network saw in training: {project / 'train/train_batch0.jpg'}")
    print(f"The trained model: {best}")


if __name__ == "__main__":
    main()
