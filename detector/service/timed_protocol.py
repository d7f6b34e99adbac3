"""Connections with limits on the head of a request: its time and its size."""

from __future__ import annotations

import asyncio
import re

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_TIMEOUT_S = 10.0
_HEAD_END = re.compile(rb"\n\r?\n")


class TimedProtocol(H11Protocol):
    """HTTP connection of uvicorn, which limits the idle time between two requests but not the time of their heads.

    h11 limits the bytes of a head that is incomplete after a read, and not those of a head that arrives in one read.
    """

    head_timeout_s = _HEAD_TIMEOUT_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; end the wait if its head is complete."""
        super().data_received(data)
        self._wait()

    def handle_events(self) -> None:
        """Handle what has arrived; refuse a head that is too long with the status 431."""
        if self.conn.their_state is h11.IDLE and self._has_long_head():
            reason = b"Request Header Fields Too Large"  # RFC 6585, section 5
            answer = h11.Response(status_code=431, reason=reason, headers=[("connection", "close")])
            self.transport.write((self.conn.send(answer) or b"") + (self.conn.send(h11.EndOfMessage()) or b""))
            self.transport.close()
        else:
            super().handle_events()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        self._end()
        super().connection_lost(exc)

    def _has_long_head(self) -> bool:
        arrived = self.conn.trailing_data[0]
        end = _HEAD_END.search(arrived)
        return (end.end() if end else len(arrived)) > (self.config.h11_max_incomplete_event_size or 0)

    def _wait(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._end()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
