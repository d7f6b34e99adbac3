"""The report of a study: a self-contained HTML page, the same in Markdown, and the numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from detector.evaluation.effect_sizes import MIN_PAIRS, SIGNIFICANCE
from detector.io.atomic import write_atomically
from detector.media.html import chart, page_of, table, text
from detector.media.study_charts import ValuesOfCell, effect_chart, trend_chart, value_chart
from detector.workflows.studies.records import StudyFolder
from detector.workflows.studies.summary import CellComparison, CellSummary, StudySummary

_EFFECT_HEADS = ("difference", "95 % interval", "effect size g", "pairs", "p", "corrected p", "the test supports")
_HOW = (
    "Difference: mean over pairs of runs of the same seed, recipe less baseline. Its interval is Student's, for that "
    "comparison by itself.",
    "Effect size: Hedges' g of the paired differences, their mean over their deviation, corrected for few pairs.",
    "The test is the paired t test, two-sided; the corrected p holds for all comparisons of the study together (Holm). "
    f"A difference is claimed where it is at most {SIGNIFICANCE} and there are at least {MIN_PAIRS} pairs. An "
    "unsupported difference does not mean equality.",
    "All this holds for seeds and comparisons that were chosen before the first result was seen. Adding seeds until "
    "a difference shows, or leaving values out afterwards, produces more false claims than the test allows for.",
    "Runs differ by their seed: initialisation, order and augmentation. The study says "
    "nothing about other data sets, sizes or recipes.",
)


def write_report(summary: StudySummary, folder: StudyFolder) -> Path:
    """Write `report.html`, `report.md` with its charts, and `summary.json` into the folder of a study.

    Returns:
        The page.

    Raises:
        CheckpointError: a file cannot be written.
    """
    charts = [entry for entry in _charts(summary) if entry is not None]
    for name, _, picture in charts:
        _write(folder.path / f"{name}.png", picture)
    _write(folder.path / "summary.json", json.dumps(summary.to_plain(), indent=1, allow_nan=False).encode())
    _write(folder.path / "report.md", "\n".join(_markdown(summary, charts)).encode())
    page = folder.path / "report.html"
    _write(page, page_of(summary.study.title, _page(summary, charts)).encode())
    return page


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _number(value: float, digits: int = 4, sign: str = "") -> str:
    return "n/a" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def _verdict(comparison: CellComparison) -> str:
    effect = comparison.effect
    if effect.is_descriptive:
        return "nothing: descriptive only"
    if not effect.is_claimed:
        return "nothing"
    return "a higher value" if effect.difference > 0 else "a lower value"


def _effect_row(summary: StudySummary, comparison: CellComparison) -> list[str]:
    effect = comparison.effect
    span = f"{_number(effect.low, sign='+')} to {_number(effect.high, sign='+')}" if effect.num_pairs > 1 else "n/a"
    return [
        f"{comparison.value} against {summary.study.baseline}" + (f", {comparison.place}" if comparison.place else ""),
        _number(effect.difference, sign="+"),
        span,
        _number(effect.size, 2, "+"),
        str(effect.num_pairs),
        _p(effect.p_value),
        _p(effect.corrected_p),
        _verdict(comparison),
    ]


def _cell_heads(summary: StudySummary) -> list[str]:
    metric = summary.study.metric
    judged = [f"{metric}, {summary.study.judged} evaluation", "deviation", "95 % interval", f"best {metric}"]
    return [*judged, "runs", "ms a step", "s an epoch", "peak MiB"]


def _cell_row(cell: CellSummary) -> list[str]:
    runs = str(cell.num_runs) + (f" ({cell.num_diverged} diverged)" if cell.num_diverged else "")
    return [
        cell.name,
        _number(cell.mean),
        _number(cell.deviation),
        "n/a" if math.isnan(cell.low) else f"{cell.low:.4f} to {cell.high:.4f}",
        _number(cell.best),
        runs,
        _number(cell.step_s * 1e3, 1),
        _number(cell.epoch_s, 1),
        _number(cell.peak_bytes / 2**20, 0),
    ]


def _charts(summary: StudySummary) -> Iterator[tuple[str, str, bytes] | None]:
    study, metric = summary.study, summary.study.metric
    known = [c for c in summary.comparisons if c.effect.num_pairs > 1]
    if known:
        rows = [
            (f"{c.value}{f' ({c.place})' if c.place else ''}", c.effect.difference, c.effect.low, c.effect.high,
             c.effect.is_claimed)
            for c in known
        ]  # fmt: skip
        yield (
            "effects",
            f"{metric} less that of {study.baseline}, with 95 % intervals",
            effect_chart(rows, f"difference in {metric} from {study.baseline}"),
        )
    if not any(cell.values for cell in summary.cells):
        return
    others = [axis for axis in study.axes if axis != study.compare]
    if len(others) == 1 and len(study.axes[others[0]]) > 1:
        lines = {
            value: [_drawn(cell) for cell in summary.cells if cell.cell[study.compare] == value]
            for value in study.axes[study.compare]
        }
        title = f"{metric} against {others[0]}, means with 95 % intervals"
        yield "trend", title, trend_chart(list(study.axes[others[0]]), lines, others[0], metric)
    cells = {cell.name: _drawn(cell) for cell in summary.cells}
    yield "values", f"{metric} of every run, means with 95 % intervals", value_chart(cells, metric)


def _drawn(cell: CellSummary) -> ValuesOfCell:
    return ValuesOfCell(list(cell.values.values()), cell.mean, cell.low, cell.high)


def _facts(summary: StudySummary) -> Iterator[str]:
    study = summary.study
    axes = "; ".join(f"{axis}: {', '.join(values)}" for axis, values in study.axes.items())
    yield f"{axes}; {study.seeds} seeds each: {summary.num('runs')} of {summary.num_planned} runs done."
    changed = " ".join({text.partition("=")[0]: text for text in study.overrides}.values())  # the last of a key counts
    yield f"Experiment {Path(study.experiment).stem}" + (f" with {changed}." if changed else ".")
    if summary.machines:
        yield f"Measured on {'; '.join(summary.machines)}."


def _page(summary: StudySummary, charts: Sequence[tuple[str, str, bytes]]) -> Iterator[str]:
    yield f"<h1>{text(summary.study.title)}</h1>"
    yield from (f"<p class='soft'>{text(fact)}</p>" for fact in _facts(summary))
    yield "<div class='card'>" + "".join(f"<p>{text(s)}</p>" for s in summary.sentences()) + "</div>"
    if summary.comparisons:
        yield "<h2>Effects</h2>"
        yield table(("comparison", *_EFFECT_HEADS), [_effect_row(summary, c) for c in summary.comparisons])
    yield "<div class='charts'>"
    yield from (chart(title, picture) for _, title, picture in charts)
    yield "</div><h2>Numbers</h2>"
    yield table((", ".join(summary.study.axes), *_cell_heads(summary)), [_cell_row(cell) for cell in summary.cells])
    if summary.failures:
        yield "<h2>Runs without a result</h2>"
        yield table(("run", "why"), [(key, why[-400:]) for key, why in summary.failures])
    yield "<h2>How to read this</h2><ul>" + "".join(f"<li>{text(line)}</li>" for line in _HOW) + "</ul>"


def _markdown(summary: StudySummary, charts: Sequence[tuple[str, str, bytes]]) -> Iterator[str]:
    yield f"# {summary.study.title}\n"
    yield from (f"{fact}\n" for fact in _facts(summary))
    yield from (f"- {sentence}" for sentence in summary.sentences())
    if summary.comparisons:
        yield "\n## Effects\n"
        yield from _rows(("comparison", *_EFFECT_HEADS), [_effect_row(summary, c) for c in summary.comparisons])
    for name, title, _ in charts:
        yield f"\n![{title}]({name}.png)"
    yield "\n## Numbers\n"
    heads = (", ".join(summary.study.axes), *_cell_heads(summary))
    yield from _rows(heads, [_cell_row(cell) for cell in summary.cells])
    if summary.failures:
        yield "\n## Runs without a result\n"
        yield from _rows(("run", "why"), [(key, " ".join(why[-400:].split())) for key, why in summary.failures])
    yield "\n## How to read this\n"
    yield from (f"- {line}" for line in _HOW)
    yield ""


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
