from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "tools/benchmark_evaluation.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_small_set_is_scored_by_both_back_ends_with_the_same_bits() -> None:
    text = run("--images", "40", "--objects", "300", "--detections", "2000", "--compare")
    assert text.startswith("40 images, 300 objects, 2000 detections; read in ")
    assert len(re.findall(r"(fast|pycocotools): scored in \d+\.\d\d s", text)) == 2
    assert text.endswith("every number of the two is the same bits: True\n")


def test_the_same_set_is_drawn_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("--images", "5", "--objects", "20", "--detections", "100", "--write", str(tmp_path / name))
    for name in ("instances.json", "results.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.nightly
def test_half_a_million_detections_are_scored_within_ten_seconds_and_1500_megabytes() -> None:
    text = run()
    match = re.search(r"read in ([\d.]+) s\nfast: scored in ([\d.]+) s .* peak so far ([\d.]+) GB", text)
    assert match is not None
    read_s, scored_s, peak_gb = map(float, match.groups())
    assert read_s + scored_s < 10
    assert peak_gb < 1.5
