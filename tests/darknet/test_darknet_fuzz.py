"""Mutated .cfg and .weights files: the result is a network or a `DarknetError`, in bounded time and memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from detector.config.nodes import presets_dir
from detector.darknet.cfg_file import dump_cfg, parse_cfg, read_cfg
from detector.darknet.layer_shapes import MAX_PARAMETERS, infer_shapes
from detector.darknet.weights_file import WeightsHeader, num_weight_bytes, read_weights, write_weights
from detector.errors import DarknetError

EVERY_LAYER = b"""[net]
batch=8
subdivisions=2
width=32
height=32
channels=3
policy=steps
steps=10,20
scales=.1,.1

[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=mish

[convolutional]
filters=8
size=3
pad=1
groups=2
activation=leaky

[maxpool]
size=2
stride=2

[upsample]
stride=2

[shortcut]
from=-3,-4
weights_type=per_channel
weights_normalization=softmax

[route]
layers=-1,0
groups=2
group_id=1

[avgpool]

[scale_channels]
from=-2

[sam]
from=-1

[reorg3d]
stride=2

[convolutional]
filters=12
activation=linear

[yolo]
mask=1,2
anchors=10,14, 23,27, 37,58
classes=1
num=3
scale_x_y=1.05
"""
SEEDS = [EVERY_LAYER, EVERY_LAYER, (presets_dir() / "darknet" / "yolov4-tiny.cfg").read_bytes()]
PIECES = [
    *(
        b"[net]\n",
        b"[route]\nlayers=-1\n",
        b"[crnn]\n",
        b"[convolutional]\n",
        b"[maxpool]\nstride=2\n",
        b"[",
        b"]",
        b"=",
    ),
    *(
        b"filters=2000000000\n",
        b"size=9\n",
        b"stride=2\n",
        b"groups=3\n",
        b"layers=-999\n",
        b"from=99\n",
        b"num=999999\n",
    ),
    *(b"width=1000000\n", b"antialiasing=1\n", b"dilation=2\n", b"share_index=-1\n", b"padding=7\n", b"dontload=1\n"),
    *(
        b"-1",
        b"0",
        b"1e9",
        b"9" * 600,
        b"nan",
        b".5",
        b",",
        b",,",
        b" ",
        b"\t",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(b"#", b";", b"\n\n", b"key=value\n", b"activation=swish\n", b"activation=silu\n", b"xnor=1\n", b"classes=80\n"),
]


def mutated(rng: random.Random, seed: bytes) -> bytes:
    """Change a file one to three times: insert, delete, repeat or swap a line or piece, or change a number."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = bytes(data).splitlines(keepends=True) or [b""]
        at = rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, rng.choice(lines))
            case 2:
                lines.insert(at, rng.choice(PIECES))
            case 3:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 4 | 5:
                key, separator, _ = lines[at].partition(b"=")
                lines[at] = key + separator + str(rng.choice((-4, -1, 0, 1, 2, 3, 4, 16, 64, 10**6))).encode() + b"\n"
            case 6:
                place = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:place] + rng.choice(PIECES) + lines[at][place:]
            case 7 if rng.random() < 0.3:
                lines = lines[:at]
        data = bytearray(b"".join(lines))
        if data and rng.random() < 0.1:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def mutated_weights(rng: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    match rng.randrange(7):
        case 0:
            del data[rng.randrange(len(data)) :]
        case 1:
            del data[len(data) - 4 * rng.randrange(1, 300) :]
        case 2:
            data += rng.randbytes(rng.randrange(1, 64))
        case 3:
            data[:20] = rng.randbytes(20)
        case 4:
            data[:12] = struct.pack("<iii", *(rng.choice((0, 1, 2, 5, 999, 1001, -1, 2**31 - 1)) for _ in range(3)))
        case 5:
            place = rng.randrange(20, len(data) - 4)
            data[place : place + 4] = rng.randbytes(4)
        case 6:
            for _ in range(rng.randrange(1, 9)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


class Measured:
    """Processor time and, of every eighth, the peak of memory that a piece of work takes."""

    def __init__(self, allowed_bytes: int) -> None:
        self.worst_seconds, self._allowed_bytes, self._count = 0.0, allowed_bytes, 0

    def __enter__(self) -> None:
        self._count += 1
        if self._count % 8 == 0:
            tracemalloc.start()
        self._begun = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.worst_seconds = max(self.worst_seconds, time.process_time() - self._begun)
        if self._count % 8 == 0:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak_bytes < self._allowed_bytes


def cfg_inputs(num_inputs: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(num_inputs):
        yield mutated(rng, rng.choice(SEEDS))


def fuzz_cfgs(num_inputs: int, seed: int, tmp_path: Path) -> None:
    num_parsed = num_shaped = 0
    refusals: list[str] = []
    # The largest input has a few kB; a network of 2e9 filters would need GB.
    measured = Measured(allowed_bytes=3_000_000)
    whole = parse_cfg(EVERY_LAYER.decode(), "seed")
    weights_path = tmp_path / "w"
    weights_path.write_bytes(WeightsHeader().pack() + np.ones(num_weight_bytes(whole) // 4 - 5, "<f4").tobytes())
    for data in cfg_inputs(num_inputs, seed):
        try:
            with measured:
                cfg = parse_cfg(data.decode("utf-8", "replace"), "f.cfg")
        except DarknetError as error:
            refusals.append(str(error))
            continue
        num_parsed += 1
        assert parse_cfg(dump_cfg(cfg), "again") == cfg, data
        try:
            with measured:
                shapes = infer_shapes(cfg)
                num_shaped += 1
                assert len(shapes) == len(cfg.layers)
                assert sum(shape.num_parameters for shape in shapes) <= MAX_PARAMETERS
                read_weights(weights_path, cfg, partial=True)
        except DarknetError as error:
            refusals.append(str(error))
    places = ("f.cfg:", f"{weights_path}: ", f"{weights_path} has ", "and ")
    assert all(line.startswith(places) for refusal in refusals for line in refusal.split("\n"))
    assert num_parsed >= 0.2 * num_inputs, num_parsed
    assert num_shaped >= 0.1 * num_inputs, num_shaped
    assert num_parsed < num_inputs
    assert measured.worst_seconds < 2


def fuzz_weights(num_inputs: int, seed: int, tmp_path: Path) -> None:
    cfg = parse_cfg(EVERY_LAYER.decode(), "seed.cfg")
    rng = random.Random(seed)
    start = np.random.default_rng(0).uniform(0, 1, num_weight_bytes(cfg) // 4 - 5).astype("<f4").tobytes()
    seeds = [WeightsHeader(seen=640).pack() + start, WeightsHeader(0, 1, 0, 640).pack() + start]
    path, again = tmp_path / "f", tmp_path / "again"
    num_past_header = num_read = 0
    refusals: list[str] = []
    measured = Measured(allowed_bytes=1_000_000)
    for _ in range(num_inputs):
        data = mutated_weights(rng, rng.choice(seeds))
        path.write_bytes(data)
        partial = rng.random() < 0.5
        try:
            WeightsHeader.unpack(data[:20], path)
            num_past_header += 1
        except DarknetError:
            pass
        try:
            with measured:
                weights = read_weights(path, cfg, partial=partial)
        except DarknetError as error:
            refusals.append(str(error))
            continue
        num_read += 1
        assert sum(array.nbytes for array in weights.arrays.values()) == len(data) - weights.header.num_bytes
        if num_read % 10 == 0:
            num_layers = weights.num_layers_read if partial else None
            write_weights(again, cfg, weights.arrays, header=weights.header, num_layers=num_layers)
            assert again.read_bytes() == data
    assert all(refusal.startswith(str(path)) and "\n" not in refusal for refusal in refusals)
    assert num_past_header >= 0.2 * num_inputs, num_past_header
    assert num_read >= 0.1 * num_inputs, num_read
    assert num_read < num_inputs
    assert measured.worst_seconds < 2


def test_mutated_cfg_files_give_a_network_or_an_error(tmp_path):
    fuzz_cfgs(300, 1, tmp_path)


def test_mutated_weights_files_give_arrays_or_an_error(tmp_path):
    fuzz_weights(1_000, 1, tmp_path)


@pytest.mark.nightly
def test_fifty_thousand_mutated_cfg_files_give_a_network_or_an_error(tmp_path):
    fuzz_cfgs(50_000, 2, tmp_path)


@pytest.mark.nightly
def test_fifty_thousand_mutated_weights_files_give_arrays_or_an_error(tmp_path):
    fuzz_weights(50_000, 2, tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(seed, tmp_path):
    data = random.Random(seed).randbytes(4096)
    for name in ("x.cfg", "x.weights"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DarknetError):
        read_cfg(tmp_path / "x.cfg")
    with pytest.raises(DarknetError):
        read_weights(tmp_path / "x.weights", parse_cfg(EVERY_LAYER.decode(), "seed"))
