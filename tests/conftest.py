"""Fixtures of all tests."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, equal

from detector.config import registry
from detector.data.synthetic_detection import draw_shapes
from detector.tasks import run_pictures
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection


def pytest_configure(config: pytest.Config) -> None:
    """Use two threads, as on the smallest supported machine, or one with parallel tests or OMP_NUM_THREADS=1."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
        torch.set_num_threads(1)
    torch.set_num_threads(min(2, torch.get_num_threads()))


# Files that take long run first: a worker takes one file at a time, and none shall be left alone with one of these.
LONG_FILES = (
    "test_documents.py",
    "training/test_distributed.py",
    "training/test_kill.py",
    "training/test_resume.py",
    "training/test_trainer.py",
    "test_parts.py",
    "cli/test_end_to_end.py",
    "tasks/test_classification.py",
    "cli/test_darknet_network.py",
    "workflows/test_fine_tuning.py",
    "test_compatibility.py",
    "test_promises.py",
    "cli/test_manners.py",
    "test_wheel.py",
    "test_api.py",
    "cli/test_export.py",
    "export/test_writer.py",
    "workflows/test_benchmark.py",
    "workflows/test_part_templates.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the long files first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


# The charts of a training run take as long as the whole rest of a tiny one; `run_charts` draws them in a test.
CHARTS = {name: getattr(run_pictures, name) for name in ("labels_picture", "results_chart")}
BLANK_PNG: bytes = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()


@pytest.fixture(scope="session", autouse=True)
def _blank_charts() -> Iterator[None]:
    """Write the charts of training runs as blank pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CHARTS:
            patch.setattr(run_pictures, name, lambda *arguments: BLANK_PNG)
        yield


@pytest.fixture
def run_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the charts of the test's training runs."""
    for name, draw in CHARTS.items():
        monkeypatch.setattr(run_pictures, name, draw)


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw the embedded data set: 12 training and 6 validation images of 64 x 64 pixels; tests must not change it."""
    root = tmp_path_factory.mktemp("shapes") / "tiny"
    draw_shapes(root, num_train=12, num_val=6, image_size=64)
    return root


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data that DETECTOR_TEST_DATA names; skip the test if it is not set."""
    named = os.environ.get("DETECTOR_TEST_DATA", "")
    if not named or not Path(named).is_dir():
        pytest.skip("DETECTOR_TEST_DATA names no folder")
    return Path(named)


@pytest.fixture(scope="session")
def yolox_numbers(data_folder: Path) -> Path:
    """Return the folder of numbers computed by the original code of YOLOX, beside the real data; skip without it."""
    folder = data_folder.parent / "yolox-golden"
    if not folder.is_dir():
        pytest.skip("there is no folder yolox-golden beside DETECTOR_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def _imported_parts_are_forgotten() -> Iterator[None]:
    """Forget, after a test, the files that it imported and their parts, which another test or its workers would see."""
    yield
    registry._imported_files.clear()
    for kind in list(registry._PARTS):
        for name, part in list(registry._PARTS[kind].items()):
            if part.__module__.startswith("detector_parts_"):
                del registry._PARTS[kind][name]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers after a test, because the command line replaces them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Hung(BaseException):
    """A piece of work took too long; no code under test catches it."""


@pytest.fixture
def bounded() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which 10 s of processor time raise `Hung`, and 2 GB of new memory cannot be allocated."""

    def hung(number: int, frame: object) -> NoReturn:
        raise Hung("took over 10 s of processor time")

    @contextmanager
    def bounds() -> Iterator[None]:
        status = Path("/proc/self/status").read_text()
        held = 1024 * int(status.partition("VmData:")[2].split()[0])
        limits, handler = resource.getrlimit(resource.RLIMIT_DATA), signal.signal(signal.SIGPROF, hung)
        resource.setrlimit(resource.RLIMIT_DATA, (held + 2**31, limits[1]))
        signal.setitimer(signal.ITIMER_PROF, 10)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, handler)
            resource.setrlimit(resource.RLIMIT_DATA, limits)

    return bounds


@pytest.fixture
def draw_video(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that draws a video; six black or white bars of each frame are the bits of its number."""

    def draw(
        name: str = "video.mp4", num_frames: int = 60, image_hw: tuple[int, int] = (48, 64), fps: float = 25.0
    ) -> Path:
        path = tmp_path / name
        fourcc = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
        writer = cv2.VideoWriter(str(path), fourcc, fps, image_hw[::-1])
        for number in range(num_frames):
            bits = [255 * (number >> bit & 1) for bit in range(6)]
            bars = np.repeat(np.array(bits, np.uint8), -(-image_hw[1] // 6))[: image_hw[1]]
            writer.write(np.ascontiguousarray(np.broadcast_to(bars[None, :, None], (*image_hw, 3))))
        writer.release()
        return path

    return draw


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of skipped tests, also if it is 0."""
    terminalreporter.write_line(f"tests skipped: {len(terminalreporter.stats.get('skipped', []))}")


# Small networks, each a preset and its overrides: of two families and of a Darknet .cfg.
NETWORKS = {
    "mish-n": ("mish-n", "model.width=0.125", "model.depth=0.1", "model.max_channels=64"),
    "yolox": ("yolox-nano", "model.width=0.125", "model.depth=0.1"),
    "darknet": ("mish-n", f"model={{name: darknet, cfg: {Path(__file__).parent}/darknet/tiny.cfg}}"),
}
# A very small run: about a twentieth of a second per step.
TINY = (
    "input.size=64",
    "loader.workers=0",
    "loader.batch_size=4",
    "augment.albumentations=[]",
    "evaluate.batch_size=4",
    "train.iterations=6",
    "train.evaluations=2",
    "train.precision=fp32",
    "device=cpu",
)


def data_override(root: Path) -> str:
    """Return the override that names the splits of a drawn data set."""
    listed = ", ".join(
        f"{name}: {{annotations: {root}/annotations/{name}.json, images: {root}/images/{name}}}"
        for name in ("train", "val")
    )
    return f"data={{name: coco, {listed}}}"


@pytest.fixture
def experiment(request: pytest.FixtureRequest, tiny_shapes: Path, tmp_path: Path) -> Callable[..., DetectionConfig]:
    """Return a function that builds the experiment of a tiny run in the folder of the test, with overrides.

    The network is that of mish-n, or the one of `NETWORKS` that the fixture's parameter names.
    """
    preset, *network = NETWORKS[getattr(request, "param", "mish-n")]

    def make(*overrides: str, data: Path = tiny_shapes) -> DetectionConfig:
        own = [*network, *TINY, data_override(data), f"train.project={tmp_path}/runs"]
        return load_detection(preset, [*own, *overrides])

    return make


def _assert_same(ours: Any, theirs: Any, where: str = "state") -> None:
    """Check that two states are equal to the last bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype, where
        assert equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            _assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            _assert_same(*pair, f"{where}[{index}]")
    else:
        assert ours == theirs, where


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Return a function that checks that two states are equal to the last bit."""
    return _assert_same


# A process that imports what a run needs, which takes longer than the run, and is forked for each command.
SERVER = """
import json, os, runpy, sys
import albumentations, detector.cli.train, detector.workflows.train

def serve(words, code, variables, log):
    os.environ.update(variables)
    for descriptor, name in enumerate((os.devnull, log + ".out", log + ".err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdin, sys.argv = open(os.devnull), ["detector", *words]
    try:
        if code:
            exec(code, {"__name__": "__main__"})
        else:
            runpy.run_module("detector", run_name="__main__", alter_sys=True)
        sys.exit()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, list):
        answer = os.fork() or serve(*request)
    else:
        pid, status = os.waitpid(request, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Forked:
    """A forked command, with the methods of `subprocess.Popen` that the tests use.

    Attributes:
        ask: sends a request to the server and returns its answer.
        pid: process id.
        log: path of its output without the endings `.out` and `.err`.
        returncode: exit code, or None until `poll` saw the end.
    """

    ask: Callable[[Any], Any]
    pid: int
    log: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.ask(self.pid)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        end_s = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end_s:
                self.kill()
                raise subprocess.TimeoutExpired("detector", timeout)
            time.sleep(0.01)
        out, err = (Path(f"{self.log}.{kind}").read_text(encoding="utf-8") for kind in ("out", "err"))
        return out, err


@pytest.fixture(scope="session")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forked]]:
    """Return a function that starts `detector WORDS`, or Python code, in a process with one thread."""
    if not hasattr(os, "fork"):
        pytest.skip("the system cannot fork processes")
    logs = tmp_path_factory.mktemp("forked")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    numbers = itertools.count()

    def ask(request: Any) -> Any:
        assert server.stdin
        assert server.stdout
        print(json.dumps(request), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    def start(*words: str, code: str = "", **variables: str) -> Forked:
        log = logs / str(next(numbers))
        return Forked(ask, ask([words, code, variables, str(log)]), log)

    yield start
    server.communicate()
