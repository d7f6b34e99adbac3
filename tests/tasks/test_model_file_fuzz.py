"""Mutated model files, training states and exports: a model or a `DetectorError`, in bounded time and memory."""

from __future__ import annotations

import copy
import json
import random
import struct
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from detector.config.schema import config_to_plain
from detector.errors import DetectorError
from detector.export.export_config import ExportSettings
from detector.export.metadata import Description
from detector.io.zip_entries import pack, read_entries
from detector.models import checkpoint
from detector.models.checkpoint import ModelFile, load_training_state, save_model, save_training_state
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import config_of_size, save_yolox_file
from detector.tasks.detection_model import build_model, load_detection, load_model, read_file
from detector.workflows.export import export_model

EXPORTS = {"torchscript": "torch", "pt2": "torch", "onnx": "onnxscript", "openvino": "openvino"}  # target: library
Bounded = Callable[[], AbstractContextManager[None]]
Mutation = Callable[[bytes, random.Random], bytes]
VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 2, 7, 0.5, 1e300, 2**31, 2**53, 2**63, 2**64, 10**400, float("nan"), float("inf")),
    *("", "x", "7", "x" * 300, "../x", "\ud800", "F32", "U8", [], {}, [1], [0], [2**40, 2**40], [None] * 4, [[[[]]]]),
    *({"id": 3}, {"tensor": "x", "order": [0]}, {"mapping": [[1, 2]]}, {"tuple": [1]}, {"name": "darknet", "cfg": "x"}),
]


def changed(document: Any, generator: random.Random) -> Any:
    """Return a copy of plain data with one to three of its values, at any depth, replaced, dropped or doubled."""
    document = copy.deepcopy(document)
    for _ in range(generator.randint(1, 3)):
        parent: Any = None
        key: Any = None
        value = document
        while isinstance(value, (dict, list)) and value and (parent is None or generator.random() < 0.8):
            parent = value
            key = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
            value = parent[key]
        if parent is None:
            return copy.deepcopy(generator.choice(VALUES))
        kind = generator.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.append(value)
        elif kind == 2 and isinstance(parent, dict):
            parent[generator.choice(("x", "name", *document))] = value
        elif kind == 3 and isinstance(value, (int, float)):
            parent[key] = value * generator.choice((-1, 0, 2, 1000, 10**9))
        else:
            parent[key] = copy.deepcopy(generator.choice(VALUES))
    return document


def flipped(content: bytes, generator: random.Random) -> bytes:
    """Return bytes with some of them changed, left out or doubled, half of the time near the start."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(max(1, min(len(data), 4096) if generator.random() < 0.5 else len(data)))
        kind = generator.randrange(5)
        if kind == 0 and data:
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[at : at + 4] = generator.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x80\xff\xff\xff"))
        elif kind == 2:
            del data[at : at + generator.randint(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + generator.randint(1, 64)]
        elif generator.random() < 0.3:
            del data[at + 1 :]
    return bytes(data)


def with_header(content: bytes, generator: random.Random) -> bytes:
    """Return a safetensors file with another header, such as larger tensors, before the same tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(changed(json.loads(content[8 : 8 + length]), generator)).encode("utf-8", "surrogatepass")
    claimed = len(header) if generator.random() < 0.9 else generator.choice((0, 1, 2**31, 2**40, 2**63))
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def with_document(content: bytes, generator: random.Random) -> bytes:
    """Return a file of this project with another description, under the digest that vouches for it."""
    tensors = safetensors.torch.load(content)
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    key = next(key for key in metadata if key.startswith("detector"))
    document = json.dumps(changed(json.loads(metadata[key]), generator))
    return safetensors.torch.save(tensors, {key: document, "sha256": checkpoint._digest(document, tensors)})


