"""Child processes of Python that import nothing from the working folder.

Python puts the working folder first on the path of `python -m` and `python -c`, so a file `torch.py` beside the data
would be executed. Source: Python's documentation of `-P` and PYTHONSAFEPATH, which exist since 3.11.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import detector

_VARIABLE = "PYTHONSAFEPATH"


def detector_program() -> tuple[str, ...]:
    """Return the words that start the command line of this package in a child process."""
    root = str(Path(detector.__file__).resolve().parent.parent)
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd()]
    start = f"import sys; sys.path[:] = {[*path, root]!r}; from detector.__main__ import main; main()"
    return sys.executable, "-c", start


@contextmanager
def safe_path() -> Iterator[None]:
    """Start the processes of `multiprocessing` with a safe path meanwhile; Python 3.10 does not know the variable."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
