"""Demo within a few minutes on any machine: detect in a photo, draw a data set, fine-tune, evaluate and predict.

    python tools/demo.py --minutes 4.5

Run by `make demo`; needs no network once the package is installed. It times a few training steps and fits the input
size and the number of steps to the minutes that are left, so two demos may differ in both. The printed `detector train`
command repeats the same training to the last bit.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.cli.main import run
from detector.config import registry
from detector.errors import DetectorError
from detector.io.machine import are_cores_busy
from detector.media.images import read_image, write_image
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection
from detector.training.events import Evaluated, Event, StepDone
from detector.workflows.train import TrainingResult, train
from detector.workflows.training_progress import TrainingProgress

PHOTO = Path(__file__).resolve().parents[1] / "docs/images/astronaut.jpg"
MODEL = "yolox-nano"  # preset and published weights
# The best rate of 0.001, 0.003 and 0.006 on the drawn shapes: AP 0.32, 0.38 and 0.37 after 240 steps at 160 px.
WORDS = ("data=shapes", f"train.weights={MODEL}", "optimizer.fine_tuning_lr=0.003")
FULL_SIZE, FULL_STEPS = 256, 400
FULL_RESULT = "AP 0.628, AP50 0.804"  # with the full size and steps, in the table of the README
SIZES = (256, 224, 192, 160, 128, 96)
MIN_STEPS = 250  # a smaller input is chosen before the number of steps falls below this
TIMED_SIZES, TIMED_STEPS, TIMED_S = (96, 192), 8, 6.0
SLOWER = 1.25  # mean step of a training to the fastest of the first few, which include work that is done once
FIRST_AP_S = 50.0  # after the start of the demo, on a machine that is quick enough
MIN_EVALUATIONS, MIN_EVALUATION_GAP_S = 4, 10.0
EVALUATION_SHARE = 0.4  # seconds of an image in evaluation, as a share of its seconds in a training step
LAST_COMMANDS_S = 10.0  # evaluate and predict, apart from the network
NUM_PICTURES, SHEET_COLUMNS, GAP_PX = 8, 4, 6


@dataclass(frozen=True)
class Plan:
    """Training that fits into the time.

    Attributes:
        size: side of the canvas in pixels.
        num_steps: training steps.
        evaluations: evaluations during training.
        deadline_s: seconds after the start of the demo at which training stops in any case.
    """

    size: int
    num_steps: int
    evaluations: int
    deadline_s: float


@dataclass(frozen=True)
class StepTime:
    """Time of a training step as a function of the size of the canvas.

    Attributes:
        fixed_s: seconds that do not depend on the size, such as those of the optimiser.
        pixel_s: seconds for each pixel of the canvas.
    """

    fixed_s: float
    pixel_s: float

    def at(self, size: int) -> float:
        """Return the seconds of a step with a square canvas of `size` pixels a side."""
        return self.fixed_s + self.pixel_s * size**2

    @classmethod
    def through(cls, sizes: tuple[int, int], steps_s: tuple[float, float]) -> StepTime:
        """Return the times through two measured ones, the smaller size first, with neither part below 0."""
        (small, large), (small_s, large_s) = sizes, steps_s
        pixel_s = min(max((large_s - small_s) / (large**2 - small**2), 0.0), large_s / large**2)
        return cls(max(large_s - pixel_s * large**2, 0.0), pixel_s)


def fit(budget_s: float, elapsed_s: float, step: StepTime, batch_size: int, num_val: int) -> Plan:
    """Return the training that fits into a budget.

    Args:
        budget_s: seconds of the whole demo.
        elapsed_s: seconds that have passed.
        step: time of a training step.
        batch_size: images of a step.
        num_val: images of an evaluation.
    """
    for size in SIZES:
        size_step_s = step.at(size)
        evaluation_s = EVALUATION_SHARE * num_val * size_step_s / batch_size
        deadline_s = budget_s - LAST_COMMANDS_S - evaluation_s
        evaluate_after_s = max(MIN_EVALUATION_GAP_S, FIRST_AP_S - elapsed_s - evaluation_s)
        left_s = deadline_s - elapsed_s - MIN_EVALUATIONS * evaluation_s
        num_steps = min(int(left_s / (size_step_s * (1 + evaluation_s / evaluate_after_s))), FULL_STEPS)
        if num_steps >= MIN_STEPS:
            break
    evaluations = max(MIN_EVALUATIONS, math.ceil(num_steps * size_step_s / evaluate_after_s))
    return Plan(size, max(num_steps, evaluations), evaluations, deadline_s)


class StepTimer:
    """Reporter that times training steps after the first, which includes work that is done once.

    Attributes:
        steps_s: seconds of each step.
    """

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self._last_s: float | None = None

    def __call__(self, event: Event) -> None:
        """Time a step."""
        if isinstance(event, StepDone):
            now_s = time.monotonic()
            if self._last_s is not None:
                self.steps_s.append(now_s - self._last_s)
            self._last_s = now_s

    def is_enough(self) -> bool:
        """Return whether enough steps are timed."""
        return len(self.steps_s) >= TIMED_STEPS or sum(self.steps_s) > TIMED_S


def timed_steps(words: Sequence[str]) -> StepTime:
    """Return the time of a training step of the demo from a few at two sizes; nothing is kept but the drawn data.

    On a busy machine, torch is limited to one thread if its steps are faster with one.
    """
    import torch  # after detector, which sets how its threads wait

    small, large = TIMED_SIZES
    small_s = step_s(small, words)
    num_threads = torch.get_num_threads()
    if num_threads > 1 and are_cores_busy():
        torch.set_num_threads(1)
        alone_s = step_s(small, words)
        if alone_s < small_s:
            print(f"other programs use the cores: one thread is {small_s / alone_s:.1f} times as fast as {num_threads}")
            small_s = alone_s
        else:
            torch.set_num_threads(num_threads)
    return StepTime.through(TIMED_SIZES, (small_s, step_s(large, words)))


def threads() -> str:
    """Return the words before a command that limit it to the threads of this process."""
    import torch

    return "OMP_NUM_THREADS=1 " if torch.get_num_threads() == 1 else ""


def step_s(size: int, words: Sequence[str]) -> float:
    """Return the seconds of a training step on a canvas of a size."""
    timer = StepTimer()
    with tempfile.TemporaryDirectory(prefix="detector-demo-") as folder:
        config = experiment(*words, f"input.size={size}", "train.evaluations=0", f"train.project={folder}")
        train(config, report=timer, should_stop=timer.is_enough)
    # The mean counts on a busy machine, where no few steps are without a disturbance.
    return max(SLOWER * min(timer.steps_s), statistics.mean(timer.steps_s))


def experiment(*words: str) -> DetectionConfig:
    """Return the experiment of the demo with overrides."""
    return load_detection(MODEL, [*WORDS, *words])


def trained(words: Sequence[str], is_over: Callable[[], bool]) -> TrainingResult:
    """Train the demo; stop when the time is over, but not before a first evaluation has saved weights."""
    progress = TrainingProgress()
    evaluated = []

    def report(event: Event) -> None:
        if isinstance(event, Evaluated):
            evaluated.append(event)
        progress(event)

    print(f"$ {threads()}detector train {' '.join((MODEL, *WORDS, *words))}", flush=True)
    try:
        return train(experiment(*words), report=report, should_stop=lambda: bool(evaluated) and is_over())
    finally:
        progress.close()


def command(title: str, *words: str) -> None:
    """Run one command as a user types it; end the demo if it fails."""
    print(f"\n== {title}\n$ detector {' '.join(words)}", flush=True)
    code = run(words)
    if code:
        sys.exit(code)


def write_sheet(pictures: Sequence[Path], path: Path) -> None:
    """Write pictures of one size side by side, as docs/images/demo.jpg shows them."""
    tiles = [np.pad(read_image(p), ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255) for p in pictures]
    rows = [np.concatenate(tiles[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(tiles), SHEET_COLUMNS)]
    rows = [row for row in rows if row.shape == rows[0].shape]
    write_image(path, np.concatenate(rows)[:-GAP_PX, :-GAP_PX])


def demo(budget_s: float, words: Sequence[str], root: Path) -> None:
    """Train, evaluate, predict and print the results.

    Args:
        budget_s: seconds of the whole demo.
        words: overrides of the experiment.
        root: parent of the folder of this demo.
    """
    started_s = time.monotonic()
    project = next(folder for n in itertools.count(1) if not (folder := root / str(n)).exists())
    best = str(project / "train/weights/best.safetensors")

    print(f"A demo of at most {budget_s / 60:g} minutes", flush=True)
    command("Detect objects in a photo with the shipped model", "predict", str(PHOTO), "--out", str(project / "photo"))
    print("\n== Draw the data set and time a few training steps", flush=True)
    config = experiment(*words)
    assert config.data is not None  # for the type checker: the preset has a data set
    val = registry.build(config.data).split("val")
    step = timed_steps(words)
    plan = fit(budget_s, time.monotonic() - started_s, step, config.loader.batch_size, len(val))
    print(f"{step.at(plan.size):.2f} s a step at {plan.size} px: {plan.num_steps} steps fit into the time")

    print("\n== Train the shipped model on the classes of the data set", flush=True)
    length = f"train.iterations={plan.num_steps}", f"train.evaluations={plan.evaluations}"
    words = [*words, f"input.size={plan.size}", *length, f"train.project={project}"]
    result = trained(words, lambda: time.monotonic() - started_s > plan.deadline_s)
    if not result.finished:
        print(f"the time is over; to train the rest: detector train --resume {result.folder.path}")

    command("Evaluate on the validation images", "evaluate", best, "--out", str(project / "evaluate"))
    images = [os.path.relpath(Path(val.images or "") / name) for name in val.file_names[:NUM_PICTURES]]
    command("Predict", "predict", best, *images, "--out", str(project / "predict"))
    pictures = sorted((project / "predict").glob("*.jpg"))
    write_sheet(pictures, project / "detections.jpg")

    full_words = f"input.size={FULL_SIZE} train.iterations={FULL_STEPS}"
    print(f"\nDone in {(time.monotonic() - started_s) / 60:.1f} minutes.")
    most = "" if result.finished else "up to "
    print(f"Reached: AP {result.best:.3f} with {most}{plan.num_steps} steps at {plan.size} px")
    print(f"A faster machine: {FULL_RESULT} with all {FULL_STEPS} steps at {FULL_SIZE} px")
    print(
        f"The same on this one, about {FULL_STEPS * step.at(FULL_SIZE) / 60:.0f} minutes: "
        f"{threads()}detector train {' '.join((MODEL, *WORDS, full_words))}"
    )
    print(f"Detections in the photo: {project / 'photo' / PHOTO.name}")
    print(f"Detections drawn: {project / 'detections.jpg'}")
    print(f"What the network saw in training: {project / 'train/train_batch0.jpg'}")
    print(f"The trained model: {best}")


def main() -> None:
    """Read the options and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.5, help="time of the whole demo (default: 4.5)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="parent of the results (default: runs/demo)"
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="other settings, such as train.precision=fp32")
    options = parser.parse_args()
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes: expected a number above 0, got {options.minutes}")
    try:
        demo(options.minutes * 60, options.words, options.out)
    except DetectorError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
