"""`detector config`."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict

from detector.config.key_reference import all_keys_text, entries, key_text
from detector.config.key_table import KeyTable, key_table

_WIDTH = 160  # of a line where the terminal has no width of its own


def run(arguments: argparse.Namespace) -> int:
    """Print the keys of a configuration; return the exit code."""
    table = _surveyed() if arguments.imports else key_table()
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    texts = [key_text(table, word.partition("=")[0], width) for word in arguments.words]
    if arguments.json:
        chosen = [word.partition("=")[0] for word in arguments.words]
        listed = [
            entry
            for entry in entries(table)
            if not chosen or any(f"{entry.path}.".startswith(f"{word}.") for word in chosen)
        ]
        rows = [{"path": e.path, "of": e.owners, "source": e.section.source, **asdict(e.key)} for e in listed]
        print(json.dumps(rows))
    else:
        print("\n\n".join(texts) if texts else all_keys_text(table, width))
    return 0


def _surveyed() -> KeyTable:
    """Return the table with the parts of imported files."""
    from detector.config.key_survey import survey  # loads pydantic, and the next one torch
    from detector.tasks.task import TaskConfig

    return survey(TaskConfig)
