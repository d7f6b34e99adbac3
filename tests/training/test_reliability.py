"""Model files that expand in memory, and a disk that is full during a save."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.models.checkpoint import load_model_file, load_training_state
from detector.structures.types import Batch, ClassBatch
from detector.tasks.detection_config import DetectionConfig
from detector.training.trainer import Trainer

Make = Callable[..., DetectionConfig]

# Every file has at most a few megabytes but expands to at least half a gigabyte; reading may use a quarter of one.
BOMBS = """
import pathlib, resource, sys, zipfile
import torch
from detector.models.checkpoint import load_model_file, load_training_state
from detector.errors import CheckpointError

folder = pathlib.Path(sys.argv[1])
weights = {"a": torch.ones(2)}
state = dict(format_version=1, config={}, class_names=[], category_ids=[], model=weights, ema=weights, metrics={})

class Bytes:
    def __reduce__(self):
        return bytearray, (2**33,)

nested = []
for _ in range(60):
    nested = [nested, nested]
torch.save({**state, "ema": {"a": torch.zeros(1).expand(10**12)}}, folder / "strides.pt")
torch.save({**state, "payload": Bytes()}, folder / "bytes.pt", pickle_protocol=2)
torch.save({**state, "lists": nested}, folder / "lists.pt", pickle_protocol=2)
torch.save({**state, "model": {"a": torch.zeros(2**27)}}, folder / "plain.pt")
with zipfile.ZipFile(folder / "plain.pt") as plain, zipfile.ZipFile(folder / "zip.pt", "w", 8, compresslevel=1) as bomb:
    for entry in plain.infolist():
        bomb.writestr(entry.filename, plain.read(entry))
(folder / "plain.pt").unlink()
(folder / "header.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + b"{" + b" " * 100)
del nested

held = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, held + 2**28))
for path in sorted(folder.iterdir()):
    assert path.stat().st_size < 6e6, path
    for load in (load_model_file, load_training_state):
        try:
            load(path)
        except CheckpointError as error:
            print(path.name, "rejected", len(str(error)))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory held is read from /proc")
def test_files_that_expand_are_rejected_within_a_quarter_of_a_gigabyte(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused = [line.split()[0] for line in done.stdout.splitlines()]
    names = ("bytes.pt", "header.safetensors", "lists.pt", "strides.pt", "zip.pt")
    assert refused == [name for name in names for _ in range(2)]


def test_full_disk_during_a_save_ends_the_run_which_can_be_continued(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, fsync, is_full = Trainer._optimise, os.fsync, [False]

    def optimise(self: Trainer, group: list[Batch | ClassBatch]) -> None:
        whole(self, group)
        is_full[0] = self.step > 4

    def forced(descriptor: int) -> None:
        if is_full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(Trainer, "_optimise", optimise)
    monkeypatch.setattr(os, "fsync", forced)
    path, weights = tmp_path / "run.yaml", tmp_path / "runs/train/weights"
    path.write_text(config_to_yaml(experiment()), encoding="utf-8")
    assert run(["train", str(path), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "is not saved (No space left on device), an old one is whole: check the disk" in error
    assert "Traceback" not in error
    assert load_training_state(weights / "last.safetensors")["step"] == 3
    assert load_model_file(weights / "best.safetensors").state
    assert sorted(entry.name for entry in weights.iterdir()) == ["best.safetensors", "last.safetensors"]
    monkeypatch.undo()
    assert run(["train", str(path), "--continue", "--quiet"]) == 0
    assert load_training_state(weights / "last.safetensors")["step"] == 6
