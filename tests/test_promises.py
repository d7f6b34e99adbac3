"""Guarantees about processes: a fast start and no network access."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MAX_HELP_S = 0.3
SLOW_MACHINE_S = 0.1  # if Python alone takes longer, the time is not meaningful


def best_of(command: list[str], times: int = 5) -> float:
    """Return the shortest processor time of a command in seconds: other work on the cores does not count."""

    def used_s() -> float:
        spent = os.times()
        return spent.children_user + spent.children_system

    taken = []
    for _ in range(times):
        before_s = used_s()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(used_s() - before_s)
    return min(taken)


def test_help_prints_within_its_time_limit():
    if best_of([sys.executable, "-c", "pass"]) > SLOW_MACHINE_S:
        pytest.skip("Python itself starts too slowly here to measure the command line")
    for words in (["--help"], ["train", "--help"], ["--version"]):
        assert best_of([sys.executable, "-m", "detector", *words]) < MAX_HELP_S, words


# Train, evaluate and predict; any attempt to open a connection or to start a program ends the process with code 99.
QUIET_LIFE = """
import os, sys, traceback

# The compiler of the machine builds the CPU kernels once; importing torch runs the linker to find libraries.
LINKERS_AND_COMPILERS = {"ldconfig", "ld", "gcc", "cc", "objdump", "g++", "c++", "clang++"}

def hook(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        if os.path.basename(str(arguments[0])) in LINKERS_AND_COMPILERS or str(arguments[0]) == os.environ.get("CXX"):
            return
    elif not (event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) or event == "os.system"):
        return
    traceback.print_stack()
    print("FORBIDDEN", event, arguments, file=sys.stderr, flush=True)
    os._exit(99)  # an exception could be caught

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
            "evaluate.batch_size=2", f"train.project={out}", "device=cpu", "model.width=0.125",
            "model.depth=0.1"]
assert run(["train", "mish-n", *shapes, *settings, "-q"]) == 0, "train"
best = f"{out}/train/weights/best.safetensors"
assert run(["evaluate", best, "--json", "-q", "--save-dir", f"{out}/val"]) == 0, "evaluate"
assert run(["predict", best, f"{data}/images/val", "--json", "-q", "--save-dir", f"{out}/predict"]) == 0, "predict"
assert os.path.exists(f"{out}/predict/predictions.json")
from detector import Detector
found = Detector(best).predict(f"{data}/images/val/000001.jpg")
assert found.image_hw == (64, 64)
assert "torch._dynamo" not in sys.modules  # torch's compiler, whose import takes seconds
print("done")
"""


def live(tmp_path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}  # the package must set it
    return subprocess.run(
        [sys.executable, "-c", QUIET_LIFE, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )


def test_train_evaluate_and_predict_open_no_socket_and_start_no_program(tmp_path, tiny_shapes):
    done = live(tmp_path, "life", str(tiny_shapes), str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"


def test_socket_of_a_control_process_is_detected(tmp_path):
    done = live(tmp_path, "control")
    assert done.returncode == 99
    assert "FORBIDDEN socket." in done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "30000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_chose_otherwise(given, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    code = f"import os, sys, detector; assert 'torch' not in sys.modules; print(*map(os.environ.get, {names}))"
    environment = {key: value for key, value in os.environ.items() if key not in names}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**environment, **given})
    assert done.stdout.strip() == expected
