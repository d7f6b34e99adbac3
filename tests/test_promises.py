"""What the package promises of a whole process: it starts at once, and it talks to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

MAX_HELP_S = 0.3
SLOW_MACHINE_S = 0.1  # where Python alone takes longer, a time says nothing of this package


def best_of(command: list[str], times: int = 5) -> float:
    """The shortest wall time of a command in seconds."""
    taken = []
    for _ in range(times):
        started_s = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - started_s)
    return min(taken)


def test_help_answers_at_once():
    if best_of([sys.executable, "-c", "pass"]) > SLOW_MACHINE_S:
        pytest.skip("Python itself starts too slowly here to measure the command line")
    for words in (["--help"], ["train", "--help"], ["--version"]):
        assert best_of([sys.executable, "-m", "detector", *words]) < MAX_HELP_S, words


# Runs a whole life of a model; any attempt to reach the network or to start a program ends it with code 99.
QUIET_LIFE = """
import os, sys, traceback

# The CPU kernels are built by the machine's own compiler, once; torch, when imported, asks the linker for libraries.
LINKERS_AND_COMPILERS = {"ldconfig", "ld", "gcc", "cc", "objdump", "g++", "c++", "clang++"}

def hook(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        if os.path.basename(str(arguments[0])) in LINKERS_AND_COMPILERS or str(arguments[0]) == os.environ.get("CXX"):
            return
    elif not (event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) or event == "os.system"):
        return
    traceback.print_stack()
    print("FORBIDDEN", event, arguments, file=sys.stderr, flush=True)
    os._exit(99)  # an exception might be caught

if sys.argv[1] == "control":
    sys.addaudithook(hook)
    import socket
    socket.create_connection(("127.0.0.1", 9))
sys.addaudithook(hook)
import detector
from detector.cli.main import run
try:
    run(["--help"])
except SystemExit as end:
    assert end.code == 0, end.code
data, out = sys.argv[2:4]
shapes = [f"data=shapes", f"data.root={data}", "data.num_train=12", "data.num_val=6", "data.image_size=64"]
settings = ["input.size=64", "loader.workers=0", "loader.batch_size=2", "train.iterations=2", "train.evaluations=1",
            "evaluate.batch_size=2", f"train.project={out}", "device=cpu"]
assert run(["train", "mish-n", *shapes, *settings, "-q"]) == 0, "train"
best = f"{out}/train/weights/best.safetensors"
assert run(["evaluate", best, "--json", "-q", "--save-dir", f"{out}/val"]) == 0, "evaluate"
assert run(["predict", best, f"{data}/images/val", "--json", "-q", "--save-dir", f"{out}/predict"]) == 0, "predict"
assert os.path.exists(f"{out}/predict/predictions.json")
from detector import Detector
found = Detector(best).predict(f"{data}/images/val/000001.jpg")
assert found.image_hw == (64, 64)
print("done")
"""


def live(tmp_path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}  # the package sees to it
    return subprocess.run(
        [sys.executable, "-c", QUIET_LIFE, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )


def test_a_whole_life_opens_no_socket_and_starts_no_program(tmp_path, tiny_shapes):
    done = live(tmp_path, "life", str(tiny_shapes), str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"


def test_the_watch_on_sockets_would_bark(tmp_path):
    done = live(tmp_path, "control")
    assert done.returncode == 99
    assert "FORBIDDEN socket." in done.stderr
