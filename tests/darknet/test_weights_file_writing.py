"""Writing weights files: byte for byte what was read, and whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from detector.darknet.cfg_file import parse_cfg, read_cfg
from detector.darknet.weights_file import WeightsHeader, num_weight_bytes, read_weights, weight_records, write_weights
from detector.errors import DarknetError

TEXT = (
    "[net]\nwidth=4\nheight=4\nchannels=2\n"
    "[convolutional]\nfilters=4\nsize=3\npad=1\nbatch_normalize=1\n"
    "[shortcut]\nfrom=-1\nweights_type=per_feature\nweights_normalization=relu\n"
    "[connected]\noutput=3\nbatch_normalize=1\n"
)
NUM_VALUES = 88 + 2 + 3 + 192 + 9


@pytest.fixture
def cfg():
    return parse_cfg(TEXT, "n.cfg")


def random_arrays(cfg, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {(r.layer, r.name): rng.uniform(0, 1, r.shape).astype(np.float32) for r in weight_records(cfg)}


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5), (0, 1001, 0), (1001, 0, 3)])
def test_file_read_and_written_is_the_same_bytes(tmp_path, cfg, version):
    header = WeightsHeader(*version, seen=123_456)
    values = np.random.default_rng(0).uniform(0, 1, NUM_VALUES).astype("<f4")
    values[:3] = [-0.0, 1e-45, 3.4028235e38]  # minus zero, the smallest and the largest
    data = header.pack() + values.tobytes()
    (tmp_path / "a").write_bytes(data)
    weights = read_weights(tmp_path / "a", cfg)
    write_weights(tmp_path / "b", cfg, weights.arrays, header=weights.header)
    assert (tmp_path / "b").read_bytes() == data


def test_partial_file_read_and_written_is_the_same_bytes(tmp_path, cfg):
    data = WeightsHeader().pack() + np.ones(90, "<f4").tobytes()
    (tmp_path / "a").write_bytes(data)
    weights = read_weights(tmp_path / "a", cfg, partial=True)
    write_weights(tmp_path / "b", cfg, weights.arrays, num_layers=weights.num_layers_read)
    assert (tmp_path / "b").read_bytes() == data
    with pytest.raises(DarknetError, match=r"layer 2 \(\[connected\] of line 14\) biases is missing"):
        write_weights(tmp_path / "c", cfg, weights.arrays)


def test_file_can_be_overwritten_while_it_is_mapped(tmp_path, cfg):
    write_weights(tmp_path / "w", cfg, random_arrays(cfg))
    data = (tmp_path / "w").read_bytes()
    weights = read_weights(tmp_path / "w", cfg)
    write_weights(tmp_path / "w", cfg, weights.arrays)
    assert (tmp_path / "w").read_bytes() == data
    assert weights.arrays[0, "biases"].sum() > 0  # the old file is still mapped


def test_written_file_has_darknets_header_and_reads_back(tmp_path, cfg):
    arrays = random_arrays(cfg)
    write_weights(tmp_path / "w", cfg, arrays, header=WeightsHeader(seen=64_000))
    data = (tmp_path / "w").read_bytes()
    assert data[:20] == bytes.fromhex("00000000 02000000 05000000") + (64_000).to_bytes(8, "little")
    assert len(data) == num_weight_bytes(cfg)
    again = read_weights(tmp_path / "w", cfg)
    assert again.header.seen == 64_000
    for place, array in arrays.items():
        np.testing.assert_array_equal(again.arrays[place], array)


def test_arrays_of_any_memory_layout_are_written_in_order(tmp_path, cfg):
    arrays = random_arrays(cfg)
    write_weights(tmp_path / "a", cfg, arrays)
    write_weights(tmp_path / "b", cfg, {place: np.asfortranarray(array) for place, array in arrays.items()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({(0, "biases"): np.zeros(5, np.float32)}, "biases: expected float32 of shape (4,), got float32 of (5,)"),
        ({(0, "biases"): np.zeros(4)}, "biases: expected float32 of shape (4,), got float64 of (4,)"),
        ({(0, "biases"): np.full(4, np.nan, np.float32)}, "biases holds 4 values that are not finite"),
        ({(0, "rolling_variance"): np.full(4, -1, np.float32)}, "rolling_variance holds negative variances"),
        ({(1, "biases"): np.zeros(4, np.float32)}, "the array (1, 'biases') does not belong to"),
        ({(9, "weights"): np.zeros(4, np.float32)}, "the array (9, 'weights') does not belong to"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_an_old_file_stays(tmp_path, cfg, change, expected):
    (tmp_path / "w").write_bytes(b"old")
    with pytest.raises(DarknetError) as caught:
        write_weights(tmp_path / "w", cfg, {**random_arrays(cfg), **change})
    assert expected in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert (tmp_path / "w").read_bytes() == b"old"


def test_missing_folder_is_an_error_and_nothing_is_left_behind(tmp_path, cfg):
    with pytest.raises(DarknetError, match=r"cannot be written \(No such file or directory\)"):
        write_weights(tmp_path / "none" / "w", cfg, random_arrays(cfg))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DarknetError, match="cannot be written"):
        write_weights(tmp_path / "folder", cfg, random_arrays(cfg))
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_full_disk_leaves_the_old_file(tmp_path, cfg, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "w").write_bytes(b"old")
    monkeypatch.setattr("detector.io.files.os.fsync", full)
    with pytest.raises(DarknetError, match=r"cannot be written \(No space left on device\); an old file is unchanged"):
        write_weights(tmp_path / "w", cfg, random_arrays(cfg))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("w", b"old")]


@pytest.mark.parametrize("key", ["dontload", "dontloadscales"])
def test_network_with_dontload_is_refused(tmp_path, cfg, key):
    layers = (dataclasses.replace(cfg.layers[0], **{key: True}), *cfg.layers[1:])
    cfg = dataclasses.replace(cfg, layers=layers)
    with pytest.raises(DarknetError, match=rf"n\.cfg:5: \[convolutional\] {key}=1 makes Darknet skip"):
        write_weights(tmp_path / "w", cfg, {})


@pytest.mark.nightly
def test_files_of_every_released_network_are_read_and_written_unchanged(tmp_path, released_cfgs: Path):
    num_networks = 0
    for path in sorted(released_cfgs.glob("*.cfg")):
        try:
            cfg = read_cfg(path)
        except DarknetError:
            continue
        num_networks += 1
        write_weights(tmp_path / "a", cfg, random_arrays(cfg), header=WeightsHeader(seen=num_networks))
        weights = read_weights(tmp_path / "a", cfg)
        write_weights(tmp_path / "b", cfg, weights.arrays, header=weights.header)
        assert (tmp_path / "a").stat().st_size == num_weight_bytes(cfg)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes(), path.name
    assert num_networks == 25
