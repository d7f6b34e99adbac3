"""Fixtures of the tests of training."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
