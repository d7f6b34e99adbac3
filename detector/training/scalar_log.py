"""The metrics of a run for the programs of `train.loggers`, in addition to `results.csv`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from detector.training.events import Evaluated, Event, Noted, Report, Started
from detector.training.logger import LoggedRun, Logger
from detector.training.run_folder import RunFolder

_NO_SCALARS = ("epoch", "step", "time")


class ScalarLog:
    """Reporter that gives each row of `results.csv` to loggers, under the same names."""

    def __init__(
        self, folder: RunFolder, loggers: Sequence[Logger], settings: Mapping[str, object], report: Report
    ) -> None:
        """Set up a log that passes events on to `report` first.

        Args:
            folder: the run folder.
            loggers: the loggers; each is started at the first evaluation.
            settings: the configuration, flat.
            report: the next reporter.
        """
        self._folder, self._settings, self._report = folder, settings, report
        self._waiting, self._running = list(loggers), list[Logger]()
        self._first_step = 0

    def __call__(self, event: Event) -> None:
        """Pass an event on; after an evaluation, log its row of the results."""
        self._report(event)
        if isinstance(event, Started):
            self._first_step = event.first_step
        elif isinstance(event, Evaluated):
            run = LoggedRun(self._folder.path, self._first_step, self._settings)
            for logger in self._waiting:
                self._running.append(logger)
                self._attempt(logger, lambda logger=logger: logger.start(run))  # type: ignore[misc]  # mypy#12557
            self._waiting.clear()
            row = {name: text for name, text in self._folder.results()[-1].items() if name not in _NO_SCALARS}
            numbers = {name: float(text) for name, text in row.items() if text and math.isfinite(float(text))}
            for logger in tuple(self._running):
                self._attempt(logger, lambda logger=logger: logger.log(numbers, event.step))  # type: ignore[misc]

    def _attempt(self, logger: Logger, act: Callable[[], None]) -> None:
        """Let a logger act; one that fails gets nothing more."""
        try:
            act()
        except Exception as error:  # any error of another program, such as a server that is gone
            self._running.remove(logger)
            name = type(logger).__name__
            self._report(Noted(f"{name}: nothing more is logged, {type(error).__name__}: {error}", is_warning=True))

    def close(self) -> None:
        """Close the loggers."""
        for logger in tuple(self._running):
            self._attempt(logger, logger.close)
