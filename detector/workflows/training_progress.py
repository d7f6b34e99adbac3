"""Training events on a terminal, in a notebook, in a pipe, or not at all."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm.auto import tqdm

from detector.evaluation.number_text import number_text
from detector.inference.shown_results import is_notebook
from detector.io.guarded_stream import GuardedStream
from detector.training.events import Evaluated, Event, Noted, Report, Started, StepDone

_SHOWN_STATS = ("AP", "AP50", "AP75", "top1", "top5", "entropy")  # metrics shown during training
_LINE_EVERY_S = 15.0  # a pipe gets a line at this interval instead of a bar


class TrainingProgress:
    """Reporter that shows training events."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        """Set up a reporter: `quiet` shows warnings only, `verbose` all notes on data, not the first ten only."""
        self._quiet, self._verbose = quiet, verbose
        self._stream = GuardedStream(sys.stderr)  # a terminal that has gone must not end the training
        self._bar: tqdm[NoReturn] | None = None
        self._last_line_s = -math.inf
        self._num_notes = 0
        self._first: tuple[int, float] | None = None  # step and time of the first line

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Noted) and event.is_warning:
            self._write(f"warning: {event.text}")
        elif self._quiet:
            return
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Evaluated):
            self._write(_evaluated_line(event))
        elif isinstance(event, Noted):
            self._num_notes += event.is_of_data
            if self._verbose or not event.is_of_data or self._num_notes <= 10:
                self._write(event.text)
            elif self._num_notes == 11:
                self._write("more notes on the data are not shown; see them with -v")

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def _start(self, event: Started) -> None:
        self.close()  # of the run before, where several follow one another
        self._bar, self._first = None, None
        if event.first_step >= event.num_steps:
            self._say(
                f"the run is finished after {event.num_steps} steps, nothing is left to train; run {event.folder}"
            )
            return
        where = f"{event.device}, {event.precision}"
        again = f", resumed at step {event.first_step}" if event.first_step else ""
        self._say(
            f"training {event.num_steps} steps ({event.num_epochs:.1f} epochs) on {where}{again}; run {event.folder}"
        )
        if self._stream.isatty() or is_notebook():
            self._bar = tqdm(
                total=event.num_steps, initial=event.first_step, unit="step", dynamic_ncols=True, file=self._stream
            )

    def _step(self, event: StepDone) -> None:
        losses = " ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
        if self._bar is not None:
            self._bar.set_postfix_str(f"{losses} {event.images_per_s:.1f} images/s", refresh=False)
            self._bar.update(event.step - self._bar.n)
        elif time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            left_s = (event.num_steps - event.step) * self._seconds_per_step(event)
            left = f" about {left_s / 60:.1f} min left" if left_s else ""
            self._say(f"step {event.step}/{event.num_steps} {losses} {event.images_per_s:.1f} images/s{left}")

    def _seconds_per_step(self, event: StepDone) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = (event.step, now)
        steps = event.step - self._first[0]
        return (now - self._first[1]) / steps if steps else 0.0

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


@contextmanager
def shown_progress(report: Report | None = None, progress: bool | None = None) -> Iterator[Report]:
    """Yield a receiver of training events that shows them on stderr or in a notebook.

    Args:
        report: another receiver of every event, or None.
        progress: whether anything is shown; None shows it in a terminal or notebook if there is no other receiver.
    """
    if progress is None:
        progress = report is None and (GuardedStream(sys.stderr).isatty() or is_notebook())
    shown = TrainingProgress()

    def receive(event: Event) -> None:
        if progress:
            shown(event)
        if report is not None:
            report(event)

    try:
        yield receive
    finally:
        shown.close()


def _evaluated_line(event: Evaluated) -> str:
    shown = [f"{name} {number_text(value)}" for name, value in event.metrics.stats.items() if name in _SHOWN_STATS]
    best = " (best so far)" if event.is_best else ""
    return f"step {event.step}: {' '.join(shown)}{best} after {event.elapsed_s:.0f} s"
