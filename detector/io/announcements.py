"""Lines for people from code that prints nothing, such as the recognition of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=lambda text: None)


def announce(text: str) -> None:
    """Pass a line to the function that listens, if there is one."""
    _listener.get()(text)


@contextlib.contextmanager
def announcing(listener: Callable[[str], None]) -> Iterator[None]:
    """Pass every line that is announced while the block runs to a function, each line once."""
    told: set[str] = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            listener(text)

    token = _listener.set(tell_once)
    try:
        yield
    finally:
        _listener.reset(token)
