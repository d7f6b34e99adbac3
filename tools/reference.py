"""Write the table of configuration keys and the pages of their reference, from the code and its docstrings.

Run `make reference` after a key, its default or its docstring has changed.
"""

from __future__ import annotations

from pathlib import Path

from detector.config.key_reference import pages
from detector.config.key_survey import survey
from detector.config.key_table import TABLE_FILE, table_to_text
from detector.tasks.task import TaskConfig

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def main() -> None:
    """Write the files."""
    table = survey(TaskConfig)
    TABLE_FILE.write_text(table_to_text(table), encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    made = pages(table)
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for stale in {path.name for path in FOLDER.glob("*.md")} - set(made):
        (FOLDER / stale).unlink()
    print(f"{TABLE_FILE} and {len(made)} pages in {FOLDER}")


if __name__ == "__main__":
    main()
