from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.errors import CheckpointError
from detector.models.tensor_archive import Ignored, read_archive
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import SIZES, config_of_size, load_yolox_file, original_name, save_yolox_file
from detector.structures.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES


@pytest.fixture(scope="module")
def nano() -> Yolox:
    torch.manual_seed(0)
    return Yolox(config_of_size("nano"), 3)


@pytest.fixture(scope="module")
def state(nano: Yolox) -> dict[str, Tensor]:
    return {original_name(name): tensor.clone() for name, tensor in nano.state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(content: Any, **options: Any) -> Path:
        path = tmp_path / "yolox_nano.pth"
        torch.save(content, path, **options)
        return path

    return save


def test_written_file_has_the_same_bytes_in_every_tensor(nano, tmp_path):
    path = tmp_path / "nano.pth"
    save_yolox_file(path, nano)
    again = load_yolox_file(path)
    own = nano.state_dict()
    assert again.state.keys() == own.keys()
    assert all(again.state[name].numpy().tobytes() == own[name].numpy().tobytes() for name in own)
    assert again.class_names == ("0", "1", "2")
    # and the original code, which loads with torch, finds its own names
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"]
    assert {"backbone.backbone.stem.conv.conv.weight", "head.cls_preds.0.bias"} <= content["model"].keys()


def test_published_file_read_and_written_has_the_same_bytes(data_folder, tmp_path):
    given = data_folder / "yolox" / "yolox_nano.pth"
    file = load_yolox_file(given)
    assert (file.class_names, file.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    model = Yolox(config_of_size("nano"), 80)
    model.load_state_dict(file.state)
    save_yolox_file(tmp_path / "again.pth", model)
    before, after = (torch.load(p, weights_only=True)["model"] for p in (given, tmp_path / "again.pth"))
    assert before.keys() == after.keys()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)


def test_training_checkpoint_is_read_without_its_other_entries(saved, state, nano):
    content = {
        "start_epoch": 300,
        "model": OrderedDict(state),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "best_ap": np.float64(0.258),
        "curr_ap": np.float32(0.2),
        "history": np.arange(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    file = load_yolox_file(saved(content))
    assert all(torch.equal(tensor, nano.state_dict()[name]) for name, tensor in file.state.items())
    assert isinstance(read_archive(saved(content))["best_ap"], Ignored)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(saved, protocol):
    content = {
        "a": [1, -2, 2**40, 2.5, True, None, "text", b"bytes"],
        "t": torch.arange(6).reshape(2, 3).T,
        "u": (1, (2, 3, 4)),
    }
    found = read_archive(saved(content, pickle_protocol=protocol))
    assert torch.equal(found["t"], content["t"])
    assert found["u"] == content["u"]
    assert found["a"][:7] == content["a"][:7]


def test_tensors_that_share_a_storage_are_read(saved):
    base = torch.arange(10.0)
    found = read_archive(saved({"a": base[2:5], "b": base, "half": base.half(), "empty": torch.empty(0, 3)}))
    assert torch.equal(found["a"], base[2:5])
    assert torch.equal(found["b"], base)
    assert found["half"].dtype == torch.float16
    assert found["empty"].shape == (0, 3)


@pytest.mark.parametrize("size", SIZES)
def test_size_is_recognised_from_the_shapes(size, monkeypatch):
    monkeypatch.setattr(
        "detector.models.yolox_checkpoint.checked_model_file", lambda source, state, who: (source, state)
    )
    with torch.device("meta"):
        model = Yolox(config_of_size(size), 7)
    content = {"model": {original_name(name): tensor for name, tensor in model.state_dict().items()}}
    monkeypatch.setattr("detector.models.yolox_checkpoint.read_archive", lambda path: content)
    source, found = load_yolox_file(Path(__file__))
    assert source["config"]["input"]["size"] == SIZES[size][3]
    assert source["config"]["model"]["width"] == SIZES[size][1]
    assert found.keys() == model.state_dict().keys()


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_yolox_file(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_code_in_a_pickle_is_refused_and_not_run(saved, state, monkeypatch):
    path = saved({"model": state, "extra": Attack()})
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code of the file was run"))
    assert "asks for code (posix system)" in refused(path)


def test_truncated_file_is_refused(saved, state, tmp_path):
    whole = saved({"model": state}).read_bytes()
    for share in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:share])
        assert "download or copy it again" in refused(path)


def test_flipped_byte_is_refused(saved, state):
    path = saved({"model": state})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refused(path)


def test_old_format_is_refused_with_an_explanation(saved, state):
    path = saved({"model": state}, _use_new_zipfile_serialization=False)
    assert "old format" in refused(path)


@pytest.mark.parametrize("content", [{"weights": 1}, {"model": {"layer": torch.ones(2)}}, [1, 2], {"model": "text"}])
def test_foreign_content_is_refused(saved, content):
    assert "expected the weights of a YOLOX network" in refused(saved(content))


def test_missing_file_and_folder_are_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pth")


def test_other_zip_archive_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "text")
    assert "no archive of torch.save" in refused(path)


def test_heads_with_different_numbers_of_classes_are_refused(saved, state):
    wrong = {**state, "head.cls_preds.1.bias": torch.zeros(4)}
    assert "yolox-nano with 3 classes, got head.cls_preds.1.bias [4]" in refused(saved({"model": wrong}))


def test_unknown_size_is_refused(saved):
    odd = Yolox(Yolox.Config(depth=0.33, width=0.125), 2)
    path = saved({"model": {original_name(name): t for name, t in odd.state_dict().items()}})
    with pytest.raises(CheckpointError, match=r"expected one of the sizes nano, tiny, s, m, l, x, got .*width 0.125"):
        load_yolox_file(path)


def test_missing_and_unexpected_entries_are_named(saved, state):
    wrong = {name: t for name, t in state.items() if name != "backbone.C3_p3.conv1.bn.bias"} | {"extra": torch.ones(1)}
    text = refused(saved({"model": wrong}))
    assert "backbone.C3_p3.conv1.bn.bias missing" in text
    assert "extra unexpected" in text


def test_weights_that_are_not_finite_are_refused(saved, state):
    wrong = {**state, "head.obj_preds.0.bias": torch.tensor([float("nan")])}
    assert "not finite" in refused(saved({"model": wrong}))


@pytest.mark.parametrize("size", [(2**40,), (3, 2**60), (2,)])
def test_tensor_beyond_its_storage_is_refused(tmp_path, saved, size):
    """A few bytes must not claim more memory than the file has."""
    path = saved({"model": torch.ones(1)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    # The same archive with another shape in its pickle.
    tuple_of = b"\x85" if len(size) == 1 else b"\x86"
    shape = b"".join(b"\x8a\x09" + side.to_bytes(9, "little") for side in size) + tuple_of
    pkl = next(name for name in entries if name.endswith("data.pkl"))
    old = b"K\x01\x85q\x08K\x01\x85q\x09"
    assert old in entries[pkl]
    entries[pkl] = entries[pkl].replace(old, shape + b"q\x08" + b"K\x00" * len(size) + tuple_of + b"q\x09")
    forged = tmp_path / "forged.pth"
    with zipfile.ZipFile(forged, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "damaged" in refused(forged)


def test_random_damage_to_the_pickle_is_never_a_crash(tmp_path, saved):
    """Whatever the instructions are, the outcome is content or one sentence."""
    path = saved({"model": {"a": torch.ones(2, 3)}, "n": [1, (2, 3)], "s": "text"})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pkl = next(name for name in entries if name.endswith("data.pkl"))
    rng, sentences = np.random.default_rng(0), []
    for _ in range(300):
        damaged = bytearray(entries[pkl])
        for place in rng.integers(2, len(damaged), 3):
            damaged[place] = rng.integers(256)
        forged = tmp_path / "forged.pth"
        with zipfile.ZipFile(forged, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, bytes(damaged) if name == pkl else content)
        try:
            read_archive(forged)
        except CheckpointError as error:
            sentences.append(str(error))
    assert all(text.startswith(str(forged)) for text in sentences)


def test_levels_that_the_original_code_does_not_have_are_refused(tmp_path):
    model = Yolox(Yolox.Config(levels=(4, 8, 16, 32), width=0.125), 3)
    with pytest.raises(CheckpointError, match=r"expected the levels \[8, 16, 32\] of the original code, got \[4, 8"):
        save_yolox_file(tmp_path / "a.pth", model)
