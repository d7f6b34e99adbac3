"""Limits of the service."""

from __future__ import annotations

import math
from dataclasses import dataclass

from detector.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServiceConfig:
    """Address and limits of the service.

    Attributes:
        host: address to listen at; other machines reach only an address that is not the loopback.
        port: port to listen at; 0 for a free one.
        allowed_hosts: names that a request may address the service by, besides those of this machine; `*` for any.
        batch_size: most images in a pass of the network.
        max_wait_s: longest time in seconds that an image waits for others to fill its batch.
        max_bytes: most bytes of an image file; larger ones get the status 413.
        max_pixels: most pixels of an image, taken from its header; larger ones get the status 413.
        max_queue: most requests in work; further ones get the status 503.
        body_timeout_s: longest time in seconds for the body of a request to arrive; slower ones get the status 408.
        timeout_s: longest time in seconds from the whole body to the answer; later ones get the status 504.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    batch_size: int = 4
    max_wait_s: float = 0.005
    max_bytes: int = 20 << 20
    max_pixels: int = 25_000_000
    max_queue: int = 64
    body_timeout_s: float = 10.0
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        numbers = {"batch": self.batch_size, "queue": self.max_queue, "limits": min(self.max_bytes, self.max_pixels)}
        for what, number in numbers.items():
            if number < 1:
                raise ConfigError(f"detector serve: expected {what} of at least 1, got {number}; raise it")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port: expected a number within 0..65535, got {self.port}")
        if odd := [name for name in self.allowed_hosts if "*" in name.removeprefix("*.") and name != "*"]:
            raise ConfigError(f"--allow-host: expected a name, *.name or *, got {odd[0]}")
        times = self.body_timeout_s, self.timeout_s
        if not (0 <= self.max_wait_s < self.timeout_s and all(0 < time_s < math.inf for time_s in times)):
            raise ConfigError(
                f"--timeout, --body-timeout and --max-wait: expected times above 0 and a wait below the timeout, got "
                f"{self.timeout_s:g} s, {self.body_timeout_s:g} s and {self.max_wait_s:g} s"
            )

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """Names that a request may address the service by.

        On the loopback a page of another site could otherwise reach the service under a name of its own, which it
        points to this machine (DNS rebinding).
        """
        is_local = self.host.lower() in LOOPBACK or self.host.startswith("127.")
        if not (is_local or self.allowed_hosts):
            return ("*",)
        return (*LOOPBACK, "[::1]", self.host, *self.allowed_hosts)
