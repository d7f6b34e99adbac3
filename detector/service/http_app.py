"""The routes of the service: detections, models, health, figures, and two pages for people."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import re
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from detector import __version__
from detector.errors import ConfigError, DetectorError, MediaError
from detector.media.drawing import draw_detections
from detector.media.images import LoadedImage, as_jpeg, encoded_header, load_encoded
from detector.media.writers import fields_of
from detector.service.answer_times import AnswerTimes
from detector.service.served_models import ServedModel
from detector.service.service_config import ServiceConfig
from detector.service.service_metrics import CONTENT_TYPE, ServiceMetrics
from detector.structures.types import Detections

Format = Literal["records", "coco", "picture"]
_NUM_DECODERS = 2
_MAX_DROPPED = 8  # times the largest body: that much of a refused one is read and dropped, so that the answer arrives
_CLOSE = {"Connection": "close"}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an image file.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/*", "*/*")},
    }
}
_STATUSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is empty or no image that can be decoded."},
    404: {"description": "There is no such model."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The file has too many bytes, or the image too many pixels."},
    415: {"description": "The body is a form or JSON, not an image file."},
    422: {"description": "A setting is wrong."},
    503: {"description": "Too many requests are in work, or the service is stopping."},
    504: {"description": "There was no answer in time."},
}


class Settings:
    """Query of a request for detections, as a dependency of the routes."""

    def __init__(
        self,
        confidence: Annotated[str | None, Query(description="Lowest score, 0..1, or `best`.")] = None,
        iou: Annotated[float | None, Query(ge=0, le=1, description="Most overlap of two boxes of a class.")] = None,
        max_detections: Annotated[int | None, Query(ge=1, le=10_000, description="Most boxes.")] = None,
        classes: Annotated[list[str] | None, Query(description="Names or indices of classes to keep.")] = None,
        format: Annotated[Format, Query(description="Records, COCO results, or the annotated picture.")] = "records",
        image_id: Annotated[int, Query(description="The id in COCO results.")] = 0,
    ) -> None:
        self.format, self.image_id = format, image_id
        given = {"iou": iou, "max_detections": max_detections, "classes": classes}
        self.selection: dict[str, object] = {key: value for key, value in given.items() if value is not None}
        if confidence is not None:
            self.selection["confidence"] = _number(confidence)


class HttpService:
    """Handlers of the routes, and the requests in work.

    Attributes:
        models: the models by name, the first for requests that name none.
        config: the limits.
        num_open: requests in work.
        is_ready: false before the start and while the service stops.
    """

    def __init__(self, models: Mapping[str, ServedModel], config: ServiceConfig, metrics: ServiceMetrics) -> None:
        self.models, self.config, self._metrics = models, config, metrics
        self.num_open, self.is_ready = 0, False
        self._decoders = ThreadPoolExecutor(_NUM_DECODERS, "detector-decoder")
        metrics.watch_open(lambda: self.num_open)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Be ready inside the block; answer the images that wait at its end."""
        self.is_ready = True
        yield
        self.is_ready = False
        for model in self.models.values():
            await asyncio.to_thread(model.close)
        self._decoders.shutdown()

    async def health(self) -> JSONResponse:
        """Answer 200 while every network runs, else 503."""
        dead = [name for name, model in self.models.items() if not model.is_alive]
        return JSONResponse({"status": "ok" if not dead else "failed", "failed": dead}, 503 if dead else 200)

    async def readiness(self) -> JSONResponse:
        """Answer 200 while requests are accepted, else 503."""
        is_ready = self.is_ready and self.num_open < self.config.max_queue
        return JSONResponse({"status": "ready" if is_ready else "busy"}, 200 if is_ready else 503)

    async def metrics(self) -> Response:
        """Return the figures in Prometheus' text format."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def detect_page(self) -> HTMLResponse:
        """Return the page that detects objects in pictures and in the picture of a camera."""
        return _page("detect_page.html")

    async def docs_page(self) -> HTMLResponse:
        """Return the page that describes the routes."""
        return _page("docs_page.html")

    async def list_models(self) -> list[dict[str, object]]:
        """Return the models with their classes and settings."""
        return [model.described() for model in self.models.values()]

    async def predict_first(self, request: Request, settings: Annotated[Settings, Depends()]) -> Response:
        """Return the detections of an image by the first model."""
        return await self.predict(request, settings, next(iter(self.models)))

    async def predict(self, request: Request, settings: Annotated[Settings, Depends()], name: str) -> Response:
        """Return the detections of an image by a model."""
        request.scope["detector_model"] = name if name in self.models else "unknown"
        if self.num_open >= self.config.max_queue or not self.is_ready:
            await self._drop(request)
            raise HTTPException(503, "too many requests are in work; try again", {"Retry-After": "1", **_CLOSE})
        self.num_open += 1
        try:
            return await self._predicted(request, settings, name)
        finally:
            self.num_open -= 1

    async def _predicted(self, request: Request, settings: Settings, name: str) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if name not in self.models:
            await self._drop(request)
            raise HTTPException(404, f"there is no model {name!r}; models: {', '.join(self.models)}", _CLOSE)
        if kind.startswith(("multipart/", "text/")) or kind.endswith(("json", "xml")):
            await self._drop(request)
            raise HTTPException(415, f"expected the bytes of an image file as the body, got {kind}", _CLOSE)
        model = self.models[name]
        try:
            if unknown := request.query_params.keys() - inspect.signature(Settings).parameters.keys():
                raise ConfigError(f"the query has no setting {min(unknown)!r}; see /docs")
            select = model.select(settings.selection)
        except ConfigError as error:
            await self._drop(request)
            raise HTTPException(422, str(error), _CLOSE) from error
        encoded = await self._body(request)
        try:
            return await asyncio.wait_for(self._answer(encoded, model, select, settings), self.config.timeout_s)
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.config.timeout_s:g} s; try again") from error

    async def _answer(self, encoded: bytes, model: ServedModel, select: Any, settings: Settings) -> Response:
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self._decoders, self._decoded, encoded, model.channels)
        except MediaError as error:
            raise HTTPException(400, str(error)) from error
        try:
            detections = await asyncio.wrap_future(model.submit(image.pixels, select))
        except DetectorError as error:  # an export with its own suppression has boxes for some settings only
            raise HTTPException(422 if isinstance(error, ConfigError) else 503, str(error), _CLOSE) from error
        if settings.format == "picture":
            picture = await loop.run_in_executor(self._decoders, _picture, image, detections)
            return Response(picture, media_type="image/jpeg")
        if settings.format == "coco":
            return JSONResponse(detections.to_coco(settings.image_id))
        return JSONResponse(_record(model.name, image, detections))

    def _decoded(self, encoded: bytes, channels: int) -> LoadedImage:
        """Decode an image whose header is within the limits."""
        height, width = encoded_header("the image", encoded).largest_hw
        if height * width > self.config.max_pixels:
            raise HTTPException(413, f"expected at most {self.config.max_pixels} pixels, got {width} x {height}")
        return load_encoded("the image", encoded, channels)

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request within the limits of size and time."""
        too_large = HTTPException(413, f"expected at most {self.config.max_bytes} bytes", _CLOSE)
        if _announced_bytes(request) > self.config.max_bytes:
            await self._drop(request)
            raise too_large
        parts: list[bytes] = []
        is_whole = await self._read(request, parts, self.config.max_bytes)
        if not is_whole:
            parts.clear()
            await self._drop(request)
            raise too_large
        if not any(parts):
            raise HTTPException(400, "expected the bytes of an image file as the body, got none")
        return b"".join(parts)

    async def _drop(self, request: Request) -> None:
        """Read the rest of a body, within limits, so that the client reads the answer rather than a broken connection.

        A client that asks before it sends its body gets the answer at once.
        """
        if "100-continue" not in request.headers.get("expect", "").lower():
            await self._read(request, None, _MAX_DROPPED * self.config.max_bytes)

    async def _read(self, request: Request, parts: list[bytes] | None, most: int) -> bool:
        """Read a body into a list, or nowhere; return false if it is longer than `most` bytes."""

        async def read() -> bool:
            num = 0
            async for part in request.stream():
                num += len(part)
                if parts is not None:
                    parts.append(part)
                if num > most:
                    return False
            return True

        try:
            return await asyncio.wait_for(read(), self.config.body_timeout_s)
        except asyncio.TimeoutError as error:
            slow = f"expected the whole body within {self.config.body_timeout_s:g} s"
            raise HTTPException(408, slow, _CLOSE) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the connection was closed before the end of the body") from error


