"""Fixtures of all tests."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
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
from tests.written_models import written_teacher


def pytest_configure(config: pytest.Config) -> None:
    """Use two threads, as on the smallest supported machine, or one with parallel tests or OMP_NUM_THREADS=1."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import these libraries themselves
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as detector.export.private_import does
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
    if sys.platform != "linux":
        pytest.skip("the limits of time and memory of a process are those of Linux")
    import resource

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


class HostWaitError(Exception):
    """The CPU would wait for a GPU."""


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a mode in which tensors on `cuda` have shapes only, and anything that the CPU would wait for raises.

    These are values and numbers of values (`.item()`, `nonzero`, masks as indices), copies to the CPU, and copies from
    it that are not asynchronous, such as `torch.tensor(..., device="cuda")`. Tensors on the CPU are real. Within
    `fake_gpu.setting_up()` such copies are allowed.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._pytree import tree_leaves

    from detector.structures import transfer

    aten = torch.ops.aten
    indexing = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)

    class FakeGpu(FakeTensorMode):
        def __init__(self) -> None:
            super().__init__(allow_non_fake_inputs=True)
            self.checks = True

        @contextmanager
        def setting_up(self) -> Iterator[None]:
            self.checks = False
            yield
            self.checks = True

        def reason(self, func: Any, args: Any, kwargs: Any, fakes: Any, hosts: Any) -> str | None:
            to_gpu, is_copy = _is_gpu(kwargs.get("device")), func is aten.copy_.default
            if func in (aten._local_scalar_dense.default, aten.equal.default):
                return "a value is read"
            if fakes and kwargs.get("device") is not None and not to_gpu:
                return "a copy to the CPU"
            if hosts and (to_gpu or is_copy) and not (kwargs.get("non_blocking") or (is_copy and args[2:] == (True,))):
                return "a copy that waits"
            if func in indexing and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
                return "a mask as an index"
            if fakes and not is_copy and any(tensor.ndim for tensor in hosts):
                return "tensors of the CPU"
            return None

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is aten._fused_sgd_.default:  # torch cannot tell the shapes of this one
                return None
            if torch.is_inference_mode_enabled() and func.namespace == "aten":  # else, autograd has decomposed it
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
            if not fakes and not _is_gpu(kwargs.get("device")):
                return func(*args, **kwargs)
            hosts = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
            reason = self.reason(func, args, kwargs, fakes, hosts) if self.checks else None
            if reason is not None:
                raise HostWaitError(f"{func}: {reason}")
            return super().__torch_dispatch__(func, types, args, kwargs)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(transfer, "_copy_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.autograd, "backward", torch.no_grad()(_backward))
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    return FakeGpu()


def _backward(root: Tensor) -> None:
    """Run the backward functions of a graph in Python: torch's engine asks the driver of a GPU, of fake tensors too."""
    assert root.grad_fn is not None
    pending: Counter[Any] = Counter()
    found, seen = [root.grad_fn], {root.grad_fn}
    while found:
        for child, _ in found.pop().next_functions:
            pending[child] += 1
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    given: dict[Any, dict[int, Any]] = defaultdict(dict, {root.grad_fn: {0: torch.ones_like(root)}})
    ready: list[Any] = [root.grad_fn]
    while ready:
        node = ready.pop()
        declared = [(given[node].get(number), made) for number, made in enumerate(node._input_metadata)]
        grads = [grad if grad is None else grad.to(made.dtype) for grad, made in declared]
        if hasattr(node, "variable"):
            before = node.variable.grad
            node.variable.grad = grads[0] if before is None else before + grads[0]
            continue
        own: Any = None
        if any(grad is not None for grad in grads):
            own = (node if callable(node) else node.apply)(*grads)
        edges = node.next_functions
        if own is not None and not callable(node):  # a function in Python returns None for what is no tensor
            given_back = own if isinstance(own, tuple) else (own,)
            own = tuple(grad for grad, needs in zip(given_back, node.needs_input_grad, strict=True) if needs)
            edges = tuple(edge for edge in edges if edge[0] is not None)
        results = own if isinstance(own, tuple) else (own,) * len(edges)
        for (child, number), grad in zip(edges, results, strict=True):
            before = given[child].get(number)
            if grad is not None:
                given[child][number] = grad if before is None else before + grad
            pending[child] -= 1
            if child is not None and not pending[child]:
                ready.append(child)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# Small networks, each a preset and its overrides: of two families, with two branches, and of a Darknet .cfg.
NETWORKS = {
    "mish-n": ("mish-n", "model.width=0.125", "model.depth=0.1", "model.max_channels=64"),
    "dual": ("mish-n", "model.width=0.125", "model.depth=0.1", "model.max_channels=64", "model.head=dual"),
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


@pytest.fixture(scope="session")
def write_teacher() -> Callable[..., Path]:
    """Return a function that writes a detector with random weights and scores around a half.

    It has the network of `NETWORKS` that `network` names, and the classes of `names`.
    """
    return functools.partial(written_teacher, NETWORKS)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a model file of two of the classes of the drawn data set and of one that it does not have."""
    return written_teacher(NETWORKS, tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


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
