from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_the_table_is_measured_on_sheets_of_small_objects(tmp_path: Path) -> None:
    words = ["--sheets", "2", "--iterations", "30", "--keep", str(tmp_path), "--only", "tiles of 320"]
    command = [sys.executable, str(ROOT / "tools/benchmark_tiling.py"), *words]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    content = json.loads((tmp_path / "sheets/sheets.json").read_text())
    assert text.startswith(f"2 sheets, {len(content['annotations'])} objects\n")
    assert [(i["width"], i["height"]) for i in content["images"]] == [(1280, 1280)] * 2
    sides = [max(a["bbox"][2:]) for a in content["annotations"]]
    assert min(sides) >= 12
    assert max(sides) <= 128
    assert len(re.findall(r"^\| tiles of 320.*\| \d\.\d{3} \|.* \d+\.\d\d \|$", text, re.MULTILINE)) == 8
