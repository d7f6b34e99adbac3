"""Report as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from detector.data.doctor.findings import SEVERITIES, Finding, Report
from detector.io.nouns import plural

_MAX_CLASSES, _BAR = 20, 24
_WIDTH = 110


def report_text(report: Report) -> str:
    """Return the complete report as lines of text."""
    return "\n".join(
        [*_splits(report), *_classes(report), *_findings(report), *_suggestions(report), "", verdict(report)]
    )


def verdict(report: Report) -> str:
    """Return one line with the number of findings of each severity, or `clean`."""
    counts = [plural(report.num(severity), severity) for severity in SEVERITIES if report.num(severity)]
    return f"{report.source}: {', '.join(counts) or 'clean'} ({report.checked})"


def _splits(report: Report) -> Iterator[str]:
    if report.splits:
        yield f"{'split':<7}{'images':>9}{'empty':>8}{'objects':>10}{'crowd':>8}{'classes':>9}  object size 5/50/95 %"
    for s in report.splits:
        sizes = " / ".join(f"{value:.0f}" for value in s.object_px)
        shares = ", ".join(
            f"{count / max(s.num_objects, 1):.0%} {name}"
            for count, name in zip(s.num_small_medium_large, ("small", "medium", "large"), strict=True)
        )
        yield (
            f"{s.name:<7}{s.num_images:>9,}{s.num_empty:>8,}{s.num_objects:>10,}{s.num_crowds:>8,}{s.num_classes:>9}  "
            f"{sizes} px ({shares})"
        )


def _classes(report: Report) -> Iterator[str]:
    totals = {entry.name: sum(entry.num_objects.values()) for entry in report.classes}
    ranked = sorted(totals, key=lambda name: -totals[name])
    if not ranked:
        return
    yield ""
    hidden = len(ranked) - _MAX_CLASSES
    listed = ranked if hidden <= 0 else [*ranked[: _MAX_CLASSES // 2], *ranked[-_MAX_CLASSES // 2 :]]
    width = max(len(name) for name in listed)
    for position, name in enumerate(listed):
        if hidden > 0 and position == _MAX_CLASSES // 2:
            yield f"  ... {hidden} more classes"
        bar = "#" * round(_BAR * totals[name] / max(totals[ranked[0]], 1))
        yield f"  {name:<{width}}  {totals[name]:>9,}  {bar}".rstrip()


def _findings(report: Report) -> Iterator[str]:
    for finding in report.findings:
        yield ""
        where = finding.extent()
        yield f"{finding.severity}: {finding.title}" + (f" ({where})" if where else "") + f" [{finding.code}]"
        yield from _indented(finding)


def _indented(finding: Finding) -> Iterator[str]:
    for example in finding.examples:
        yield f"    {example}"
    yield from textwrap.wrap(finding.advice, _WIDTH, initial_indent="  > ", subsequent_indent="    ")


def _suggestions(report: Report) -> Iterator[str]:
    if report.suggestions:
        yield ""
        yield "suggestions"
    for s in report.suggestions:
        yield f"  {s.name}: {s.value}"
        yield from textwrap.wrap(s.reason, _WIDTH, initial_indent="    ", subsequent_indent="    ")
