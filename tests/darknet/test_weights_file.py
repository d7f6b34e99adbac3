"""Weights files: the layout of arrays, and errors for files that do not fit."""

from __future__ import annotations

import itertools
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from detector.darknet.cfg_file import parse_cfg, read_cfg
from detector.darknet.weights_file import WeightsHeader, num_weight_bytes, read_weights, weight_records
from detector.errors import DarknetError

NET = "[net]\nwidth=4\nheight=4\nchannels=2\n"
# Layer 0 has normalisation, 1 is grouped, 2 shares weights, 3 has no arrays, 4 is a weighted shortcut, 5 a matrix.
MIXED = (
    NET
    + "[convolutional]\nfilters=4\nsize=3\npad=1\nbatch_normalize=1\n"
    + "[convolutional]\nfilters=4\nsize=1\ngroups=2\n"
    + "[convolutional]\nfilters=4\nsize=1\ngroups=2\nshare_index=1\n"
    + "[maxpool]\nstride=1\nsize=1\n"
    + "[shortcut]\nfrom=0,1\nweights_type=per_channel\nweights_normalization=softmax\n"
    + "[connected]\noutput=3\nbatch_normalize=1\n"
)
NUM_VALUES = (4 + 4 * 3 + 4 * 2 * 9) + (4 + 4 * 2) + 3 * 4 + (3 + 3 * 64 + 3 * 3)


def network(text: str = MIXED):
    return parse_cfg(text, "n.cfg")


def body(num_values: int = NUM_VALUES, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).uniform(0, 1, num_values).astype("<f4").tobytes()


def written(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def refusal(path: Path, cfg=None, **keywords) -> str:
    with pytest.raises(DarknetError) as caught:
        read_weights(path, cfg or network(), **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "num_bytes"),
    [
        ((0, 0, 0), 16),
        ((0, 1, 0), 16),
        ((0, 1, 9), 16),
        ((0, 2, 0), 20),
        ((0, 2, 5), 20),
        ((1, 0, 0), 20),
        ((0, 1001, 0), 20),
    ],
)
def test_seen_has_32_bits_before_version_0_2_and_64_after(version, num_bytes):
    header = WeightsHeader(*version, seen=32_013_312)
    packed = header.pack()
    assert len(packed) == header.num_bytes == num_bytes
    assert packed == struct.pack("<iii", *version) + (32_013_312).to_bytes(num_bytes - 12, "little")
    assert WeightsHeader.unpack(packed + bytes(99), "f") == header


def test_new_file_has_version_0_2_5():
    assert WeightsHeader(seen=7).pack() == bytes.fromhex("00000000 02000000 05000000 07000000 00000000")


def test_count_that_does_not_fit_its_field_is_refused():
    with pytest.raises(DarknetError, match=r"does not fit a \.weights header"):
        WeightsHeader(0, 1, 0, seen=2**32).pack()
    with pytest.raises(DarknetError, match=r"does not fit a \.weights header"):
        WeightsHeader(seen=-1).pack()
    assert WeightsHeader.unpack(WeightsHeader(seen=2**64 - 1).pack(), "f").seen == 2**64 - 1


@pytest.mark.parametrize(
    "start",
    [
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        struct.pack("<iiiQ", -1, 2, 5, 0),
        b"\xff" * 20,
    ],
)
def test_other_file_is_recognised_by_its_version(tmp_path, start):
    assert "is not a .weights file: its header has version" in refusal(written(tmp_path / "w", start, body()))


@pytest.mark.parametrize("num_bytes", range(20))
def test_file_shorter_than_its_header_is_refused(tmp_path, num_bytes):
    message = refusal(written(tmp_path / "w", WeightsHeader().pack()[:num_bytes]))
    assert f"has {num_bytes} bytes" in message


# --- layout ----------------------------------------------------------------------------------------------------------


