from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detector.errors import ConfigError
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.precision import Precision
from detector.models.yolo import Yolo
from detector.training import memory_probe
from detector.training.memory_probe import MAX_BATCH_SIZE, FittedBatch, ProbedTraining, fit_batch_size, free_bytes
from detector.training.optimizers import Muon

CPU = torch.device("cpu")
NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of the memory is read and reset in /proc"
)


def fit(budget_bytes: int, monkeypatch: pytest.MonkeyPatch, **others: Any) -> FittedBatch:
    """Fit a batch size with `budget_bytes` of free memory."""
    monkeypatch.setattr(memory_probe, "free_bytes", lambda device: budget_bytes)
    model = Yolo(Yolo.Config(width=0.125), 3)
    loss = TaskAlignedLoss(TaskAlignedLoss.Config(), model)
    probed = ProbedTraining(model, loss, Muon.Config(), Precision("fp32", CPU), CPU, (256, 192), 5)
    return fit_batch_size(probed, **{"share": 0.5, **others})


# ---- the probe, with simulated memory


class Memory:
    """Device on which 100 bytes are in use, a step takes 40 more, and each of its images 10."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak, self.trained = 100, list[int]()
        monkeypatch.setattr(memory_probe, "_forget_peak", lambda device: None)
        monkeypatch.setattr(memory_probe, "_peak_bytes", lambda device: self.peak)
        monkeypatch.setattr(memory_probe._Stepper, "step", self._step)

    def _step(self, num_images: int) -> None:
        self.trained.append(num_images)
        self.peak = max(self.peak, 140 + 10 * num_images)


def test_batch_size_follows_from_the_line_through_the_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    found = fit(1000, monkeypatch)  # (500 - 40) / 10 = 46, rounded down to a multiple of four
    assert found == FittedBatch(44, 10, 40, 500, (1, 2, 4, 8))
    assert memory.trained == [1, 1, 2, 2, 4, 4, 8, 8]


def test_one_image_that_is_too_small_for_batch_norm_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)

    def step(stepper: object, num_images: int) -> None:
        if num_images == 1:
            raise ValueError("Expected more than 1 value per channel when training, got input size [1, 8, 1, 1]")
        memory._step(num_images)

    monkeypatch.setattr(memory_probe._Stepper, "step", step)
    assert fit(1000, monkeypatch) == FittedBatch(44, 10, 40, 500, (2, 4, 8))


def test_waiting_batches_and_reserved_bytes_reduce_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch)
    image_bytes = 10 + 2 * 3 * 256 * 192
    found = fit(100 * image_bytes, monkeypatch, waiting_batches=2, reserved_bytes=80 * image_bytes)
    assert found.image_bytes == image_bytes
    assert found.batch_size == 8  # memory of ten images, minus the fixed part of a step


def test_batch_that_will_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    assert fit(150, monkeypatch).batch_size == 3  # 75 bytes hold 40 and three images
    assert max(memory.trained) == 2


def test_batch_size_is_limited_by_the_data_set_and_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch)
    assert fit(10**9, monkeypatch).batch_size == MAX_BATCH_SIZE
    assert fit(10**9, monkeypatch, most=5).batch_size == 5


def test_image_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch)
    with pytest.raises(
        ConfigError, match=r"share=0.5: expected a batch of one image of 256 x 192 px to fit .* cpu, got"
    ):
        fit(80, monkeypatch)


# ---- real memory


@NEEDS_PROC
def test_step_at_the_fitted_size_takes_about_the_predicted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    steppers: list[memory_probe._Stepper] = []
    whole = memory_probe._Stepper.step

    def step(stepper: memory_probe._Stepper, batch_size: int) -> None:
        steppers.append(stepper)
        whole(stepper, batch_size)

    monkeypatch.setattr(memory_probe._Stepper, "step", step)
    found = fit(600 * 2**20, monkeypatch)
    assert found.batch_size > 8  # more than was measured
    memory_probe._forget_peak(CPU)
    held_bytes = memory_probe._peak_bytes(CPU)
    whole(steppers[-1], found.batch_size)
    taken_bytes = memory_probe._peak_bytes(CPU) - held_bytes  # weights and optimiser state are allocated already
    assert 0.6 < taken_bytes / (found.batch_size * found.image_bytes) < 1.4
    assert found.batch_size * found.image_bytes + found.fixed_bytes <= found.budget_bytes


# ---- free memory


def proc_of(folder: Path, cgroup: str) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n")
    (folder / "proc/self/cgroup").write_text(cgroup)
    return folder / "proc"


def limit(folder: Path, of: str, limit_name: str, limit_bytes: str, used_name: str, used_bytes: int) -> None:
    path = folder / "cgroup" / of
    path.mkdir(parents=True, exist_ok=True)
    (path / limit_name).write_text(f"{limit_bytes}\n")
    (path / used_name).write_text(f"{used_bytes}\n")


def test_free_memory_is_read_from_meminfo(tmp_path: Path) -> None:
    proc = proc_of(tmp_path, "0::/\n")
    assert free_bytes(CPU, proc, tmp_path / "cgroup") == 4000 * 1024


@pytest.mark.parametrize(("own", "above", "wanted"), [("900000", "max", 600_000), ("max", "400000", 350_000)])
def test_limits_of_the_control_group_and_its_parents_apply(own: str, above: str, wanted: int, tmp_path: Path) -> None:
    proc = proc_of(tmp_path, "0::/jobs/this\n")
    limit(tmp_path, "jobs/this", "memory.max", own, "memory.current", 300_000)
    limit(tmp_path, "jobs", "memory.max", above, "memory.current", 50_000)
    assert free_bytes(CPU, proc, tmp_path / "cgroup") == wanted


def test_control_groups_of_version_1_are_read(tmp_path: Path) -> None:
    proc = proc_of(tmp_path, "5:cpu:/\n4:memory:/this\n")
    limit(tmp_path, "memory/this", "memory.limit_in_bytes", "700000", "memory.usage_in_bytes", 600_000)
    assert free_bytes(CPU, proc, tmp_path / "cgroup") == 100_000


def test_unknown_free_memory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got no MemAvailable"):
        free_bytes(CPU, tmp_path, tmp_path)
