from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.errors import CheckpointError
from detector.models import published_weights as published
from detector.models.checkpoint import ModelFile, load_model_file
from detector.models.published_weights import (
    DEFAULT_MODEL,
    is_published,
    model_sha256,
    published_file,
    published_weights,
    require_network,
    resolve_weights,
    with_origin,
)
from detector.models.unfolding import is_folded
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import SIZES, config_of_size, plain_model
from detector.structures.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from detector.structures.selection import SelectConfig, select
from detector.tasks.detection_model import is_model_name

ROOT = Path(__file__).parents[2]
# best labels, their scores, and the first box on a drawn canvas
STORED_LABELS, STORED_SCORES = [56, 73, 73], [4.83141e-4, 1.88205e-4, 1.56652e-4]
STORED_BOX = [4.796848, 18.676811, 83.525238, 93.147758]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def nano() -> ModelFile:
    return load_model_file(ROOT / "weights" / "yolox-nano.safetensors")


def test_index_lists_the_six_sizes_with_licence_and_figures():
    entries = {name: entry for name, entry in published_weights().items() if entry.is_yolox}
    assert set(entries) == {f"yolox-{size}" for size in SIZES}
    for entry in entries.values():
        assert entry.licence.startswith("Apache-2.0")
        assert entry.test_set == "COCO val2017"
        assert entry.trained_on == "COCO train2017"
        assert entry.ap is not None


def test_shipped_weights_are_the_default_and_are_described(nano):
    assert published_file(DEFAULT_MODEL) == ROOT / "weights" / "yolox-nano.safetensors"
    assert nano.class_names == COCO_CLASS_NAMES
    assert nano.category_ids == COCO_CATEGORY_IDS
    assert nano.provenance["licence"].startswith("Apache-2.0")
    assert {"source", "trained_on", "changes"} <= nano.provenance.keys()
    assert "Apache License" in (ROOT / "weights" / "yolox-nano.LICENSE").read_text("utf-8")
    assert not {"train", "data", "loader"} & nano.config.keys()  # no folders of the machine that wrote it


def test_shipped_weights_have_batch_norm_that_can_be_trained(nano):
    model = Yolox(config_of_size("nano"), 80)
    model.load_state_dict(nano.state)
    assert not is_folded(model)


def test_shipped_weights_give_the_stored_numbers(nano):
    """The twin of the comparison with the original code that needs no outside data: a drawn canvas, float64."""
    model = Yolox(config_of_size("nano"), 80).double().eval()
    model.load_state_dict(nano.state)
    canvas = torch.full((1, 3, 96, 96), 114, dtype=torch.uint8)
    canvas[:, 0, 20:70, 30:60] = 230
    canvas[:, 1, 40:90, 10:80] = 60
    with torch.no_grad():
        boxes, scores = model.decode(model(canvas))
    best = select(boxes[0], scores[0], SelectConfig(0.0, 0.65, 3, best_class=True))
    assert best[2].tolist() == STORED_LABELS
    assert best[1].tolist() == pytest.approx(STORED_SCORES, rel=1e-3)
    assert best[0][0].tolist() == pytest.approx(STORED_BOX, abs=0.02)


def test_file_in_the_working_directory_comes_before_the_shipped_one_and_the_cache_last(elsewhere):
    assert published_file("yolox-s") is None
    in_cache = elsewhere / "cache" / "detector" / "weights" / "yolox_s.pth"
    in_cache.parent.mkdir(parents=True)
    in_cache.write_bytes(b"x")
    assert published_file("yolox-s") == in_cache
    own = elsewhere / "weights" / "yolox_s.pth"
    own.parent.mkdir()
    own.write_bytes(b"x")
    assert published_file("yolox-s") == Path("weights/yolox_s.pth")


@pytest.mark.parametrize("name", ["yolox-x", "yolov4-tiny", "yolov4.conv.137"])
def test_missing_weights_name_the_command_that_fetches_them(name):
    with pytest.raises(CheckpointError, match=f"`detector download {name}` fetches them"):
        resolve_weights(Path(name))


def test_unknown_name_gives_the_nearest_one():
    with pytest.raises(CheckpointError, match=r"did you mean 'yolox-s'\?"):
        resolve_weights(Path("yolo-s"))


def test_existing_file_of_a_published_name_is_that_file(elsewhere):
    (elsewhere / "yolox-s").write_bytes(b"x")
    assert not is_published("yolox-s")
    assert resolve_weights(Path("yolox-s")) == Path("yolox-s")


def test_darknet_file_of_a_published_name_gets_names_and_provenance():
    numbers = tuple(map(str, range(80)))
    file = with_origin(ModelFile({}, numbers, tuple(range(80)), {}), Path("yolov4-tiny.weights"))
    assert file.class_names == COCO_CLASS_NAMES
    assert file.provenance["source"].endswith("yolov4-tiny.weights")
    named = with_origin(ModelFile({}, ("a", "b"), (0, 1), {}), Path("own.weights"))
    assert named.class_names == ("a", "b")
    assert named.provenance == {"source": "own.weights"}


def test_file_of_another_size_is_refused():
    entry = published_weights()["yolox-s"]
    other = ModelFile({"model": plain_model(config_of_size("m"))}, COCO_CLASS_NAMES, COCO_CATEGORY_IDS, {})
    with pytest.raises(CheckpointError, match="expected the weights of yolox-s with 80 classes, got yolox-m"):
        require_network(entry, other)
    require_network(published.published_weights()["yolox-m"], other)


def test_run_folder_stands_for_its_best_weights_or_the_last_ones(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    assert resolve_weights(tmp_path) == tmp_path  # the error names the folder that was given
    for name in ("last.pt", "last.safetensors", "best.safetensors"):
        (folder / name).write_bytes(b"x")
        assert resolve_weights(tmp_path) == folder / name
        assert is_model_name(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "a/" * 3000 + "x.pt", "a\0b.pt"])
def test_path_that_no_file_can_have_is_returned_as_it_is(name):
    assert resolve_weights(Path(name)) == Path(name)


def test_hash_of_an_openvino_graph_includes_its_weights(tmp_path: Path) -> None:
    graph, weights = tmp_path / "model.xml", tmp_path / "model.bin"
    graph.write_text("<net/>")
    weights.write_bytes(b"1")
    before = model_sha256(graph), model_sha256(tmp_path)
    weights.write_bytes(b"2")
    assert not set(before) & {model_sha256(graph), model_sha256(tmp_path)}