def test_records_are_in_darknets_order_without_gaps():
    records = weight_records(network())
    assert [(r.layer, r.name) for r in records] == [
        *((0, name) for name in ("biases", "scales", "rolling_mean", "rolling_variance", "weights")),
        *((1, name) for name in ("biases", "weights")),
        (4, "weights"),
        *((5, name) for name in ("biases", "weights", "scales", "rolling_mean", "rolling_variance")),
    ]
    assert records[0].offset == 0
    assert all(after.offset == before.end for before, after in itertools.pairwise(records))
    assert records[-1].end == NUM_VALUES
    assert records[4].shape == (4, 2, 3, 3)
    assert (records[4].line, records[4].section) == (5, "convolutional")


def test_length_of_complete_and_partial_files_follows_from_the_cfg():
    cfg = network()
    assert num_weight_bytes(cfg) == 20 + 4 * NUM_VALUES
    assert num_weight_bytes(cfg, header=WeightsHeader(0, 1)) == 16 + 4 * NUM_VALUES
    assert num_weight_bytes(cfg, 0) == 20
    assert [num_weight_bytes(cfg, n) for n in (1, 2, 3, 4)] == [20 + 4 * n for n in (88, 100, 100, 100)]


def test_dontload_layers_have_no_place_in_the_file():
    text = MIXED.replace("groups=2\n[", "groups=2\ndontload=1\n[", 1).replace("pad=1", "pad=1\ndontloadscales=1")
    records = weight_records(network(text))
    assert [(r.layer, r.name) for r in records][:3] == [(0, "biases"), (0, "weights"), (4, "weights")]
    assert records[2].offset == 4 + 72


# --- reading ---------------------------------------------------------------------------------------------------------


