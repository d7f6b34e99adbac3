"""Figures of the service for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus' text format
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServiceMetrics:
    """Counters and histograms of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "detector_requests", "Answered requests for detections.", ("model", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "detector_request_seconds",
            "Time from a request to its answer.",
            ("model",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._images = Histogram(
            "detector_batch_images",
            "Images in a pass of the network.",
            ("model",),
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self._open = Gauge("detector_open_requests", "Requests in work.", registry=self._registry)

    def watch_open(self, count: Callable[[], int]) -> None:
        """Take the number of requests in work from a function."""
        self._open.set_function(count)

    def answered(self, model: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(model, str(status)).inc()
        self._seconds.labels(model).observe(seconds)

    def batch(self, model: str, num_images: int) -> None:
        """Count a pass of a network."""
        self._images.labels(model).observe(num_images)

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return generate_latest(self._registry)
