from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.errors import DetectorError
from detector.models.checkpoint import load_training_state
from detector.structures.types import Batch, ClassBatch
from detector.tasks.detection_config import DetectionConfig
from detector.training.out_of_memory import memory_in_words
from detector.training.trainer import Trainer

Make = Callable[..., DetectionConfig]
CPU = torch.device("cpu")


def impossible() -> None:
    torch.empty(2**58, dtype=torch.float32)


def said_by(raise_it: Callable[[], object], batch_size: int = 16, accumulate: int = 1) -> str:
    with pytest.raises(DetectorError) as caught, memory_in_words(7, (batch_size, 3, 320, 640), accumulate, CPU):
        raise_it()
    assert caught.value.exit_code == 1
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_failed_cpu_allocation_names_the_batch_size_and_a_remedy() -> None:
    text = said_by(impossible, accumulate=2)
    assert "the memory of cpu does not hold training step 7" in text
    assert "loader.batch_size=16, images of 320 x 640 px, train.accumulate=2" in text
    assert f"{2**60} bytes more were requested" in text
    assert "start again with loader.batch_size=8 with train.accumulate=4, or a smaller input.size" in text


def test_batch_of_one_image_suggests_a_smaller_input_only() -> None:
    text = said_by(impossible, batch_size=1)
    assert "start again with a smaller input.size" in text
    assert "loader.batch_size=0" not in text


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity ..."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried ..."),
        MemoryError(),
    ],
)
def test_every_out_of_memory_error_is_recognised(error: Exception) -> None:
    def raise_it() -> None:
        raise error

    text = said_by(raise_it)
    assert ("2.00 GiB more were requested" in text) == isinstance(error, torch.cuda.OutOfMemoryError)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_are_raised_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_in_words(0, (1, 3, 32, 32), 1, CPU):
        raise error
    assert caught.value is error


def test_run_out_of_memory_ends_with_the_message_and_keeps_its_last_save(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Trainer._optimise

    def optimise(self: Trainer, group: list[Batch | ClassBatch]) -> None:
        if self.step == 4:
            impossible()
        whole(self, group)

    monkeypatch.setattr(Trainer, "_optimise", optimise)
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(experiment()), encoding="utf-8")
    assert run(["train", str(path)]) == 1
    error = capsys.readouterr().err
    assert "detector train: the memory of cpu does not hold training step 4 (loader.batch_size=4, " in error
    assert "Traceback" not in error
    assert load_training_state(tmp_path / "runs/train/weights/last.safetensors")["step"] == 3
    monkeypatch.setattr(Trainer, "_optimise", whole)
    assert run(["train", str(path), "--continue", "--quiet"]) == 0
    assert load_training_state(tmp_path / "runs/train/weights/last.safetensors")["step"] == 6
