"""The routes: answers, limits with their status codes, and 41 bad requests that the service survives."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from detector.errors import ConfigError

KIB = 1 << 10


def picture(level: int = 120, hw: tuple[int, int] = (32, 32), suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, np.full((*hw, 3), level, np.uint8))[1].tobytes()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))


@pytest.fixture
def running(run_service) -> Iterator[Any]:
    with run_service(
        names=("stub", "other"), max_bytes=64 * KIB, max_pixels=100_000, body_timeout_s=0.4, timeout_s=5
    ) as made:
        yield made


def test_detections_come_as_records_coco_results_or_picture(running):
    status, headers, body = running.post(picture(204, (64, 128)))
    record = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert (record["model"], record["height"], record["width"]) == ("stub", 64, 128)
    best = record["detections"][0]
    assert (best["name"], best["label"], best["category_id"]) == ("square", 0, 3)
    assert best["score"] == pytest.approx((204 + 114) / 2 / 255, abs=1e-3)  # half of the canvas is padding
    assert [best[side] for side in ("x1", "y1", "x2", "y2")] == [32.0, 0.0, 96.0, 64.0]
    coco = json.loads(running.post(picture(204), "?format=coco&image_id=12")[2])
    assert coco[0]["image_id"] == 12
    assert coco[0]["bbox"] == [8.0, 8.0, 16.0, 16.0]
    assert {entry["category_id"] for entry in coco} == {3, 7}
    status, headers, body = running.post(picture(204), "?format=picture")
    assert headers["content-type"] == "image/jpeg"
    drawn = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (32, 32, 3)
    assert np.ptp(drawn) > 60


def test_settings_of_a_request_change_its_selection(running):
    def names(query: str) -> list[str]:
        status, _, body = running.post(picture(204), query)
        assert status == 200, body
        return [box["name"] for box in json.loads(body)["detections"]]

    assert names("") == ["square", "circle"]
    assert names("?confidence=0.7") == ["square"]
    assert names("?classes=circle") == ["circle"]
    assert names("?classes=0&classes=circle") == ["square", "circle"]
    assert names("?max_detections=1") == ["square"]


def test_each_model_answers_at_its_own_address(running):
    models = json.loads(running.request("GET", "/v1/models")[2])
    assert [(model["name"], model["class_names"]) for model in models] == [
        ("stub", ["square", "circle"]),
        ("other", ["square", "circle"]),
    ]
    status, _, body = running.request("POST", "/v1/models/other/predict", picture())
    assert (status, json.loads(body)["model"]) == (200, "other")
    assert (len(running.stubs["stub"].batches), len(running.stubs["other"].batches)) == (0, 1)


def raw(port: int, content: bytes, pause_s: float = 0.0, close: bool = False) -> bytes:
    """Send bytes as they are and return the answer, which is empty where the connection is closed before it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(content)
        if close:
            return b""
        time.sleep(pause_s)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


