from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools/benchmark_mish.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_section_runs_and_a_second_call_keeps_the_first_ones(tmp_path: Path) -> None:
    output = tmp_path / "benchmarks" / "mish.md"
    quick = ("--smoke", "--no-compile", "--rounds", "2", "--output", str(output))
    first = run(*quick, "--sections", "copy,act,bn,infer")
    assert first.returncode == 0, first.stderr
    before = output.read_text()
    assert [line for line in before.splitlines() if line.startswith("## ")] == [
        "## copy",
        "## act",
        "## bn",
        "## infer",
    ]
    second = run(*quick, "--sections", "stack,cpu")
    assert second.returncode == 0, second.stderr
    after = output.read_text()
    assert after.startswith(before.rstrip())
    assert [line for line in after.splitlines() if line.startswith("## ")][4:] == ["## stack", "## cpu"]
    rows = [line for line in after.splitlines() if line.startswith("|")]
    assert all(len(row.split("|")) > 3 for row in rows)
    for wanted in (
        "| F.mish |",
        "| BN only |",
        "| ours |",
        "| ours, in place |",
        "| BN, LeakyReLU |",
        "| backward | bfloat16 | 2 |",
    ):
        assert any(wanted in row for row in rows), wanted


def test_a_section_that_does_not_exist_is_refused_by_name() -> None:
    done = run("--sections", "act,speed")
    assert done.returncode == 2
    assert "got speed" in done.stderr


def test_end_of_time_is_noted_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "mish.md"
    done = run("--smoke", "--seconds", "0", "--sections", "act", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "Stopped after 0 seconds" in output.read_text()


def test_only_torch_and_numpy_are_imported() -> None:
    probe = "import sys; sys.path.insert(0, 'tools'); import benchmark_mish; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"cv2", "pydantic", "albumentations", "yaml", "pycocotools", "matplotlib"} & set(done.stdout.split())
