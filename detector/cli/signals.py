"""Graceful shutdown on SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from types import FrameType


def noted_signals() -> list[int]:
    """Return a list that receives SIGINT and SIGTERM from now on; a second signal has its default effect."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, note)
    return caught