def _announced_bytes(request: Request) -> int:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


def _number(text: str) -> float | str:
    """Return a number, or the text itself, which the selection accepts or rejects."""
    try:
        return float(text)
    except ValueError:
        return text


def _record(model: str, image: LoadedImage, detections: Detections) -> dict[str, Any]:
    height, width = detections.image_hw
    boxes = [fields_of(box) for box in detections.boxes]
    warnings = {"warnings": list(image.warnings)} if image.warnings else {}
    return {"model": model, "height": height, "width": width, **warnings, "detections": boxes}


def _picture(image: LoadedImage, detections: Detections) -> bytes:
    return as_jpeg(draw_detections(image.pixels, detections))


def _page(name: str) -> HTMLResponse:
    """Return a page of this folder that may run its own script, reach this service, and nothing else."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    ]
    scripts = " ".join(f"'sha256-{each}'" for each in hashes)
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src blob: data:; "
    policy += "media-src blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'self'; base-uri 'none'"
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(text, headers=headers)


def build_app(models: Mapping[str, ServedModel], config: ServiceConfig, metrics: ServiceMetrics) -> FastAPI:
    """Return the application.

    Args:
        models: the models by name, at least one; the first answers requests that name none.
        config: the limits.
        metrics: the figures.
    """
    service = HttpService(models, config, metrics)
    app = FastAPI(
        title="Detector",
        version=__version__,
        description="Object detection: POST the bytes of an image, get its detections.",
        docs_url=None,  # these pages of FastAPI load scripts from other servers
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.state.service = service
    app.add_api_route("/v1/models", service.list_models, methods=["GET"], summary="List the models")
    for path, handler in (("/v1/predict", service.predict_first), ("/v1/models/{name}/predict", service.predict)):
        app.add_api_route(
            path,
            handler,
            methods=["POST"],
            summary="Detect objects in an image",
            response_class=JSONResponse,
            responses=_STATUSES,
            openapi_extra=_BODY,
        )
    app.add_api_route("/healthz", service.health, methods=["GET"], summary="Is the service alive?")
    app.add_api_route("/readyz", service.readiness, methods=["GET"], summary="Does the service accept requests?")
    app.add_api_route("/metrics", service.metrics, methods=["GET"], summary="Figures for Prometheus")
    app.add_api_route("/", service.detect_page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs", service.docs_page, methods=["GET"], include_in_schema=False)
    app.add_middleware(AnswerTimes, metrics=metrics)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(config.known_hosts))
    return app
