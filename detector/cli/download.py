"""`detector download`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from detector.cli.progress import say
from detector.models.published_weights import PublishedWeights
from detector.workflows import catalog
from detector.workflows.catalog import Published


def run(arguments: argparse.Namespace) -> int:
    """Download an entry of the catalogue, or list all entries; return the exit code."""
    if not arguments.words:
        for entry in catalog.published().values():
            print(_line(entry))
        return 0
    entry = catalog.find_published(arguments.words[0])
    say(f"{entry.name}: {entry.page}", arguments.quiet)
    say(f"licence: {entry.licence}", arguments.quiet)
    show = sys.stderr.isatty() and not arguments.quiet
    with tqdm(total=entry.num_bytes, unit="B", unit_scale=True, disable=not show) as bar:

        def progress(num_done: int) -> None:
            bar.update(num_done - bar.n)

        if isinstance(entry, PublishedWeights):
            target = arguments.out or Path("weights") / entry.file_name
            target = target / entry.file_name if target.is_dir() else target
            catalog.fetch_weights(entry, target, progress)
        else:
            target = arguments.out or Path("data") / entry.name
            catalog.fetch_data_set(entry, target, progress)
    print(target)
    return 0


def _line(entry: Published) -> str:
    """Return a line with the name, the size and the publisher's measurements."""
    what = "data set"
    if isinstance(entry, PublishedWeights):
        figures = {"AP": entry.ap, "AP50": entry.ap50}
        measured = ", ".join(f"{name} {figure}" for name, figure in figures.items() if figure is not None)
        what = f"{measured} at {entry.measured_at} ({entry.test_set})" if measured else "no figures stated"
        what = f"first {entry.num_layers} layers of {entry.network}" if entry.num_layers else what
    size = "-" if entry.num_bytes is None else f"{entry.num_bytes / 1e6:.1f}"
    return f"{entry.name:28} {size:>10} MB  {what}"