GOOD = picture()
JPEG = picture(hw=(64, 64), suffix=".jpg")
# What a client sends wrongly: path with query, body, headers, and the status that it gets.
BAD_REQUESTS: dict[str, tuple[str, bytes, dict[str, str], int]] = {
    "empty body": ("/v1/predict", b"", {}, 400),
    "text": ("/v1/predict", b"hello", {}, 400),
    "one byte": ("/v1/predict", b"\xff", {}, 400),
    "zeros": ("/v1/predict", bytes(5000), {}, 400),
    "html": ("/v1/predict", b"<!doctype html><p>", {}, 400),
    "truncated png": ("/v1/predict", GOOD[: len(GOOD) // 2], {}, 400),
    "truncated jpeg": ("/v1/predict", JPEG[: len(JPEG) // 2], {}, 400),
    "png with a wrong checksum": ("/v1/predict", GOOD[:-10] + b"\0\0\0\0" + GOOD[-6:], {}, 400),
    "png header only": ("/v1/predict", png_header(10, 10), {}, 400),
    "decompression bomb": ("/v1/predict", png_header(60_000, 60_000), {}, 413),
    "bomb of one row": ("/v1/predict", png_header(2**31 - 1, 1), {}, 413),
    "too many pixels": ("/v1/predict", picture(hw=(400, 400)), {}, 413),
    "zip": ("/v1/predict", b"PK\x03\x04" + bytes(100), {}, 400),
    "gzip": ("/v1/predict", zlib.compress(bytes(1000)), {"Content-Encoding": "gzip"}, 400),
    "heic": ("/v1/predict", b"\0\0\0\x18ftypheic" + bytes(64), {}, 400),
    "pdf": ("/v1/predict", b"%PDF-1.7" + bytes(64), {}, 400),
    "svg": ("/v1/predict", b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, 400),
    "float tiff": ("/v1/predict", cv2.imencode(".tiff", np.zeros((8, 8), np.float32))[1].tobytes(), {}, 400),
    "too many bytes": ("/v1/predict", bytes(65 * KIB), {}, 413),
    "far too many bytes": ("/v1/predict", bytes(100 * KIB), {}, 413),
    "form": ("/v1/predict", b"--b\r\n\r\n--b--", {"Content-Type": "multipart/form-data; boundary=b"}, 415),
    "json": ("/v1/predict", b"{}", {"Content-Type": "application/json"}, 415),
    "text type": ("/v1/predict", GOOD, {"Content-Type": "text/plain"}, 415),
    "xml type": ("/v1/predict", b"<a/>", {"Content-Type": "application/xml"}, 415),
    "unknown model": ("/v1/models/missing/predict", GOOD, {}, 404),
    "model with a path": ("/v1/models/..%2f..%2fetc/predict", GOOD, {}, 404),
    "wrong route": ("/v2/predict", GOOD, {}, 404),
    "file of the service": ("/v1/../http_app.py", b"", {}, 404),
    "post to a page": ("/", GOOD, {}, 405),
    "post to metrics": ("/metrics", GOOD, {}, 405),
    "confidence above 1": ("/v1/predict?confidence=2", GOOD, {}, 422),
    "confidence is a word": ("/v1/predict?confidence=high", GOOD, {}, 422),
    "confidence is nan": ("/v1/predict?confidence=nan", GOOD, {}, 422),
    "no stored thresholds": ("/v1/predict?confidence=best", GOOD, {}, 422),
    "negative iou": ("/v1/predict?iou=-1", GOOD, {}, 422),
    "no boxes": ("/v1/predict?max_detections=0", GOOD, {}, 422),
    "unknown class": ("/v1/predict?classes=horse", GOOD, {}, 422),
    "class index too high": ("/v1/predict?classes=2", GOOD, {}, 422),
    "misspelt setting": ("/v1/predict?confidance=0.9", GOOD, {}, 422),
    "unknown format": ("/v1/predict?format=xml", GOOD, {}, 422),
    "another site's name": ("/v1/predict", GOOD, {"Host": "evil.example"}, 400),
}


def test_each_bad_request_gets_its_status_and_the_service_lives_on(running):
    assert len(BAD_REQUESTS) == 41
    got = {}
    for what, (path, body, headers, _) in BAD_REQUESTS.items():
        got[what], _, answer = running.request("POST", path, body, headers)
        assert b"Traceback" not in answer
        if path.startswith("/v1/predict") and "Host" not in headers:
            assert json.loads(answer)["detail"]
    assert got == {what: expected for what, (*_, expected) in BAD_REQUESTS.items()}
    assert running.post(GOOD)[0] == 200
    assert running.service.num_open == 0


def test_broken_connections_get_their_status_and_the_service_lives_on(running):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
    port = running.port
    assert status_of(raw(port, head + b"Content-Length: 900\r\n\r\n" + GOOD[:20], 0.6)) == 408  # slow body
    assert status_of(raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", 0.6)) == 408
    assert status_of(raw(port, head + b"Content-Length: -5\r\n\r\n")) == 400
    assert status_of(raw(port, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")) == 400
    assert status_of(raw(port, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(90))) in (0, 400)  # TLS
    assert status_of(raw(port, head + b"Content-Length: 104857600\r\nExpect: 100-continue\r\n\r\n")) == 413
    raw(port, head + b"Content-Length: 900\r\n\r\n" + GOOD[:20], close=True)  # closed early
    raw(port, b"POST", close=True)
    chunks = b"".join(b"%x\r\n%s\r\n" % (16 * KIB, bytes(16 * KIB)) for _ in range(8))
    assert status_of(raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")) == 413
    deadline_s = time.monotonic() + 5
    while running.service.num_open and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert running.service.num_open == 0
    assert running.post(GOOD)[0] == 200


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["incomplete", "complete"])
def test_head_that_is_too_long_is_refused_in_one_read_or_several(running, end):
    for num_bytes, expected in ((16_000, 200), (17_000, 431), (60_000, 431)):
        head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * num_bytes
        if end or expected == 431:
            assert status_of(raw(running.port, head + (end or b"a"))) == expected
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:  # the second of two at once
        second = b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + second)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 431 Request Header Fields Too Large\r\n" in answers


def test_head_of_a_request_that_never_ends_is_not_waited_for(running, monkeypatch):
    from detector.service.timed_protocol import TimedProtocol

    monkeypatch.setattr(TimedProtocol, "head_timeout_s", 0.3)
    started_s = time.monotonic()
    assert raw(running.port, b"POST /v1/predict HT") == b""
    assert 0.25 < time.monotonic() - started_s < 5
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:  # the second of a connection
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.4)
        assert status_of(connection.recv(65536)) == 200
        connection.sendall(b"GET /healthz HT")
        assert connection.recv(65536) == b""


def test_body_of_100_megabytes_is_refused_without_being_kept(run_service):
    with run_service(max_bytes=20 << 20, body_timeout_s=30) as running:
        assert running.post(bytes(100 << 20))[0] == 413
        assert running.post(GOOD)[0] == 200


def test_failure_of_the_network_is_an_error_of_one_request(running):
    assert running.post(picture(255))[0] == 500
    assert running.post(GOOD)[0] == 200
    assert running.request("GET", "/healthz")[0] == 200


def test_setting_that_an_export_cannot_give_is_a_wrong_setting(running, monkeypatch):
    def refuse(canvases: np.ndarray) -> None:
        raise ConfigError("the file gives boxes for confidence of at least 0.6 only")

    monkeypatch.setattr(running.stubs["stub"], "boxes", refuse)
    status, _, body = running.post(picture())
    assert status == 422
    assert b"at least 0.6 only" in body


def test_full_queue_and_late_answer_get_their_status(run_service):
    with run_service(pause_s=0.5, max_queue=2, batch_size=1, timeout_s=0.8) as running:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(running.post(GOOD)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + 5
        while running.service.num_open < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        status, headers, _ = running.post(GOOD)
        assert (status, headers["retry-after"]) == (503, "1")
        assert running.request("GET", "/readyz")[0] == 503
        for thread in threads:
            thread.join()
        assert sorted(found) == [200, 504]  # the second waits for the first
        assert running.request("GET", "/readyz")[0] == 200


def test_requests_that_arrive_together_share_passes_and_all_are_answered(run_service):
    with run_service(pause_s=0.02, batch_size=4, max_queue=64) as running:
        levels = [100 + 5 * number for number in range(24)]
        scores: dict[int, float] = {}

        def ask(level: int) -> None:
            status, _, body = running.post(picture(level))
            assert status == 200
            scores[level] = json.loads(body)["detections"][0]["score"]

        threads = [threading.Thread(target=ask, args=(level,)) for level in levels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert scores == {level: pytest.approx(level / 255, abs=1e-4) for level in levels}
        assert len(running.stubs["stub"].batches) < 20
        assert max(running.stubs["stub"].batches) == 4


def test_stopping_server_answers_the_requests_in_work(run_service):
    found: list[int] = []
    with run_service(pause_s=0.4, batch_size=1) as running:
        threads = [threading.Thread(target=lambda: found.append(running.post(GOOD)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + 5
        while running.service.num_open < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert found == [200, 200]


def test_figures_count_answers_by_model_and_status(running):
    running.post(GOOD)
    running.post(b"")
    running.request("POST", "/v1/models/missing/predict", GOOD)
    status, headers, body = running.request("GET", "/metrics")
    text = body.decode()
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'detector_requests_total{model="stub",status="200"} 1.0' in text
    assert 'detector_requests_total{model="stub",status="400"} 1.0' in text
    assert 'detector_requests_total{model="unknown",status="404"} 1.0' in text
    assert 'detector_request_seconds_count{model="stub"} 2.0' in text
    assert "detector_open_requests 0.0" in text


def test_pages_load_nothing_from_elsewhere(running):
    for path in ("/", "/docs"):
        status, headers, body = running.request("GET", path)
        text = body.decode()
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert not re.search(r"https?://|(src|href)=\"//|<link|<script src", text)
    schema = json.loads(running.request("GET", "/openapi.json")[2])
    assert set(schema["paths"]) == {
        "/v1/models", "/v1/predict", "/v1/models/{name}/predict", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert {"200", "400", "408", "413", "415", "422", "503", "504"} <= set(
        schema["paths"]["/v1/predict"]["post"]["responses"]
    )
    assert running.request("GET", "/redoc")[0] == 404
