"""Benchmark of the selection of boxes on this machine: the two branches of a trained head `dual`, side by side.

    python tools/benchmark_selection.py runs/detect/train/weights/best.safetensors data/bccd/images --rounds 20

The one-to-many branch is followed by suppression, the one-to-one branch by none. Both have the same network, so the
difference is that of the selection. The two take turns image by image, so that a change in the speed of the machine
affects both. Prints, for the confidence of prediction and that of evaluation, the mean numbers of candidates and
detections of an image, the median times of selection and from image to boxes, and their ratios to the first row.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detector.inference.predictor import Predictor, RawBoxes
from detector.media.sources import ImageSource, as_sources
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig, select
from detector.tasks.detection_model import build_predictor, load_model

BRANCHES = {
    "one-to-many, plain suppression": ("model.head.predicts=one_to_many", "predict.nms=plain", "evaluate.nms=plain"),
    "one-to-one, none": ("model.head.predicts=one_to_one", "predict.nms=none", "evaluate.nms=none"),
}


@dataclass(frozen=True)
class Branch:
    """A branch ready to run, with its boxes of each image.

    Attributes:
        predictor: the network with this branch alone.
        select: its selection in prediction.
        evaluate: its selection in evaluation.
        raw: its boxes of each image.
    """

    predictor: Predictor
    select: SelectConfig
    evaluate: SelectConfig
    raw: Sequence[RawBoxes]


def branch_of(weights: Path, overrides: Sequence[str], images: Sequence[Image]) -> Branch:
    """Open a file with one branch and compute its boxes."""
    loaded = load_model(weights, overrides)
    predictor = build_predictor(loaded)
    return Branch(
        predictor, loaded.config.predict, loaded.config.evaluate, [predictor.raw_boxes([i])[0] for i in images]
    )


def milliseconds(work: Callable[[], object]) -> float:
    """Return the time of one call."""
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1e3


def selected(raw: RawBoxes, config: SelectConfig) -> int:
    """Return the number of detections in the boxes of an image."""
    return len(select(raw.canvas_xyxy, raw.scores, config, raw.letterbox.resized_hw)[2])


def rows_of(branches: dict[str, Branch], images: Sequence[Image], rounds: int, key: str) -> list[str]:
    """Return the rows of the table for the selection of one section, `select` or `evaluate`."""
    configs = {name: getattr(branch, key) for name, branch in branches.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in branches}
    for turn, index in itertools.product(range(rounds + 1), range(len(images))):
        for name, branch in branches.items():
            raw, config, predictor = branch.raw[index], configs[name], branch.predictor
            alone = milliseconds(partial(selected, raw, config))
            whole = milliseconds(partial(predictor.detect, [images[index]], config))
            if turn:  # the first one has cold caches
                times[name][0].append(alone)
                times[name][1].append(whole)
    rows, first = [], [statistics.median(values) for values in times[next(iter(branches))]]
    for name, branch in branches.items():
        config = configs[name]
        candidates = statistics.mean(int((raw.scores >= config.confidence).sum()) for raw in branch.raw)
        kept = statistics.mean(selected(raw, config) for raw in branch.raw)
        medians = [statistics.median(values) for values in times[name]]
        cells = [f"{median:.3f} | {median / base:.2f}" for median, base in zip(medians, first, strict=True)]
        rows.append(f"| {config.confidence:g} | {name} | {candidates:.0f} | {kept:.0f} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Time both branches in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path, help="a model file with the head dual")
    parser.add_argument("images", help="a folder of images like those of the training")
    parser.add_argument("--num-images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    sources = [source for source in as_sources(options.images)[0] if isinstance(source, ImageSource)]
    images = [source.load(3).pixels for source in sources[: options.num_images]]
    branches = {name: branch_of(options.weights, overrides, images) for name, overrides in BRANCHES.items()}
    print("| confidence | branch and suppression | candidates | detections | selection ms | ratio | whole ms | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for key in ("select", "evaluate"):
        print("\n".join(rows_of(branches, images, options.rounds, key)))


if __name__ == "__main__":
    main()
