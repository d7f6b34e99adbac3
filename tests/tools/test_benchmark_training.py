from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_every_variant_runs_and_both_ratios_are_printed(tiny_shapes: Path, tmp_path: Path) -> None:
    images = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    (tmp_path / "data.yaml").write_text(f"name: coco\ntrain: {images}\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools/benchmark_training.py"), "--data", str(tmp_path / "data.yaml")]
    done = subprocess.run(
        [*command, "--size", "64", "--workers", "1", "--steps", "1", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rates = dict(re.findall(r"^\| (.+) \| ([\d.]+) \|$", done.stdout, re.MULTILINE))
    assert len(rates) == 3
    assert all(float(rate) > 0 for rate in rates.values())
    assert len(re.findall(r"^default, real loader : .+ = [\d.]+ ", done.stdout, re.MULTILINE)) == 2
    assert done.stderr.count("ms of the workers an image") == 6
