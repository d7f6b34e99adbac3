"""Tests of the start from drawn pictures: its file, its name and its origin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from detector.data.drawn_pictures import CLASS_NAMES, GENERATOR_VERSION
from detector.errors import CheckpointError
from detector.models.checkpoint import ModelFile, load_model_file, save_model
from detector.models.published_weights import DRAWN_START, resolve_weights
from detector.tasks.detection_model import build_model, load_detection
from detector.workflows.starting_weights import load_matching, read_start

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import pretrain

NAMES = ("ellipse", "triangle")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    config = load_detection("pretrain")
    torch.manual_seed(0)
    state = build_model(config, len(NAMES)).state_dict()
    sections: dict[str, object] = {"model": {"name": "yolo"}, "data": {"root": "/home/somebody"}, "train": {}}
    save_model(tmp_path / "run/weights/best.safetensors", ModelFile(sections, NAMES, (1, 2), state))
    return tmp_path / "run"


@pytest.fixture
def written(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of the start in `weights/` of the working directory."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "weights" / f"{DRAWN_START}.safetensors"
    assert pretrain.main(["--run", str(run_folder), "--to", str(target)]) == 0
    return target


def test_written_file_is_small_halved_and_names_no_folder(written: Path, run_folder: Path) -> None:
    file, whole = load_model_file(written), load_model_file(run_folder / "weights/best.safetensors")
    assert written.stat().st_size <= 5_000_000
    assert set(file.config) == {"model"}
    assert {"source", "licence", "trained_on"} <= file.provenance.keys()
    for name, tensor in whole.state.items():
        assert torch.equal(file.state[name], tensor.half() if tensor.dtype == torch.float32 else tensor)


def test_start_is_found_by_its_name_and_loaded_as_float32(written: Path, run_folder: Path) -> None:
    assert resolve_weights(Path(DRAWN_START)).resolve() == written
    config = load_detection("mish-n", [f"train.weights={DRAWN_START}"])
    model = build_model(config, 3)
    taken = load_matching(model, read_start(Path(DRAWN_START), config), ("a", "b", "c"))
    assert taken.share > 0.99
    expected = load_model_file(run_folder / "weights/best.safetensors").state
    own = dict(model.named_parameters())
    assert {parameter.dtype for parameter in own.values()} == {torch.float32}
    name = next(name for name in own if name.startswith("backbone"))
    assert torch.equal(own[name], expected[name].half().float())


def test_shipped_start_fits_the_recipe_and_names_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = resolve_weights(Path(DRAWN_START))
    assert shipped == pretrain.TARGET
    assert shipped.stat().st_size <= pretrain.MAX_BYTES
    file = load_model_file(shipped)
    assert file.provenance["licence"] == "Apache-2.0"
    assert f"version {GENERATOR_VERSION} of the generator; no photographs" in file.provenance["trained_on"]
    assert file.class_names == CLASS_NAMES
    config = load_detection("mish-n", [f"train.weights={DRAWN_START}"])
    model = build_model(config, 3)
    assert load_matching(model, read_start(Path(DRAWN_START), config), ("a", "b", "c")).share > 0.99
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_folder_of_the_name_of_the_start_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DRAWN_START).mkdir()
    assert resolve_weights(Path(DRAWN_START)) == Path(DRAWN_START)


def test_misspelt_name_of_the_start_is_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="did you mean 'mish-n-drawn'"):
        resolve_weights(Path("mish-n-drawm"))