def test_arrays_hold_the_values_at_their_offsets(tmp_path):
    values = np.arange(NUM_VALUES, dtype="<f4")
    weights = read_weights(written(tmp_path / "w", WeightsHeader(seen=640).pack(), values.tobytes()), network())
    assert weights.header == WeightsHeader(0, 2, 5, 640)
    assert weights.num_layers_read == 6
    assert weights.missing == ()
    np.testing.assert_array_equal(weights.arrays[0, "biases"], [0, 1, 2, 3])
    np.testing.assert_array_equal(weights.arrays[0, "rolling_variance"], [12, 13, 14, 15])
    assert weights.arrays[0, "weights"][1, 1, 2, 0] == 16 + 1 * 18 + 1 * 9 + 2 * 3
    np.testing.assert_array_equal(weights.arrays[4, "weights"], 100 + np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(weights.arrays[5, "weights"], 115 + np.arange(192).reshape(3, 64))


def test_matrices_of_a_transposed_file_are_transposed(tmp_path):
    values = np.arange(NUM_VALUES, dtype="<f4")
    path = written(tmp_path / "w", WeightsHeader(0, 1001).pack(), values.tobytes())
    weights = read_weights(path, network())
    np.testing.assert_array_equal(weights.arrays[5, "weights"], 115 + np.arange(192).reshape(64, 3).T)
    np.testing.assert_array_equal(weights.arrays[0, "weights"].ravel(), 16 + np.arange(72))


def test_arrays_are_mapped_and_read_only(tmp_path):
    cfg = read_cfg("yolov3-tiny")
    path = tmp_path / "w"
    with open(path, "wb") as file:
        file.write(WeightsHeader().pack())
        file.truncate(num_weight_bytes(cfg))
    tracemalloc.start()
    try:
        weights = read_weights(path, cfg)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8_000_000 < num_weight_bytes(cfg) / 4
    array = weights.arrays[12, "weights"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (-4, "4 bytes too short: it ends in layer 5 ([connected] of line 26) rolling_variance, after 8 of 12 bytes"),
        (4, "4 bytes too long: its last array is layer 5 ([connected] of line 26) rolling_variance"),
        (-1, "1 byte too short: it ends in layer 5 ([connected] of line 26) rolling_variance, after 11 of 12 bytes"),
        (3, "3 bytes too long"),
        (-4 * NUM_VALUES + 1, "it ends in layer 0 ([convolutional] of line 5) biases, after 1 of 16 bytes"),
        (-4 * NUM_VALUES, "it ends with the header; it holds no layer"),
        (-4 * NUM_VALUES + 16, "it ends in layer 0 ([convolutional] of line 5) scales, after 0 of 16 bytes"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_error_for_a_file_of_another_length_has_both_lengths_and_its_end(tmp_path, num_bytes, expected, partial):
    data = WeightsHeader().pack() + body() + bytes(8)
    wanted = 20 + 4 * NUM_VALUES
    path = written(tmp_path / "w", data[: wanted + num_bytes])
    message = refusal(path, partial=partial)
    assert message.startswith(f"{path}: expected {wanted} bytes for n.cfg, got {wanted + num_bytes}, ")
    assert expected in message


@pytest.mark.parametrize("num_layers", [1, 2, 4, 5])
def test_partial_file_is_read_if_asked_for_and_missing_arrays_are_named(tmp_path, num_layers):
    cfg = network()
    data = (WeightsHeader().pack() + body())[: num_weight_bytes(cfg, num_layers)]
    path = written(tmp_path / "w", data)
    last = {1: 0, 2: 1, 4: 1, 5: 4}[num_layers]
    message = refusal(path, cfg)
    assert f"it ends after layer {last} ([" in message
    assert "use partial=True if it is meant to be a partial file" in message
    weights = read_weights(path, cfg, partial=True)
    assert weights.num_layers_read == last + 1
    assert {layer for layer, _ in weights.arrays} == {layer for layer in (0, 1, 4) if layer <= last}
    assert [r.layer for r in weights.missing] == [r.layer for r in weight_records(cfg) if r.layer > last]
    np.testing.assert_array_equal(weights.arrays[0, "biases"], np.frombuffer(data, "<f4", 4, 20))


def test_published_backbone_of_yolov4_tiny_has_the_layers_of_its_name(tmp_path):
    path = tmp_path / "yolov4-tiny.conv.29"
    with open(path, "wb") as file:
        file.write(WeightsHeader(seen=0).pack())
        file.truncate(19_789_716)
    weights = read_weights(path, read_cfg("yolov4-tiny"), partial=True)
    assert weights.num_layers_read == 29
    assert weights.missing[0].layer == 29


def test_arrays_of_dontload_layers_are_missing(tmp_path):
    text = MIXED.replace("output=3", "output=3\ndontload=1")
    weights = read_weights(written(tmp_path / "w", WeightsHeader().pack(), body(112)), network(text))
    assert weights.num_layers_read == 6
    assert {r.layer for r in weights.missing} == {5}


def test_file_of_a_network_without_arrays_is_a_header(tmp_path):
    cfg = network(NET + "[avgpool]\n")
    weights = read_weights(written(tmp_path / "w", WeightsHeader().pack()), cfg)
    assert (weights.arrays, weights.num_layers_read) == ({}, 1)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "1 values that are not finite"), (-np.inf, "1 values that are not finite")]
)
def test_values_that_are_not_finite_are_refused_with_their_layer(tmp_path, value, words):
    values = np.frombuffer(body(), "<f4").copy()
    values[100] = value
    message = refusal(written(tmp_path / "w", WeightsHeader().pack(), values.tobytes()))
    assert f"layer 4 ([shortcut] of line 22) weights holds {words}" in message


def test_negative_variances_are_refused(tmp_path):
    values = np.frombuffer(body(), "<f4").copy()
    values[[0, 4, 8]] = -1  # negative biases, scales and means are accepted
    path = written(tmp_path / "w", WeightsHeader().pack(), values.tobytes())
    read_weights(path, network())
    values[12] = -1e-9
    path = written(tmp_path / "w2", WeightsHeader().pack(), values.tobytes())
    assert "layer 0 ([convolutional] of line 5) rolling_variance holds negative variances" in refusal(path)


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "none")
    assert "is not a regular file" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / "\0")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "is not a regular file" in refusal(tmp_path / "pipe")
