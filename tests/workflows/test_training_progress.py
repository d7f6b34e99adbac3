"""Training events as they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.training.events import Event, Noted, Started
from detector.workflows.training_progress import TrainingProgress


def shown(capsys: pytest.CaptureFixture[str], *events: Event, verbose: bool = False) -> list[str]:
    progress = TrainingProgress(verbose=verbose)
    for event in events:
        progress(event)
    progress.close()
    return capsys.readouterr().err.splitlines()


def test_note_on_the_run_is_shown_after_many_notes_on_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    notes = [Noted(f"image {number}", is_of_data=True) for number in range(15)]
    told = "starting from given weights"
    lines = shown(capsys, *notes, Noted(told))
    assert lines == [*(f"image {n}" for n in range(10)), "more notes on the data are not shown; see them with -v", told]
    assert len(shown(capsys, *notes, Noted(told), verbose=True)) == 16


def test_finished_run_is_not_said_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    finished, half = (Started(Path("runs/a"), 30, step, 2.0, "fp32", "cpu") for step in (30, 15))
    (line,) = shown(capsys, finished)
    assert line == f"the run is finished after 30 steps, nothing is left to train; run {Path('runs/a')}"
    (line,) = shown(capsys, half)
    assert "training 30 steps" in line
    assert "resumed at step 15" in line


def test_warning_is_shown_also_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(quiet=True)
    progress(Noted("starting from given weights"))
    progress(Noted("1 of 3 categories match no class", is_warning=True))
    assert capsys.readouterr().err == "warning: 1 of 3 categories match no class\n"
