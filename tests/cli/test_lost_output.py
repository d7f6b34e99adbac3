"""Output that cannot be printed never ends the work: results are complete, and the exit code is that of the work."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detector.cli.main import run


class Lost(io.StringIO):
    """Stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "closed pipe": lambda: Lost(BrokenPipeError(32, "Broken pipe")),
    "full disk": lambda: Lost(OSError(28, "No space left on device")),
    "closed": closed,
    "none": lambda: None,
}


@pytest.fixture(scope="module")
def pictures(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy an image under a name with letters that cp1252 lacks."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "猫.jpg").write_bytes(sorted(trained.images.iterdir())[0].read_bytes())
    return folder


def records_in(folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    return records


@pytest.mark.parametrize("how", STREAMS)
def test_results_are_complete_without_stdout(
    how: str, trained: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[how]())
    words = [str(trained.weights), str(pictures), "--no-pictures", "--save-dir", str(tmp_path)]
    code = run(["predict", *words])
    monkeypatch.undo()
    assert code == 0
    assert ("detector predict: the output cannot be printed" in capsys.readouterr().err) == (
        how in ("full disk", "closed")
    )
    assert len(records_in(tmp_path)) == 1


def test_results_are_complete_without_stderr(
    trained: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Lost(OSError(5, "Input/output error")))  # the terminal has gone
    words = [str(trained.weights), str(pictures), "--no-pictures", "--save-dir", str(tmp_path)]
    code = run(["predict", *words])
    monkeypatch.undo()
    assert (code, len(records_in(tmp_path))) == (0, 1)


def test_name_that_the_terminal_cannot_encode_is_escaped(
    trained: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    code = run(["predict", str(trained.weights), str(pictures), "--no-pictures", "--save-dir", str(tmp_path)])
    monkeypatch.undo()
    assert code == 0
    assert raw.getvalue().startswith(f"{pictures}/".encode() + rb"\u732b.jpg: ")
    assert records_in(tmp_path)[0]["source"] == str(pictures / "猫.jpg")


@pytest.mark.parametrize(("how", "message"), [("full disk", "No space left on device"), ("closed pipe", "")])
def test_command_that_only_prints_fails_without_stdout(
    how: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[how]())
    code = run(["parts"])
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert code == 1
    assert said == (
        f"detector parts: the output cannot be printed ({message}); run the command again\n" if message else ""
    )


def test_frames_are_read_to_their_end_when_nobody_reads_their_records(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = sorted(trained.images.iterdir())[0].read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(encoded * 3)))
    monkeypatch.setattr(sys, "stdout", STREAMS["closed pipe"]())
    code = run(["predict", str(trained.weights), "-", "--json", "--no-pictures", "--save-dir", str(tmp_path)])
    monkeypatch.undo()
    assert code == 0
    assert len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3
