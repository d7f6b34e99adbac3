"""Downloads from a server in a thread that imitates the failures of real servers."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from detector.errors import DetectorError
from detector.io import download
from detector.io.download import fetch

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Server with a behaviour for each path."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))  # type: ignore[attr-defined]
        getattr(self, self.path.strip("/").replace("-", "_"))()

    def log_message(self, *arguments: object) -> None:
        pass

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-")[6:-1])

    def good(self) -> None:
        if not self.start:
            return self.say(200, CONTENT)
        if self.start >= len(CONTENT):
            return self.say(416)
        rest = CONTENT[self.start :]
        self.say(206, rest, Content_Range=f"bytes {self.start}-{len(CONTENT) - 1}/{len(CONTENT)}")

    def without_ranges(self) -> None:
        self.say(200, CONTENT)

    def never_satisfied(self) -> None:
        self.say(416) if self.start else self.say(200, CONTENT)

    def other_part(self) -> None:
        self.say(206, CONTENT[5:], Content_Range=f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")

    def other_length(self) -> None:
        self.say(200, CONTENT + b"!")

    def breaks_off(self) -> None:
        self.say(200, CONTENT[:1000], Content_Length=str(len(CONTENT)))

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(CONTENT)
        except ConnectionError:
            pass

    def short_without_length(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT[:77])

    def chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT))

    def compressed(self) -> None:
        self.say(200, CONTENT, Content_Encoding="gzip")

    def hangs(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:500])
        self.wfile.flush()
        self.server.ended.wait(20)  # type: ignore[attr-defined]

    def gone(self) -> None:
        self.say(404)

    def broken(self) -> None:
        self.say(503)

    def no_http(self) -> None:
        self.wfile.write(b"\x00\xff nonsense\r\n\r\n")

    def moved(self) -> None:
        self.say(302, Location="/good")

    def moved_to_file(self) -> None:
        self.say(302, Location="file:///etc/passwd")

    def moved_to_ftp(self) -> None:
        self.say(301, Location="ftp://localhost/good")

    def moved_to_nonsense(self) -> None:
        self.say(307, Location="https://[nonsense/")

    def moved_nowhere(self) -> None:
        self.say(308)

    def moved_for_ever(self) -> None:
        self.say(302, Location="/moved-for-ever")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A local server; the tests allow plain http."""
    monkeypatch.setattr(download, "SCHEMES", ("https", "http"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.requests, made.ended = [], threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.ended.set()  # type: ignore[attr-defined]
    made.shutdown()
    made.server_close()


@pytest.fixture
def get(server: ThreadingHTTPServer, tmp_path: Path) -> Callable[..., Path]:
    """Download the file of a behaviour into the folder of the test."""

    def fetched(behaviour: str, **settings: object) -> Path:
        target = tmp_path / "folder" / "file.weights"
        url = f"http://127.0.0.1:{server.server_port}/{behaviour}"
        fetch(url, target, **{"num_bytes": len(CONTENT), **settings})  # type: ignore[arg-type]
        return target

    return fetched


def refused(get: Callable[..., Path], behaviour: str, **settings: object) -> str:
    with pytest.raises(DetectorError) as caught:
        get(behaviour, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def part_of(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file.weights.part"


def names_in(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "folder").iterdir())


@pytest.mark.parametrize("behaviour", ["good", "without-ranges", "chunked", "moved"])
def test_downloaded_file_is_complete(get, tmp_path, behaviour):
    seen: list[int] = []
    target = get(behaviour, sha256=SHA256, progress=seen.append)
    assert target.read_bytes() == CONTENT
    assert names_in(tmp_path) == ["file.weights"]
    assert seen[-1] == len(CONTENT)


def test_existing_file_is_not_fetched_again(get, server):
    target = get("good")
    before = target.stat().st_mtime_ns
    get("good")
    assert (target.stat().st_mtime_ns, len(server.requests)) == (before, 1)


def test_another_file_of_that_name_is_not_replaced(get, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.weights").write_bytes(b"my own")
    assert "file.weights exists: expected 10240 bytes from http" in refused(get, "good")
    assert (tmp_path / "folder" / "file.weights").read_bytes() == b"my own"


def test_interrupted_download_is_resumed(get, server, tmp_path):
    message = refused(get, "breaks-off")
    assert "the download stopped after 1000 of 10240 bytes (the server closed the connection)" in message
    assert "run the same command again to resume it" in message
    assert names_in(tmp_path) == ["file.weights.part"]
    assert get("good", sha256=SHA256).read_bytes() == CONTENT
    assert server.requests == [("/breaks-off", None), ("/good", "bytes=1000-")]
    assert names_in(tmp_path) == ["file.weights"]


@pytest.mark.parametrize("behaviour", ["without-ranges", "never-satisfied"])
def test_download_restarts_if_the_server_cannot_resume(get, tmp_path, behaviour):
    refused(get, "breaks-off")
    assert get(behaviour).read_bytes() == CONTENT


def test_partial_file_longer_than_the_file_restarts_the_download(get, tmp_path):
    (tmp_path / "folder").mkdir()
    part_of(tmp_path).write_bytes(b"x" * 20_000)
    assert get("good").read_bytes() == CONTENT


def test_complete_partial_file_is_only_checked(get, server, tmp_path):
    (tmp_path / "folder").mkdir()
    part_of(tmp_path).write_bytes(CONTENT)
    assert get("good").read_bytes() == CONTENT
    assert server.requests == []


def test_range_that_was_not_requested_is_refused(get, tmp_path):
    refused(get, "breaks-off")
    assert "got another range from the server; remove" in refused(get, "other-part")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("other-length", "expected a file of 10240 bytes, got one of 10241 from the server"),
        ("endless", "expected a file of 10240 bytes, got more from the server"),
        ("short-without-length", "the download stopped after 77 of 10240 bytes"),
        ("compressed", "got a compressed one from the server"),
        ("gone", "the server answers 404 Not Found"),
        ("broken", "the server answers 503"),
        ("no-http", "the download stopped after 0 of 10240 bytes"),
        ("moved-to-file", "file:///etc/passwd is refused: expected an address of https"),
        ("moved-to-ftp", "ftp://localhost/good is refused"),
        ("moved-to-nonsense", "the download stopped after 0 of 10240 bytes"),
        ("moved-nowhere", "expected at most 5 redirects"),
        ("moved-for-ever", "expected at most 5 redirects"),
    ],
)
def test_bad_response_is_reported_in_one_sentence_and_leaves_no_file(get, tmp_path, behaviour, words):
    assert words in refused(get, behaviour)
    assert "file.weights" not in names_in(tmp_path)


def test_silent_server_times_out_and_received_bytes_are_kept(get, tmp_path):
    began = time.monotonic()
    message = refused(get, "hangs", timeout_s=0.3)
    assert time.monotonic() - began < 15
    assert "the download stopped after 500 of 10240 bytes (the server stopped answering)" in message
    assert get("good").read_bytes() == CONTENT


def test_wrong_checksum_or_content_leaves_no_file(get, tmp_path):
    message = refused(get, "good", sha256="0" * 64)
    assert f"expected a file with SHA-256 {'0' * 64}, got {SHA256}" in message
    assert names_in(tmp_path) == []
    seen: list[tuple[str, int]] = []

    def refuse(part: Path) -> None:
        seen.append((part.name, part.stat().st_size))
        raise DetectorError("layer 3 is wrong")

    assert refused(get, "good", check=refuse) == "layer 3 is wrong"
    assert seen == [("file.weights.part", len(CONTENT))]
    assert names_in(tmp_path) == []


def test_full_disk_is_reported_before_the_first_byte(get, server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage(10_000))
    assert "10240 bytes are needed in" in refused(get, "good")
    assert server.requests == []


def test_disk_that_fills_up_is_reported_in_one_sentence(server, tmp_path):
    class Full(type(Path())):  # type: ignore[misc]
        def open(self, *arguments, **settings):
            raise OSError(28, "No space left on device")

    part = tmp_path / "folder" / "file.weights"
    with pytest.raises(
        DetectorError, match=r"the download stopped after 0 of 10240 bytes \(\[Errno 28\] No space left on device"
    ):
        fetch(f"http://127.0.0.1:{server.server_port}/good", Full(part), num_bytes=10240)
    assert not part.exists()


def test_missing_server_or_address_is_reported_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SCHEMES", ("https", "http"))
    for url in ("http://127.0.0.1:9/x", "http://127.0.0.1:99999/x", "http://[::1/x", "http:///x"):
        with pytest.raises(DetectorError) as caught:
            fetch(url, tmp_path / "x", num_bytes=10, timeout_s=1)
        assert url in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd"])
def test_other_schemes_than_https_are_refused(tmp_path, url):
    assert download.SCHEMES == ("https",)
    with pytest.raises(DetectorError, match="is refused: expected an address of https"):
        fetch(url, tmp_path / "x", num_bytes=10)


def test_invalid_certificate_is_refused(server, tmp_path):
    with pytest.raises(DetectorError, match="the download stopped after 0 of 10 bytes"):
        fetch(f"https://127.0.0.1:{server.server_port}/good", tmp_path / "x", num_bytes=10, timeout_s=2)


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def through(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[str, str]]]:
    """Return a function that names the server as proxy; it returns the requests that the proxy gets, with the login."""
    seen: list[tuple[str, str]] = []

    class Proxy(Handler):
        def do_GET(self) -> None:
            seen.append((f"GET {self.path}", self.headers.get("Proxy-Authorization", "")))
            self.say(200, CONTENT)

        def do_CONNECT(self) -> None:
            seen.append((f"CONNECT {self.path}", self.headers.get("Proxy-Authorization", "")))
            self.say(502)

    monkeypatch.setattr(server, "RequestHandlerClass", Proxy)

    def named(login: str = "") -> list[tuple[str, str]]:
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://{login}127.0.0.1:{server.server_port}")
        return seen

    return named


def test_download_goes_through_the_proxy_of_the_environment(through, tmp_path):
    seen = through("me:secret@")
    fetch("http://files.invalid/a?b=1#c", tmp_path / "x", num_bytes=len(CONTENT))
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert seen == [("GET http://files.invalid/a?b=1", "Basic bWU6c2VjcmV0")]


def test_https_download_asks_the_proxy_for_a_tunnel(through, tmp_path):
    seen = through("me:secret@")
    with pytest.raises(DetectorError, match=r"stopped after 0 of 9 bytes \(Tunnel connection failed: 502"):
        fetch("https://files.invalid/a", tmp_path / "x", num_bytes=9)
    assert seen == [("CONNECT files.invalid:443", "Basic bWU6c2VjcmV0")]


def test_proxy_is_left_out_for_hosts_of_no_proxy(get, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert get("good").read_bytes() == CONTENT


def test_proxy_of_another_scheme_is_refused_without_its_password(get, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://me:secret@127.0.0.1:9")
    message = refused(get, "good")
    assert message == "HTTP_PROXY: expected a proxy such as http://HOST:PORT, got socks5://127.0.0.1:9"