def with_entry(content: bytes, generator: random.Random) -> bytes:
    """Return an archive with one entry changed or left out, under the right checksums."""
    entries = read_entries(content, may_compress=True, max_extra_bytes=2**26)
    name = generator.choice([name for name in entries if entries[name]])
    if generator.random() < 0.9:
        entries[name] = flipped(entries[name], generator)
    else:
        del entries[name]
    return pack(entries).getvalue()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a small model file and training state of each format by name."""
    root = tmp_path_factory.mktemp("seeds")
    config = load_detection("mish-n", ["model.width=0.0625", "model.depth=0.33", "input.size=64", "device=cpu"])
    torch.manual_seed(0)
    model = build_model(config, 2)
    state: dict[str, Tensor] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, names, ids = config_to_plain(config), ("ball", "box"), (1, 2)
    save_model(root / "x.safetensors", ModelFile(plain, names, ids, state, {"AP": 0.5}))
    run: dict[str, object] = {"config": plain, "class_names": list(names), "category_ids": list(ids), "metrics": {}}
    few = dict(list(state.items())[:20])  # loading takes time for each tensor, whatever its size
    run |= {"model": few, "ema": few, "optimizer": {"state": {0: {"step": 1}}}, "random": [torch.zeros(8)]}
    save_training_state(root / "last.safetensors", run)
    torch.save({**run, "format_version": 1}, root / "last.pt")
    save_yolox_file(root / "x.pth", Yolox(config_of_size("nano"), 2))
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


@pytest.fixture(scope="module")
def exports(seeds: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return an export of each format by name."""
    root = tmp_path_factory.mktemp("exports")
    source = root / "x.safetensors"
    source.write_bytes(seeds[source.name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model(source)
        for target, library in EXPORTS.items():
            pytest.importorskip(library)
            export_model(loaded, root / f"x.{'xml' if target == 'openvino' else target}", ExportSettings(target))
    source.unlink()
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def mutations(name: str, content: bytes) -> tuple[Mutation, ...]:
    """Return the mutations of a file in turn; half of the files stay sound for the parser around what was changed."""
    if name.endswith(".safetensors"):
        return with_document, flipped, with_header
    return (with_entry, flipped) if content.startswith(b"PK") else (flipped,)


def fuzz(seeds: dict[str, bytes], num: int, folder: Path, bounded: Bounded) -> int:
    """Read mutated files and build every fourth model; return how many were read."""
    generator = random.Random(num)
    for name, content in seeds.items():
        (folder / name).write_bytes(content)
    kinds = [name for name in seeds if not name.endswith(".bin")]  # OpenVINO's weights lie beside its .xml
    num_read, failures = 0, []
    for number in range(num):
        name = kinds[number % len(kinds)]
        path = folder / name
        read: Callable[[Path], object] = load_model if generator.random() < 0.25 else read_file
        read = load_training_state if name.startswith("last") else read
        turns = mutations(name, seeds[name])
        path.write_bytes(turns[number // len(kinds) % len(turns)](seeds[name], generator))
        try:
            with bounded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
            num_read += 1
        except DetectorError as error:
            if not 0 < len(str(error)) < 20_000:
                failures.append(f"input {number}, {name}: {len(str(error))} characters")
        except BaseException as error:
            failures.append(f"input {number}, {name}: {error!r:.300}")
        path.write_bytes(seeds[name])
    assert not failures, "\n".join(failures[:20])
    return num_read


@pytest.mark.parametrize("num", [24, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_mutated_model_files_give_a_model_or_an_error(
    num: int, seeds: dict[str, bytes], tmp_path: Path, bounded: Bounded
) -> None:
    assert fuzz(seeds, num, tmp_path, bounded) > 0


@pytest.mark.nightly
def test_mutated_exports_give_a_model_or_an_error(exports: dict[str, bytes], tmp_path: Path, bounded: Bounded) -> None:
    fuzz(exports, 10_000, tmp_path, bounded)


@pytest.mark.parametrize("num", [200, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_mutated_descriptions_of_exports_are_read_or_refused(
    num: int, seeds: dict[str, bytes], bounded: Bounded
) -> None:
    content = seeds["x.safetensors"]
    (length,) = struct.unpack("<Q", content[:8])
    document = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["detector"])
    document["export"] = {"target": "onnx", "precision": "fp32", "max_stride": 32, "channels": 3, "dtype": "uint8"}
    document["export"] |= {"canvas_hw": [64, 64], "nms": {"confidence": 0.3}, "written": {"opset": 18}}
    generator, num_read = random.Random(num), 0
    for _ in range(num):
        text = json.dumps(changed(document, generator))
        try:
            with bounded():
                Description.of_json(text, "x.onnx")
            num_read += 1
        except DetectorError:
            pass
    assert 0.05 * num < num_read < num
