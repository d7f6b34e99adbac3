from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import benchmark_all  # noqa: E402


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A page to write, and two benchmarks that take no time."""
    table = "print('| a | b |\\n|---|---|\\n| 1 | 2 |')"
    monkeypatch.setattr(benchmark_all, "BENCHMARKS", {"one": ("-c", table), "two": ("-c", "print('text')")})
    monkeypatch.setattr(benchmark_all.os, "getloadavg", lambda: (0.1, 0, 0))
    monkeypatch.setattr(benchmark_all, "busy_s", lambda: 0.0)
    monkeypatch.setattr(sys, "argv", ["benchmark_all.py", "--out", str(tmp_path / "tables.md")])
    return tmp_path / "tables.md"


def test_page_has_the_machine_and_every_table(page: Path) -> None:
    benchmark_all.main()
    text = page.read_text()
    assert "cores; torch uses " in text
    assert "load 0.10 at the start" in text
    assert "## one\n\n    python -c print(" in text
    assert "\n\n| a | b |\n|---|---|\n| 1 | 2 |\n" in text
    assert text.endswith("\n\ntext\n")


def test_busy_machine_is_refused_before_and_during_a_benchmark(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((0.0, 50.0))
    monkeypatch.setattr(benchmark_all, "busy_s", lambda: next(moments))
    with pytest.raises(SystemExit, match=r"^one: expected at most 0.2 cores in use by other processes, got"):
        benchmark_all.main()
    monkeypatch.setattr(benchmark_all.os, "getloadavg", lambda: (0.9, 0, 0))
    with pytest.raises(SystemExit, match=r"before the first benchmark: .* got 0.90; nothing is written"):
        benchmark_all.main()
    assert not page.exists()


def test_failed_benchmark_and_unknown_name_end_the_program(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_all, "BENCHMARKS", {"one": ("-c", "raise ValueError('broken')")})
    with pytest.raises(SystemExit, match=r"(?s)ended with 1: .*broken"):
        benchmark_all.main()
    monkeypatch.setattr(sys, "argv", ["benchmark_all.py", "--only", "three"])
    with pytest.raises(SystemExit):
        benchmark_all.main()
    assert not page.exists()


def test_every_benchmark_is_a_tool_or_a_command() -> None:
    for words in benchmark_all.BENCHMARKS.values():
        assert words[0] == "-m" or (ROOT / "tools" / words[0]).is_file()
