"""Signals that let what is under way come to a good end."""

from __future__ import annotations

import signal
from types import FrameType


def noted_signals() -> list[int]:
    """From now on SIGINT and SIGTERM are noted in the list that is given; a second one takes its default course."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, note)
    return caught
