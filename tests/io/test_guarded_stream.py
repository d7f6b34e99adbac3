from __future__ import annotations

import io
import os

import pytest

from detector.io.guarded_stream import GuardedStream, has_failed


class Failing(io.StringIO):
    """Stream whose writes or flushes fail."""

    def __init__(self, error: Exception, on: str) -> None:
        super().__init__()
        self.error, self.on, self.num_tries = error, on, 0

    def write(self, text: str) -> int:
        self.num_tries += 1
        if self.on == "write":
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.on == "flush":
            raise self.error


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_characters_that_an_encoding_lacks_become_escapes(encoding: str) -> None:
    raw = io.BytesIO()
    stream = GuardedStream(io.TextIOWrapper(raw, encoding=encoding))
    for text in ("猫 ü\n", "plain\n", "\ud800\n"):
        assert stream.write(text) == len(text)
    stream.flush()
    first = {"cp1252": "\\u732b ü", "ascii": "\\u732b \\xfc", "utf-8": "猫 ü"}[encoding]
    assert raw.getvalue().decode(encoding).splitlines() == [first, "plain", "\\ud800"]
    assert stream.encoding == encoding
    assert not has_failed(stream)


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed")]
)
@pytest.mark.parametrize("on", ["write", "flush"])
def test_failure_is_noted_once_and_nothing_more_is_written(error: Exception, on: str) -> None:
    failing = Failing(error, on)
    stream = GuardedStream(failing)
    for _ in range(3):
        print("text", file=stream, flush=True)
    assert stream.failure is error
    assert has_failed(stream)
    assert failing.num_tries <= 2  # the text and the end of the line


def test_missing_and_closed_streams_take_text() -> None:
    missing, closed = GuardedStream(None), io.StringIO()
    closed.close()
    for stream in (missing, GuardedStream(closed)):
        print("text", file=stream, flush=True)
        assert not stream.isatty()
    assert missing.failure is None
    with pytest.raises(OSError, match="no stream"):
        missing.fileno()


def test_terminal_stays_a_terminal() -> None:
    if not hasattr(os, "openpty"):
        pytest.skip("no pseudo terminals")
    leader, follower = os.openpty()
    try:
        with open(follower, "w", closefd=False) as terminal:
            assert GuardedStream(terminal).isatty()
            assert GuardedStream(terminal).fileno() == follower
    finally:
        os.close(leader)
        os.close(follower)
