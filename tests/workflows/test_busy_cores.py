"""The note of a run that threads of a bf16 step would wait for each other on busy cores."""

from __future__ import annotations

import pytest
import torch

from detector.workflows import train
from detector.workflows.train import note_busy_cores


@pytest.mark.parametrize(
    ("precision", "device", "num_threads", "is_busy", "is_noted"),
    [
        ("bf16", "cpu", 2, True, True),
        ("bf16", "cpu", 2, False, False),
        ("bf16", "cpu", 1, True, False),
        ("fp32", "cpu", 2, True, False),
        ("bf16", "cuda", 2, True, False),
    ],
)
def test_run_on_busy_cores_names_the_faster_setting(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, num_threads: int, is_busy: bool, is_noted: bool
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(train, "are_cores_busy", lambda: is_busy)
    told: list[object] = []
    note_busy_cores(precision, torch.device(device), told.append)
    assert ["OMP_NUM_THREADS=1" in str(event) for event in told] == [True] * is_noted
