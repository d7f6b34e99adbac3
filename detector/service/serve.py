"""The service from start to end."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from detector.errors import DetectorError
from detector.service.served_models import open_models
from detector.service.service_config import ServiceConfig

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

_LIBRARIES = ("fastapi", "uvicorn", "prometheus_client")
_MAX_HEAD_BYTES = 16 << 10  # of the first line and the headers of a request
_IDLE_S = 5  # after which a connection without a request is closed


def require_service_libraries() -> None:
    """Reject a missing library.

    Raises:
        DetectorError: one of the modules cannot be imported.
    """
    for library in _LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise DetectorError(
                f"detector serve needs the library {error.name or library}, which is not installed; "
                'pip install "detector-toolkit[serve]"'
            ) from error


def make_app(words: Sequence[str], overrides: Sequence[str], config: ServiceConfig) -> FastAPI:
    """Open models and return the application that serves them, for `serve` or another ASGI server.

    Args:
        words: model files, exports or names of published weights.
        overrides: texts such as `predict.confidence=0.4`, for all of them.
        config: the limits.

    Raises:
        DetectorError: a library is missing, or a model cannot be opened.
    """
    require_service_libraries()
    from detector.service.http_app import build_app
    from detector.service.service_metrics import ServiceMetrics

    metrics = ServiceMetrics()
    return build_app(open_models(words, overrides, config, metrics.batch), config, metrics)


def build_server(app: FastAPI, config: ServiceConfig, report: Callable[[str], None]) -> Server:
    """Return the server of an application; `report` is called with its address once it accepts requests."""
    import uvicorn

    from detector.service.timed_protocol import TimedProtocol

    class AnnouncedServer(uvicorn.Server):
        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                report(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    return AnnouncedServer(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            access_log=False,
            log_level="error",
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=max(1, round(config.timeout_s + config.body_timeout_s)),
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            http=TimedProtocol,
            ws="none",
        )
    )


def serve(words: Sequence[str], overrides: Sequence[str], config: ServiceConfig, report: Callable[[str], None]) -> None:
    """Serve models until SIGINT or SIGTERM, and answer the requests in work before the end.

    Args:
        words: model files, exports or names of published weights.
        overrides: texts such as `predict.confidence=0.4`, for all of them.
        config: the address and the limits.
        report: called with the address once requests are accepted.

    Raises:
        DetectorError: a library is missing, a model cannot be opened, or the address is not free.
    """
    server = build_server(make_app(words, overrides, config), config, report)
    try:
        server.run()
    except SystemExit as error:  # uvicorn has printed the reason
        raise DetectorError(
            f"the address {config.host}:{config.port} cannot be listened at; give another --host or --port"
        ) from error
