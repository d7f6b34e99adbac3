"""Pictures and streams on a web server are told apart by the type of their content."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.errors import ConfigError, MediaError
from detector.media import web_images
from detector.media.sources import ImageSource, VideoSource, as_sources, require_images

PICTURE = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
PNG = cv2.imencode(".png", PICTURE[..., ::-1])[1].tobytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers: a picture under any name, a redirect to it, one behind a password, a stream, a page and refusals."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/snapshot")
            self.end_headers()
        elif path == "/locked.png" and self.headers["Authorization"] != "Basic dXNlcjpzZWNyZXQ=":  # user:secret
            self.send_error(401)
        elif path in ("/snapshot", "/picture.png", "/locked.png", "/named.jpg", "/cut.png"):
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(PNG)))
            self.end_headers()
            self.wfile.write(PNG[:100] if path == "/cut.png" else PNG)
        elif path in ("/stream", "/stream.jpg", "/page"):
            self.send_response(200)
            kind = "text/html" if path == "/page" else "multipart/x-mixed-replace; boundary=frame"
            self.send_header("Content-Type", kind)
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


@pytest.mark.parametrize("path", ["snapshot", "snapshot?id=1", "picture.png", "named.jpg", "moved"])
def test_picture_is_one_image_under_any_name(path: str, server: str, tmp_path: Path) -> None:
    address = f"http://{server}/{path}"
    (source,), is_single = as_sources(address, allow_url=True)
    assert is_single
    assert isinstance(source, ImageSource)
    np.testing.assert_array_equal(source.load(3).pixels, PICTURE)
    (tmp_path / "list.txt").write_text(f"{address}\n")
    for several in ([address, PICTURE], iter([address]), tmp_path / "list.txt"):
        sources, is_single = as_sources(several, allow_url=True)
        assert not is_single
        np.testing.assert_array_equal(require_images(sources, "a test")[0].load(3).pixels, PICTURE)
    with pytest.raises(ConfigError, match=r"this would use the network; allow it by --allow-url"):
        as_sources(address)


def test_password_opens_a_picture_and_is_never_shown(server: str) -> None:
    (source,), _ = as_sources(f"http://user:secret@{server}/locked.png", allow_url=True)
    assert isinstance(source, ImageSource)
    np.testing.assert_array_equal(source.load(3).pixels, PICTURE)
    (refused,), _ = as_sources(f"http://user:wrong@{server}/locked.png", allow_url=True)
    assert isinstance(refused, ImageSource)
    with pytest.raises(MediaError, match=r"locked\.png cannot be read: the server answers 401") as caught:
        refused.load(3)
    assert not any(word in f"{caught.value} {source!r} {refused!r}" for word in ("secret", "wrong"))


@pytest.mark.parametrize("path", ["stream", "stream.jpg", "page", "none"])
def test_all_else_stays_a_stream(path: str, server: str) -> None:
    (source,), is_single = as_sources(f"http://{server}/{path}", allow_url=True)
    assert isinstance(source, VideoSource)
    assert source.is_live
    assert not is_single


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.png", r"gone\.png cannot be read: the server answers 404 Not Found; check the address"),
        ("cut.png", r"cut\.png cannot be read: the server closed the connection early"),
    ],
)
def test_picture_that_does_not_arrive_is_an_error_at_once(path: str, message: str, server: str) -> None:
    (source,), _ = as_sources(f"http://{server}/{path}", allow_url=True)
    assert isinstance(source, ImageSource)
    with pytest.raises(MediaError, match=message):
        source.load(3)


def test_picture_on_a_server_that_is_down_is_an_error_at_once() -> None:
    (source,), _ = as_sources("http://127.0.0.1:9/picture.png", allow_url=True)
    assert isinstance(source, ImageSource)
    with pytest.raises(MediaError, match=r"picture\.png cannot be read: .*; check the address"):
        source.load(3)


def test_picture_that_is_too_large_or_too_slow_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,), _ = as_sources(f"http://{server}/snapshot", allow_url=True)
    assert isinstance(source, ImageSource)
    monkeypatch.setattr(web_images, "_MAX_BYTES", 10)
    with pytest.raises(MediaError, match="more bytes than the limit of 10"):
        source.load(3)
    monkeypatch.setattr(web_images, "_MAX_BYTES", 10**6)
    monkeypatch.setattr(web_images, "_MAX_S", -1.0)
    with pytest.raises(MediaError, match="did not arrive within"):
        source.load(3)
