"""`detector check`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from detector.cli.data_words import configured
from detector.cli.progress import say
from detector.cli.usage import data_words
from detector.data.doctor.doctor_page import draw_offender, page
from detector.data.doctor.doctor_text import report_text
from detector.data.doctor.examination import examine, read_splits
from detector.data.doctor.findings import Report
from detector.errors import DetectorError
from detector.media.images import write_image
from detector.structures.canvas import Canvas

_EXIT_CODE = 3  # the exit code of data errors


def run(arguments: argparse.Namespace) -> int:
    """Check a data set; return the exit code."""
    name, config = configured(data_words(arguments, arguments.words), arguments.config)
    assert config.data is not None  # `configured` names one
    splits, refusals = read_splits(config.data, tuple(dict.fromkeys(arguments.split)))
    show = sys.stderr.isatty() and not arguments.quiet
    with tqdm(unit="image", disable=not show, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = examine(
            name,
            splits,
            refusals=refusals,
            canvas=Canvas(config.input.canvas_hw, config.input.channels, config.input.fit),
            augment=config.augment,
            decode=not arguments.quick,
            progress=progress,
        )
    if arguments.html is not None:
        _write(arguments.html, page(report).encode("utf-8"))
        say(f"page: {arguments.html}", arguments.quiet)
    if arguments.out is not None:
        _write_folder(arguments.out, report)
        say(f"report: {arguments.out}", arguments.quiet)
    print(json.dumps(report.to_plain()) if arguments.json else report_text(report))
    return 0 if report.is_clean(arguments.strict) else _EXIT_CODE


def _write_folder(folder: Path, report: Report) -> None:
    """Write the report in all forms, and larger pictures of its offenders than on the page."""
    _write(folder / "report.html", page(report).encode("utf-8"))
    _write(folder / "report.json", json.dumps(report.to_plain(), indent=2).encode("utf-8"))
    _write(folder / "report.txt", f"{report_text(report)}\n".encode("utf-8", "backslashreplace"))
    for finding in report.findings:
        for number, offender in enumerate(finding.offenders, start=1):
            picture = draw_offender(report, offender, 1280)
            if picture is not None:
                write_image(folder / f"{finding.code}-{number}.jpg", picture)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise DetectorError(f"{path}: the report cannot be written, {error.strerror}; choose another path") from error
