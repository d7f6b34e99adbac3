"""Remote files on fsspec's file system in memory, and on a loopback server; the tests of S3 are in tests/data."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from detector.errors import ConfigError, DatasetError, MediaError
from detector.io import addresses, download, remote
from detector.io.addresses import address_of, require_plain_address, without_secrets
from detector.io.remote import PermittedAddresses, RemoteCache, local_copy, may_open, names_in, permit, read_remote

ROOT = Path("memory://bucket/images")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setitem(addresses.PACKAGES, "memory", "fsspec")
    monkeypatch.setattr(remote, "_permitted", {})
    monkeypatch.setattr(remote, "_room_bytes", {})
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    system = fsspec.filesystem("memory")
    for number in range(20):
        system.pipe(f"/bucket/images/{number:02d}.jpg", bytes([number]) * 1000)
    yield system
    system.store.clear()


def cached(folder: Path, limit_bytes: int = 10**6) -> RemoteCache:
    cache = RemoteCache(folder / "cache", limit_bytes)
    permit(ROOT, cache)
    return cache


def size_of(cache: RemoteCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())


def count_fetches(monkeypatch: pytest.MonkeyPatch, failures: list[Exception] | None = None) -> list[str]:
    """Return a list of the files fetched from now on; the first fetches raise the given exceptions."""
    fetched: list[str] = []
    original = MemoryFileSystem.cat_file

    def cat_file(self: MemoryFileSystem, path: str, **limits: int) -> bytes:
        fetched.append(path)
        if failures:
            raise failures.pop(0)
        return original(self, path, **limits)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return fetched


def test_nothing_is_opened_without_permission(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    assert read_remote(ROOT / "01.jpg") is None
    cached(tmp_path)
    assert read_remote(ROOT / "01.jpg") == bytes([1]) * 1000
    for other in ("memory://bucket/other/01.jpg", "memory://bucket/images2/01.jpg", "memory://bucket/images/../a.jpg"):
        assert not may_open(Path(other))
        assert read_remote(Path(other)) is None


def test_files_come_from_the_cache_and_damaged_ones_are_fetched_again(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, fetched = cached(tmp_path), count_fetches(monkeypatch)
    for _ in range(3):
        assert read_remote(ROOT / "03.jpg") == bytes([3]) * 1000
    assert len(fetched) == 1
    (entry,) = cache.folder.rglob("*.object")
    whole = entry.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"x", b"", whole[:10], b"x" + whole[1:]):
        entry.write_bytes(damaged)
        assert read_remote(ROOT / "03.jpg") == bytes([3]) * 1000
        assert entry.read_bytes() == whole
    assert len(fetched) == 6


def test_the_cache_keeps_its_limit_and_the_files_used_last(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, fetched = cached(tmp_path, limit_bytes=6000), count_fetches(monkeypatch)
    monkeypatch.setattr(remote, "_TOUCHED_S", -1)
    for number in range(20):
        assert read_remote(ROOT / f"{number:02d}.jpg") == bytes([number]) * 1000
        read_remote(ROOT / "00.jpg")
        assert size_of(cache) <= 6000
    assert fetched.count("memory://bucket/images/00.jpg") == 1
    bucket.pipe("/bucket/images/large.jpg", bytes(4000))
    assert read_remote(ROOT / "large.jpg") == bytes(4000)  # more than half of the limit: not kept
    assert size_of(cache) <= 6000


def test_the_leftover_of_a_killed_process_is_removed(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    cache = cached(tmp_path)
    cache.folder.mkdir()
    old, new = cache.folder / ".a.tmp", cache.folder / ".b.tmp"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, time.time() - 7200))
    read_remote(ROOT / "01.jpg")
    assert (old.exists(), new.exists()) == (False, True)


def test_several_processes_and_threads_share_a_small_cache(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    cache = cached(tmp_path, limit_bytes=5000)

    def read(number: int) -> bool:
        return read_remote(ROOT / f"{number % 20:02d}.jpg") == bytes([number % 20]) * 1000

    children = []
    for _ in range(2 if hasattr(os, "fork") else 0):
        child = os.fork()
        if not child:  # the file system in memory was copied with the process
            os._exit(0 if all(read(number) for number in range(60)) else 1)
        children.append(child)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(100)))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)
    remote._room_bytes.clear()
    read(0)
    assert size_of(cache) <= 5000 + 8 * 1100


def test_a_server_that_recovers_is_asked_again(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path)
    fetched = count_fetches(monkeypatch, [TimeoutError(), OSError("reset"), RuntimeError("https://host/a?sig=secret")])
    assert read_remote(ROOT / "05.jpg") == bytes([5]) * 1000
    assert len(fetched) == 4


@pytest.mark.parametrize(
    ("failure", "num_fetches", "expected"),
    [
        (TimeoutError("https://host/a?X-Amz-Signature=secret"), 4, "the server failed 4 times, the last time with Tim"),
        (FileNotFoundError("secret"), 1, "there is no such file; check the address"),
        (PermissionError("secret"), 1, "access is denied"),
        (type("NoCredentialsError", (Exception,), {})("secret"), 1, "check the credentials of the environment"),
    ],
)
def test_the_reason_of_a_failure_is_named_without_secrets(
    failure: Exception,
    num_fetches: int,
    expected: str,
    bucket: MemoryFileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached(tmp_path)
    fetched = count_fetches(monkeypatch, [failure] * 9)
    with pytest.raises(MediaError, match=expected) as caught:
        read_remote(ROOT / "05.jpg")
    assert "memory://bucket/images/05.jpg" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert len(fetched) == num_fetches


def test_a_full_disk_is_warned_of_and_files_are_fetched_each_time(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path)

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "write_whole", full)
    with pytest.warns(RuntimeWarning, match="cannot hold more files"):
        assert read_remote(ROOT / "05.jpg") == bytes([5]) * 1000
    with pytest.raises(DatasetError, match=r"cannot hold 05\.jpg: No space left on device; check the disk"):
        local_copy(ROOT / "05.jpg")


def test_a_file_of_too_many_bytes_is_refused(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MOST_BYTES", 999)
    cache = cached(tmp_path)
    with pytest.raises(MediaError, match="more bytes than the limit of 999"):
        read_remote(ROOT / "05.jpg")
    assert size_of(cache) == 0 if cache.folder.exists() else True


def test_a_copy_is_fetched_once_and_again_when_changed_or_damaged(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path)
    bucket.pipe("/bucket/images/set.json", b"first")
    first = local_copy(ROOT / "set.json")
    assert (first.name, first.read_bytes(), first.stat().st_mtime_ns) == ("set.json", b"first", 0)
    inode = first.stat().st_ino
    assert local_copy(ROOT / "set.json") == first
    assert first.stat().st_ino == inode
    first.write_bytes(b"other")
    assert local_copy(ROOT / "set.json").read_bytes() == b"first"
    bucket.pipe("/bucket/images/set.json", b"second")
    second = local_copy(ROOT / "set.json")
    assert (second.read_bytes(), second == first) == (b"second", False)
    monkeypatch.setattr(remote, "_is_whole", lambda own: False)
    monkeypatch.setattr(remote, "_chunk_of", lambda file: b"")
    with pytest.raises(DatasetError, match="an answer that ended early"):
        local_copy(ROOT / "set.json")


def test_names_are_listed_and_an_empty_folder_has_none(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    cached(tmp_path)
    assert names_in(ROOT) == {f"{number:02d}.jpg" for number in range(20)}
    assert names_in(ROOT / "none") == set()
    assert names_in(Path("https://host/folder")) is None
    assert remote.files_below(Path("memory://bucket"))[0] == ROOT / "00.jpg"


def test_a_spawned_process_gets_the_permission(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    cached(tmp_path)
    permitted = pickle.dumps(PermittedAddresses())
    remote._permitted.clear()
    assert not may_open(ROOT)
    pickle.loads(permitted)
    assert may_open(ROOT)


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:secret@bucket/a",
        "https://user@host/a",
        "https://host/a?sig=secret",
        "s3:/b/../a",
        "https://h/a#secret",
    ],
)
def test_an_address_with_secrets_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address without") as caught:
        require_plain_address(address)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError):
        permit(Path(address), None)


def test_addresses_and_paths() -> None:
    assert address_of("s3://bucket/a b.jpg") == address_of(Path("s3://bucket/a b.jpg")) == "s3://bucket/a b.jpg"
    for other in ("s3", "s3:/", "ftp://host/a", "/s3://bucket", "images/s3:/bucket", "S3://bucket", "c:/images"):
        assert address_of(other) is None, other
    text = "data='https://user:secret@host/a?sig=secret' images=s3:/key:secret@bucket/b#secret"
    assert without_secrets(text) == "data='https://host/a' images=s3:/bucket/b"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_permitted", {})
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    remote._file_system.cache_clear()
    with pytest.raises(ConfigError, match=r"gs://: gcsfs cannot be imported .*pip install gcsfs"):
        permit(Path("gs://bucket/a"), None)


def test_importing_loads_no_file_system() -> None:
    code = (
        "import sys, detector.config.nodes; print('http.client' in sys.modules); "
        "import detector.io.remote; print('fsspec' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert shown == ["False", "False"]


class Handler(BaseHTTPRequestHandler):
    """Server of one picture, with failures for some paths."""

    def do_GET(self) -> None:
        requests: list[str] = self.server.requests  # type: ignore[attr-defined]
        requests.append(self.path)
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/other?sig=secret")
        elif self.path == "/busy.jpg" and requests.count(self.path) < 3:
            self.send_response(503)
        elif self.path in ("/secret.jpg", "/gone.jpg"):
            self.send_response(403 if self.path == "/secret.jpg" else 404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", "99" if self.path == "/short.jpg" else "7")
            self.send_header("ETag", "'1'")
            self.end_headers()
            self.wfile.write(b"picture")
            return
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], bytes | None]]:
    """Return a reader of paths of a loopback server, as if it spoke TLS."""
    loopback = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    loopback.requests = []  # type: ignore[attr-defined]
    threading.Thread(target=loopback.serve_forever, daemon=True).start()
    plain = HTTPConnection
    monkeypatch.setattr(download, "_connection", lambda parts, proxy, timeout_s: plain(parts.hostname, parts.port))
    monkeypatch.setattr(remote, "_permitted", {})
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    root = f"https://127.0.0.1:{loopback.server_port}"
    permit(Path(root), None)
    yield lambda path: read_remote(Path(root) / path)
    loopback.shutdown()
    loopback.server_close()


def test_files_of_a_web_server(server: Callable[[str], bytes | None]) -> None:
    assert server("a picture?of=1.jpg") == b"picture"  # a name cannot become a query
    assert server("busy.jpg") == b"picture"
    for path, expected in (
        ("gone.jpg", "there is no such file"),
        ("secret.jpg", "access is denied"),
        ("moved.jpg", "the last time with a redirect that is refused"),
        ("short.jpg", "failed 4 times"),
    ):
        with pytest.raises(MediaError, match=expected) as caught:
            server(path)
        assert "sig=" not in str(caught.value)
