"""The report on a GPU: every part at tiny size, the limits of its processes, and the verdicts on its targets."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, imported from its folder."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu_report

    return gpu_report


def test_dry_run_goes_through_every_part(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_parts import PARTS

    monkeypatch.setenv("DETECTOR_MISH", "native")
    document = tmp_path / "docs" / "gpu.md"
    report.main(["--dry-run", "--json", str(tmp_path / "gpu.json"), "--document", str(document)])
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results) == list(report.LIMITS) == list(report.TITLES)[: len(results)] or set(results) == set(PARTS)
    assert all(result["tables"] for result in results.values())
    assert {"copy", "act", "queueing"} <= set(results["kernels"]["tables"])
    text = document.read_text()
    assert "no number here is a measurement" in text
    assert all(f"## {title}" in text for title in report.TITLES.values())
    assert sum(report.LIMITS.values()) < 480


# A part that notes a result, starts a process of its own, and either hangs or fails.
PART = """
import pathlib, subprocess, sys, time
pathlib.Path(sys.argv[1]).write_text('{"table": [{"number": 1}]}')
if sys.argv[2] == "fails":
    sys.exit("no memory")
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).with_suffix(".pid").write_text(str(child.pid))
time.sleep(60)
"""


@pytest.mark.parametrize(("end", "status"), [("hangs", "stopped after 2 s"), ("fails", "failed: no memory")])
def test_part_that_does_not_end_well_keeps_its_results(report: Any, end: str, status: str, tmp_path: Path) -> None:
    output = tmp_path / "part.json"
    found = report.run_part("part", [sys.executable, "-S", "-c", PART, str(output), end], output, 2.0)
    assert found["status"] == status
    assert found["tables"] == {"table": [{"number": 1}]}
    if end == "hangs":
        state = Path(f"/proc/{output.with_suffix('.pid').read_text()}/stat")
        ends_s = time.monotonic() + 20
        while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < ends_s:
            time.sleep(0.05)
        assert time.monotonic() < ends_s


def test_targets_are_judged_by_the_worst_tensor(report: Any) -> None:
    import gpu_targets

    large = gpu_targets.LARGE
    rows = [
        {"tensor": tensor, "variant": variant, "fwd us": time, "% copy": 95.0 - number}
        for number, tensor in enumerate(large)
        for variant, time in (("F.mish", 200.0 - 20 * number), ("ours", 100.0))
    ]
    results: Any = {"kernels": {"tables": {"act": rows}}, "tests": {"tables": {"tests": [{"status": 0}]}}}
    verdicts = {row["measured"]: row for row in gpu_targets.judged(results)}
    assert verdicts["Mish forward, % of a copy"] == {
        "measured": "Mish forward, % of a copy", "target": "at least 90", "value": 93.0, "met": "yes",
    }  # fmt: skip
    assert verdicts["Mish forward against F.mish"]["value"] == pytest.approx(1.6)
    assert verdicts["Mish forward against F.mish"]["met"] == "no"
    assert verdicts["Mish backward, % of a copy"]["met"] == "not measured"
    assert verdicts["First use, s"]["value"] == ""
    assert verdicts["Accuracy: `make gpu` passes"]["met"] == "yes"


def test_rows_of_tables_have_a_name_for_each_column() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from gpu_parts import rows_of

    text = "| a | us | us |\n|---|---|---|\n| x | 1.5 | - |\n\n| b |\n|---|\n| 2 |"
    assert rows_of(text) == [{"a": "x", "us": 1.5, "us #2": "-"}, {"b": 2.0}]
