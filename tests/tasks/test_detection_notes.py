"""Notes at the start of a run: objects that a model with anchors leaves out, tiles that evaluation does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detector.tasks.detection import DetectionTask
from detector.tasks.detection_config import DetectionConfig
from detector.training.distributed import World
from detector.training.events import Noted
from detector.training.run_folder import RunFolder

Make = Callable[..., DetectionConfig]
ANCHORS = "model.head={name: anchor, anchors: [[4, 4], [8, 8], [12, 12]], training: {max_truths: %d}}"


@pytest.mark.parametrize(
    ("overrides", "notes"),
    [
        ([], []),  # a head without anchors
        (["augment.tile=32", "views.tile=32"], []),
        (["augment.tile=32"], ["training shows tiles of 32 px, evaluation whole images: objects have another size"]),
        (["augment.tile=32", "views.tile=48"], ["evaluation tiles of 48 px: objects have another size there; give v"]),
        ([ANCHORS % 200, "loss=anchor", "input.size=32"], []),
        ([ANCHORS % 200, "loss=anchor"], ["express sides of up to 48 px, the canvas has 64 px"]),
        ([ANCHORS % 200, "loss=anchor", "model.head.new_coords=false"], []),  # exponentials have no bound
        (
            [ANCHORS % 1, "loss=anchor", "input.size=32"],
            ["only the first 1 objects of a training image are trained on: %d images have more, the fullest %d, and a"],
        ),
        (
            [ANCHORS % 1, "loss=anchor", "input.size=32", "augment.mosaic=0"],
            ["only the first 1 objects of a training image are trained on: %d images have more, the fullest %d; raise"],
        ),
    ],
)
def test_objects_that_cannot_be_trained_are_noted(
    overrides: list[str], notes: list[str], experiment: Make, tmp_path: Path
) -> None:
    config = experiment(*overrides)
    task = DetectionTask(config, lambda event: None)
    told: list[str] = []

    def report(event: object) -> None:
        if isinstance(event, Noted):
            told.append(event.text)

    task.batches(task.model(), 0, 1, RunFolder.create(tmp_path / "runs", "notes"), World(), report)
    labels = [task._annotations.labels_of(i) for i in range(task.num_images)]
    numbers = sum(len(each) > 1 for each in labels), max(map(len, labels))
    assert len(told) == len(notes)
    for text, note in zip(told, notes, strict=True):
        assert (note % numbers if "%d" in note else note) in text
