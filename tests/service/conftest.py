"""Fixtures of the tests of the service: a server in a thread, with a network that measures the brightness."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from detector.models.checkpoint import ModelFile
from detector.service.served_models import ServedModel
from detector.service.service_config import ServiceConfig
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import LoadedModel

NAMES = ("square", "circle")


@dataclass
class Stub:
    """Runtime that scores the mean of its canvas, after a pause; it fails on a canvas that is white."""

    num_classes: int = 2
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    selection: None = None
    pause_s: float = 0.0
    batches: list[int] = field(default_factory=list)

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        pass

    def boxes(self, canvases: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.pause_s)
        self.batches.append(len(canvases))
        if canvases.min() == 255:
            raise RuntimeError("out of memory")
        means = torch.from_numpy(canvases).float().mean(dim=(1, 2, 3)) / 255
        scores = torch.stack([means, means / 2], dim=1)[:, None]
        return torch.tensor([8.0, 8.0, 24.0, 24.0]).expand(len(canvases), 1, 4), scores


def stub_model(name: str, stub: Stub, config: ServiceConfig, monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    plain = DetectionConfig()
    of_stub = replace(plain, input=replace(plain.input, size=32), predict=replace(plain.predict, confidence=0.1))
    monkeypatch.setattr("detector.tasks.detection_model.TorchRuntime", lambda model, device, runtime: stub)
    return ServedModel(
        name, LoadedModel(of_stub, cast("Any", torch.nn.Identity()), ModelFile({}, NAMES, (3, 7), {})), config
    )


@dataclass(frozen=True)
class Running:
    """A server in a thread."""

    port: int
    stubs: dict[str, Stub]
    app: Any
    server: Any

    @property
    def service(self) -> Any:
        return self.app.state.service

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, body: bytes, query: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.request("POST", f"/v1/predict{query}", body, headers)


@pytest.fixture
def run_service(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a context with a running server, whose settings and networks can be given."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    from detector.service.http_app import build_app
    from detector.service.serve import build_server
    from detector.service.service_metrics import ServiceMetrics

    @contextmanager
    def running(pause_s: float = 0.0, names: tuple[str, ...] = ("stub",), **settings: Any) -> Iterator[Running]:
        config, metrics = ServiceConfig(port=0, **settings), ServiceMetrics()
        stubs = {name: Stub() for name in names}
        models = {name: stub_model(name, stub, config, monkeypatch) for name, stub in stubs.items()}
        for stub in stubs.values():
            stub.pause_s = pause_s
            stub.batches.clear()
        app, announced = build_app(models, config, metrics), list[str]()
        is_started = threading.Event()
        server = build_server(app, config, lambda address: (announced.append(address), is_started.set()))  # type: ignore
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert is_started.wait(20)
        try:
            yield Running(int(announced[0].rpartition(":")[2]), stubs, app, server)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    return running
