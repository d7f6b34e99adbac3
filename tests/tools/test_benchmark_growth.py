from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from benchmark_growth import Cost, commands, cost_of, draw_set, exponent  # noqa: E402


def test_exponent_is_that_of_the_last_decade_without_the_start() -> None:
    sizes = [10, 100, 1000]
    assert exponent(sizes, [Cost(5 + n / 100, 1) for n in (0, *sizes[1:])]) == pytest.approx(1.0)
    assert exponent(sizes, [Cost(5 + n**2 / 100, 1) for n in (0, *sizes[1:])]) == pytest.approx(2.0)
    assert exponent(sizes[:2], [Cost(5, 1)] * 2) is None


def test_drawn_set_has_the_asked_images(tmp_path: Path) -> None:
    draw_set(tmp_path / "set", 120)
    content = json.loads((tmp_path / "set/all.json").read_text())
    assert len(content["images"]) == 120
    assert len(content["annotations"]) == 360
    files = sorted((tmp_path / "set/images").iterdir())
    assert [file.name for file in files] == [image["file_name"] for image in content["images"]]
    assert len({file.read_bytes() for file in files}) == 120
    assert list(commands(tmp_path, tmp_path)) == ["check", "start of training", "one epoch", "evaluate", "predict"]


def test_cost_is_that_of_the_command_and_a_failure_ends_the_benchmark(tmp_path: Path) -> None:
    cost = cost_of(["--version"], tmp_path)
    assert 0 < cost.cpu_s < 60
    assert 1 < cost.peak_mb < 4000
    with pytest.raises(SystemExit, match="ended with 2"):
        cost_of(["unknown"], tmp_path)


@pytest.mark.nightly
def test_table_has_a_row_for_each_command() -> None:
    command = [sys.executable, str(ROOT / "tools/benchmark_growth.py"), "--images", "20,40,80"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) == 2 + 5
