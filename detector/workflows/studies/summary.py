"""Summary of a study: numbers of every combination, a test for every comparison, and sentences supported by them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from detector.config.schema import config_to_plain
from detector.evaluation.effect_sizes import MIN_PAIRS, SIGNIFICANCE, Effect, corrected, interval, paired_effect
from detector.workflows.studies.plan import StudyConfig, runs_of
from detector.workflows.studies.records import RunRecord, StudyFolder


@dataclass(frozen=True)
class CellSummary:
    """One combination of settings over its seeds. An undefined number is NaN.

    Attributes:
        cell: its value on each axis.
        values: the judged metric by seed, of the runs that have one.
        mean: mean of the values.
        deviation: their standard deviation (n - 1).
        low: lower end of the 95 % t interval of the mean.
        high: its upper end.
        best: mean of the best evaluation of each run; a diverged run counts as in the values.
        step_s: median over the runs of the time of a step, in seconds.
        epoch_s: median over the runs of the time of a pass over the training data, in seconds.
        peak_bytes: largest peak memory of a run.
        num_runs: finished and diverged runs.
        num_diverged: diverged runs.
        num_failed: runs that failed otherwise.
    """

    cell: dict[str, str]
    values: dict[int, float]
    mean: float
    deviation: float
    low: float
    high: float
    best: float
    step_s: float
    epoch_s: float
    peak_bytes: float
    num_runs: int
    num_diverged: int
    num_failed: int

    @property
    def name(self) -> str:
        """The values in the order of the axes."""
        return ", ".join(self.cell.values())


@dataclass(frozen=True)
class CellComparison:
    """A value of the compared axis against the baseline, at the same values of all other axes.

    Attributes:
        within: the values of the other axes.
        value: the value.
        effect: its effect, corrected for all comparisons of the study.
        num_unpaired: seeds for which one of the two has no number.
    """

    within: dict[str, str]
    value: str
    effect: Effect
    num_unpaired: int

    @property
    def place(self) -> str:
        """The values of the other axes as text; empty with one axis."""
        return ", ".join(f"{axis} {value}" for axis, value in self.within.items())


@dataclass(frozen=True)
class StudySummary:
    """A study and its results.

    Attributes:
        study: the study.
        cells: every combination.
        comparisons: the comparisons in the order of the other axes, then of the values.
        failures: key and error of each run that failed or diverged.
        machines: descriptions of the machines of the runs.
    """

    study: StudyConfig
    cells: tuple[CellSummary, ...]
    comparisons: tuple[CellComparison, ...]
    failures: tuple[tuple[str, str], ...]
    machines: tuple[str, ...]

    def num(self, what: str) -> int:
        """Return the number of runs that finished or diverged (`runs`), that `diverged` or that `failed`."""
        return sum(int(getattr(cell, f"num_{what}")) for cell in self.cells)

    @property
    def num_planned(self) -> int:
        """Number of runs of the whole study."""
        return len(self.cells) * self.study.seeds

    def sentences(self) -> list[str]:
        """Return the results as sentences that claim only what the test supports."""
        return list(_sentences(self))

    def to_plain(self) -> dict[str, object]:
        """Return the summary as plain data for JSON; an undefined number is None."""
        cells = [{**vars(cell), "values": {str(seed): v for seed, v in cell.values.items()}} for cell in self.cells]
        comparisons = [{**vars(c), "effect": c.effect.to_plain()} for c in self.comparisons]
        return {
            "study": config_to_plain(self.study),
            "cells": [{name: _known(value) for name, value in cell.items()} for cell in cells],
            "comparisons": comparisons,
            "failures": [list(failure) for failure in self.failures],
            "machines": list(self.machines),
            "sentences": self.sentences(),
        }


def _known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def summarise(study: StudyConfig, folder: StudyFolder) -> StudySummary:
    """Summarise the finished runs of a study.

    Raises:
        DatasetError: a record cannot be read.
        ConfigError: a record is of a run with other settings.
    """
    planned = runs_of(study)
    records = {run.key: folder.read(run) for run in planned}
    by_cell: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in planned:
        record = records[run.key]
        by_cell.setdefault(tuple(run.cell.values()), []).extend([record] if record is not None else [])
    cells = {key: _cell(study, dict(zip(study.axes, key, strict=True)), found) for key, found in by_cell.items()}
    known = [(key, record) for key, record in records.items() if record is not None]
    return StudySummary(
        study,
        tuple(cells.values()),
        tuple(_comparisons(study, cells)),
        tuple((key, f"{record.state}, {record.error}") for key, record in known if record.error is not None),
        tuple(sorted({record.machine for _, record in known if record.machine})),
    )


def _value(study: StudyConfig, record: RunRecord, judged: str) -> float:
    if record.state == "diverged" and study.diverged is not None:
        return study.diverged
    return record.number(study.metric, judged)


def _values(study: StudyConfig, records: list[RunRecord], judged: str) -> dict[int, float]:
    """Return the defined numbers by seed."""
    found = {record.seed: _value(study, record, judged) for record in records}
    return {seed: value for seed, value in found.items() if not math.isnan(value)}


def _cell(study: StudyConfig, cell: dict[str, str], records: list[RunRecord]) -> CellSummary:
    values = _values(study, records, study.judged)
    finished = [record for record in records if record.state == "finished"]
    numbers = list(values.values())
    return CellSummary(
        cell,
        values,
        _of(numbers, statistics.fmean),
        statistics.stdev(numbers) if len(numbers) > 1 else math.nan,
        *interval(numbers),
        _of(list(_values(study, records, "best").values()), statistics.fmean),
        _of([r.step_s for r in finished if r.step_s], statistics.median),
        _of([r.step_s * r.num_steps / r.num_epochs for r in finished if r.step_s and r.num_epochs], statistics.median),
        _of([float(r.peak_bytes) for r in finished if r.peak_bytes], max),
        sum(record.is_done for record in records),
        sum(record.state == "diverged" for record in records),
        sum(record.state == "failed" for record in records),
    )


def _of(numbers: list[float], function: Callable[[list[float]], float]) -> float:
    return float(function(numbers)) if numbers else math.nan


def _comparisons(study: StudyConfig, cells: Mapping[tuple[str, ...], CellSummary]) -> Iterator[CellComparison]:
    others = {axis: list(values) for axis, values in study.axes.items() if axis != study.compare}
    found: list[tuple[dict[str, str], str, Effect, int]] = []
    for combination in itertools.product(*others.values()):
        within = dict(zip(others, combination, strict=True))

        def values_of(value: str, within: dict[str, str] = within) -> dict[int, float]:
            return cells[tuple({**within, study.compare: value}[axis] for axis in study.axes)].values

        baseline = values_of(study.baseline)
        for value in study.axes[study.compare]:
            if value != study.baseline:
                own = values_of(value)
                pairs = [seed for seed in own if seed in baseline]
                effect = paired_effect([own[seed] for seed in pairs], [baseline[seed] for seed in pairs])
                found.append((within, value, effect, study.seeds - len(pairs)))
    effects = corrected([effect for _, _, effect, _ in found])
    for (within, value, _, num_unpaired), effect in zip(found, effects, strict=True):
        yield CellComparison(within, value, effect, num_unpaired)


def _sentences(summary: StudySummary) -> Iterator[str]:
    study, tested = summary.study, [c for c in summary.comparisons if not c.effect.is_descriptive]
    done, planned = summary.num("runs"), summary.num_planned
    if not done:
        yield f"None of {planned} runs is done yet."
    elif done < planned:
        yield f"{done} of {planned} runs are done; the results cover these only."
    left_out = "left out of all comparisons, with its paired run"
    if diverged := summary.num("diverged"):
        counted = left_out if study.diverged is None else f"counted as {study.metric} {study.diverged:g}"
        yield f"{_counted(diverged, 'run')} diverged; each is {counted}."
    if failed := summary.num("failed"):
        yield f"{_counted(failed, 'run')} failed; each is {left_out}."
    for comparison in tested:
        effect, place = comparison.effect, f"At {comparison.place}, " if comparison.place else ""
        if effect.is_claimed:
            above = "higher" if effect.difference > 0 else "lower"
            yield (
                f"{place}{comparison.value} has {above} {study.metric} than {study.baseline}: by "
                f"{abs(effect.difference):.4f} on average (95 % interval of the difference {effect.low:+.4f} to "
                f"{effect.high:+.4f}, g {effect.size:+.1f}, corrected p {effect.corrected_p:.2g}, "
                f"n = {effect.num_pairs})."
            )
    unclaimed = [comparison for comparison in tested if not comparison.effect.is_claimed]
    if unclaimed:
        names = "; ".join(f"{c.value}{f' at {c.place}' if c.place else ''}" for c in unclaimed)
        yield (
            f"Not shown to differ from {study.baseline} in {study.metric}: {names}. This does not prove equality; "
            "the intervals show how large a difference may still be."
        )
    if tested:
        yield (
            f"The probability of any false claim among {_counted(len(tested), 'comparison')} is at most "
            f"{100 * SIGNIFICANCE:.0f} % (paired t test, corrected by Holm)."
        )
    untested = [c for c in summary.comparisons if c.effect.is_descriptive and c.effect.num_pairs]
    if any(c.effect.num_pairs < MIN_PAIRS for c in untested):
        yield (
            f"Descriptive only: fewer than {MIN_PAIRS} pairs of runs cannot show significance, so nothing is claimed "
            "from them."
        )
    if any(c.effect.num_pairs >= MIN_PAIRS for c in untested):
        yield "If all pairs differ by the same number, there is no deviation for a test, and nothing is claimed."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
