"""Text output that cannot end a job: its reader may leave, its disk may fill, its encoding may lack characters."""

from __future__ import annotations

import io
from typing import TextIO


class GuardedStream(io.TextIOBase):
    """Text stream around another one whose failures are noted instead of raised.

    Characters that the other stream cannot encode are written as escapes. After a failure nothing more is written.

    Attributes:
        failure: why text was lost, or None.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Guard a stream; None, as `sys.stdout` is in a process without one, takes all text and writes none."""
        self._stream = stream
        self.failure: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in the stubs
        """Encoding of the other stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Return true."""
        return True

    def isatty(self) -> bool:
        """Return true if the other stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def fileno(self) -> int:
        """Return the descriptor of the other stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write text, as far as that is still possible; return its length."""
        if self._stream is None or self.failure is not None:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.failure = error
        return len(text)

    def flush(self) -> None:
        """Pass on the text that was written."""
        if self._stream is None or self.failure is not None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.failure = error


def has_failed(stream: object) -> bool:
    """Return true if a guarded stream has lost text; false for other streams."""
    return isinstance(stream, GuardedStream) and stream.failure is not None
