"""`detector check`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli.data_words import DATA_HELP, configured
from detector.errors import DetectorError

if TYPE_CHECKING:
    from detector.data.doctor.findings import Report

_EXIT_CODE = 3  # that of an error in data


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("words", nargs="*", metavar="DATA key=value", help=f"{DATA_HELP}; then overrides")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="a split to look at (default all; may be repeated)"
    )
    parser.add_argument(
        "--config", default="base", metavar="CONFIG", help="what it will be trained with (default base)"
    )
    parser.add_argument("--quick", action="store_true", help="decode no image: headers and contents of files only")
    parser.add_argument("--strict", action="store_true", help="exit with 3 on warnings too, not on errors alone")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page with pictures")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the page, JSON, text and pictures there")


def run(arguments: argparse.Namespace) -> int:
    """Looks at a data set; returns the exit code."""
    from tqdm import tqdm

    from detector.cli.progress import say
    from detector.data.doctor.doctor_page import page
    from detector.data.doctor.doctor_text import report_text
    from detector.data.doctor.examination import examine, read_splits

    name, config = configured(arguments.words, arguments.config)
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
            canvas_hw=config.input.canvas_hw,
            fit=config.input.fit,
            channels=config.input.channels,
            augment=config.augment,
            decode=not arguments.quick,
            progress=progress,
        )
    if arguments.html is not None:
        _write(arguments.html, page(report).encode("utf-8"))
        say(f"page: {arguments.html}", arguments.quiet)
    if arguments.output is not None:
        _write_folder(arguments.output, report)
        say(f"report: {arguments.output}", arguments.quiet)
    print(json.dumps(report.to_plain()) if arguments.json else report_text(report))
    return 0 if report.is_clean(arguments.strict) else _EXIT_CODE


def _write_folder(folder: Path, report: Report) -> None:
    """The report in all forms, and the pictures of its offenders larger than on the page."""
    from detector.data.doctor.doctor_page import draw_offender, page
    from detector.data.doctor.doctor_text import report_text
    from detector.media.images import write_image

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
        raise DetectorError(f"{path}: the report cannot be written, {error.strerror}; give another place") from error
