from __future__ import annotations

from pathlib import Path

import pytest

from detector.training.run_folder import RunFolder


def test_each_run_gets_its_own_folder(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path / "runs", "train").path.name for _ in range(3)]
    assert names == ["train", "train2", "train3"]


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["weights"],
        ["weights", "config.yaml", "train_batch0.jpg", "weights/.last.safetensors.0" + "a" * 31 + ".tmp"],
    ],
)
def test_folder_of_a_run_without_a_save_is_reused(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        path = tmp_path / "train" / name
        path.mkdir(parents=True) if name == "weights" else path.write_text("x", encoding="utf-8")
    (tmp_path / "train").mkdir(exist_ok=True)
    folder = RunFolder.create(tmp_path, "train", reuse=True)
    assert folder.path == tmp_path / "train"
    assert list(folder.last.parent.iterdir()) == []
    assert RunFolder.create(tmp_path, "train").path == tmp_path / "train2"


@pytest.mark.parametrize("left", ["weights/last.safetensors", "weights/best.safetensors", "photo.jpg"])
def test_folder_with_a_save_or_foreign_files_is_not_reused(tmp_path: Path, left: str) -> None:
    path = tmp_path / "train" / left
    path.parent.mkdir(parents=True)
    path.write_text("x", encoding="utf-8")
    assert RunFolder.create(tmp_path, "train", reuse=True).path == tmp_path / "train2"
    assert path.read_text("utf-8") == "x"
