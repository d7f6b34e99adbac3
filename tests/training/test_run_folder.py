from __future__ import annotations

from pathlib import Path

import pytest

from detector.training.run_folder import RunFolder, removed_if_empty, results_folder


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


def test_new_folder_for_results_is_removed_at_an_error_unless_it_holds_files(tmp_path: Path) -> None:
    made = [results_folder(None, "val", tmp_path), results_folder(None, "val", tmp_path)]
    (made[1] / "results.json").write_text("[]", encoding="utf-8")
    given = results_folder(tmp_path / "given", "val")
    for folder, asked in ((made[0], None), (made[1], None), (given, given)):
        with pytest.raises(ValueError, match="stop"), removed_if_empty(folder, asked):
            raise ValueError("stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "val2"]
    with removed_if_empty(results_folder(None, "val", tmp_path), None):
        pass
    assert (tmp_path / "val").is_dir()
