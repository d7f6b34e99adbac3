"""Count of the answers to requests for detections, by model and status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from detector.service.service_metrics import ServiceMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AnswerTimes:
    """Layer around the application that counts the answers of its routes for detections."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; its route sets `detector_model` of the scope."""
        started_s, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            if "detector_model" in scope:
                self._metrics.answered(scope["detector_model"], status, time.perf_counter() - started_s)
