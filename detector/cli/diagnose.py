"""`detector diagnose`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from detector.cli.image_bar import ImageBar
from detector.cli.progress import say, say_warning
from detector.cli.usage import split_words
from detector.evaluation.number_text import number_text
from detector.io.nouns import plural
from detector.tasks.requests import Observer
from detector.workflows.diagnose import Diagnosis, diagnose
from detector.workflows.training_progress import TrainingProgress


def run(arguments: argparse.Namespace) -> int:
    """Name what holds back the AP of a run; return the exit code."""
    names, overrides = split_words(arguments)
    progress = TrainingProgress(arguments.quiet, arguments.verbose)
    with ImageBar(is_shown=sys.stderr.isatty() and not arguments.quiet) as bar:
        observer = Observer(lambda text: say(text, arguments.quiet), say_warning, progress, bar)
        found = diagnose(Path(names[0]), tuple(overrides), num_images=arguments.images, observer=observer)
    print(json.dumps(found.to_plain()) if arguments.json else _text(found))
    return 0


def _text(found: Diagnosis) -> str:
    evidence = found.evidence
    lines = [evidence.run]
    for name, split in (("train", evidence.train), ("val", evidence.val)):
        if split is not None and split.num_measured:
            lines.append(
                f"{name}: AP {number_text(split.ap)}, AP50 {number_text(split.ap50)} on "
                f"{plural(split.num_measured, 'image')} of {split.num_images:,}"
            )
    if not found.causes:
        said = "Nothing stands out. More images and a larger network are what usually helps next."
        if evidence.train.ap < 0.3:
            said = "No known cause explains so low an AP on training images: check the data with detector check."
        return "\n".join([*lines, "", said])
    for number, cause in enumerate(found.causes, start=1):
        lines += ["", f"{number}. {cause.sentence}", *(f"   - {text}" for text in cause.evidence)]
        lines.append(f"   change first: {cause.change}. {cause.reason}")
    return "\n".join([*lines, "", "Change one thing at a time, the first one first, and compare the runs."])
