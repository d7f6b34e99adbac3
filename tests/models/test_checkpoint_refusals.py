"""Files that are damaged, malicious or of another project: refused in one sentence, without running their code."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from detector.errors import CheckpointError
from detector.models import checkpoint
from detector.models.checkpoint import (
    FORMAT_VERSION,
    ModelFile,
    load_model_file,
    load_state,
    load_training_state,
    save_model,
    save_training_state,
)

WEIGHTS = {
    "0.bias": torch.arange(4.0) + 0.5,
    "1.weight": torch.ones(2, 3, dtype=torch.float16),
    "step": torch.tensor(9),
}
DESCRIPTION: dict[str, Any] = {"config": {"lr": 0.01}, "class_names": ["cat", "dog"], "category_ids": [3, 90]}


def training_state(**changes: Any) -> dict[str, Any]:
    return {**DESCRIPTION, "metrics": {"AP": 0.25}, "model": WEIGHTS, "ema": WEIGHTS, "step": 7, **changes}


@pytest.fixture
def best(tmp_path: Path) -> Path:
    save_model(tmp_path / "weights" / "best.safetensors", ModelFile(**DESCRIPTION, state=WEIGHTS))
    return tmp_path / "weights" / "best.safetensors"


@pytest.fixture
def last(tmp_path: Path) -> Path:
    save_training_state(tmp_path / "weights" / "last.safetensors", training_state())
    return tmp_path / "weights" / "last.safetensors"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Write a training state as older versions did."""
    path = tmp_path / "weights" / "last.pt"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        torch.save({**training_state(), "format_version": 1}, file, pickle_protocol=2)
    return path


def same(left: ModelFile, right: ModelFile) -> bool:
    tensors, others = left.state, right.state
    return (
        tensors.keys() == others.keys()
        and all(tensors[name].dtype == others[name].dtype and tensors[name].equal(others[name]) for name in tensors)
        and {**vars(left), "state": None} == {**vars(right), "state": None}
    )


def refusal(call: Callable[[Path], object], path: Path) -> str:
    """Return the message of a refusal, which is one sentence on one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        call(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    assert ". " not in message.replace(str(path), "")
    return message


def rewritten(
    source: Path, target: Path, edit: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, edit(entry.filename, old.read(entry)))
    return target


# ---- files of other kinds


@pytest.mark.parametrize("load", [load_model_file, load_training_state])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty (0 bytes)"),
        (b"epoch 1: loss 3.5\n", "is text"),
        ("é".encode() * 400, "is text"),
        (b"\n <!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (pickle.dumps({"model": 1}), "is a bare pickle"),
        (bytes(range(256)) * 4, "is of an unknown kind"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is of an unknown kind"),
        (b"PK\x03\x04", "is truncated or damaged"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_kind(
    load: Callable[[Path], object], content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    assert expected in refusal(load, path)


@pytest.mark.parametrize("load", [load_model_file, load_training_state])
def test_a_missing_file_a_folder_and_a_pipe_are_refused_at_once(load: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "does not exist" in refusal(load, tmp_path / "missing.pt")
    assert "is a folder" in refusal(load, tmp_path)
    assert "is not a regular file" in refusal(load, tmp_path / "pipe.pt")
    refusal(load, tmp_path / ("n" * 300))  # longer than the limit of a file name


def test_a_model_file_is_refused_for_resuming(best: Path) -> None:
    assert "without its training state" in refusal(load_training_state, best)


# ---- damaged files


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "last.pt"])
def test_a_file_cut_anywhere_is_refused(name: str, best: Path, last: Path, archive: Path) -> None:
    path = best.with_name(name)
    content = path.read_bytes()
    for length in [*range(1, 64), *range(64, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        refusal(load_model_file, path)


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "last.pt"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_flipped_bit_is_refused_or_changes_nothing(name: str, best: Path, last: Path, archive: Path) -> None:
    path, generator = best.with_name(name), random.Random(0)
    content, intact = path.read_bytes(), load_model_file(path)
    num_refused = 0
    for _ in range(500):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            assert same(
                load_model_file(path), intact
            )  # the flipped bit was in padding or an unused field of the archive
        except CheckpointError:
            num_refused += 1
    assert num_refused == 500 or (name == "last.pt" and num_refused > 200)


def test_weights_marked_as_a_folder_are_refused(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        directory = opened.start_dir
    attributes = content.index(b"data/0", directory) - len("archive/") - 8  # 8 bytes before the name in the directory
    content[attributes] |= 0x10
    archive.write_bytes(content)
    assert zipfile.ZipFile(archive).getinfo("archive/data/0").external_attr == 0x10
    assert "is truncated or damaged" in refusal(load_model_file, archive)


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "last.pt"])
def test_a_flipped_bit_of_a_weight_is_always_refused(name: str, best: Path, last: Path, archive: Path) -> None:
    path = best.with_name(name)
    weight = struct.pack("<f", 2.5)
    content = bytearray(path.read_bytes())
    content[content.rindex(weight)] ^= 1
    path.write_bytes(content)
    assert "is truncated or damaged" in refusal(load_model_file, path)


# ---- malicious archives


def test_compressed_archives_are_refused_before_they_are_unpacked(archive: Path, tmp_path: Path) -> None:
    squeezed = rewritten(archive, tmp_path / "squeezed.pt", lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert "unpacks to" in refusal(load_training_state, squeezed)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as opened, opened.open("b/data/0", "w") as entry:
        for _ in range(64):
            entry.write(bytes(1 << 20))
    assert bomb.stat().st_size < 100_000
    assert f"unpacks to {64 << 20} bytes" in refusal(load_model_file, bomb)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "report.pt", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert "is a zip archive of something else" in refusal(load_model_file, tmp_path / "report.pt")


class Payload:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pickle_protocol": 2}, "asks for code ("),
        ({"pickle_protocol": 4}, "asks for code (STACK_GLOBAL)"),
        ({"_use_new_zipfile_serialization": False}, "is a bare pickle"),
    ],
)
@pytest.mark.parametrize("kind", ["system", "eval", "open", "bytearray"])
def test_a_payload_is_refused_and_not_run(options: dict[str, Any], expected: str, kind: str, tmp_path: Path) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "last.pt"
    payload = {
        "system": Payload(os.system, f"touch {sentinel}"),
        "eval": Payload(eval, f"open({str(sentinel)!r}, 'w')"),
        "open": Payload(open, str(sentinel), "w"),
        "bytearray": Payload(bytearray, 1 << 62),  # torch's own list allows it, with more bytes than any machine has
    }[kind]
    torch.save({**training_state(), "format_version": 1, "payload": payload}, path, **options)
    for load in (load_model_file, load_training_state):
        message = refusal(load, path)
        assert expected in message
        assert options != {"pickle_protocol": 2} or kind in message
    assert not sentinel.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_corrupt_pickles_in_a_valid_archive_are_refused_or_harmless(archive: Path, tmp_path: Path) -> None:
    generator = random.Random(0)
    num_refused = 0

    def garble(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        garbled = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            garbled[generator.randrange(len(garbled))] = generator.randrange(256)
        return bytes(garbled)

    for _ in range(200):
        path = rewritten(archive, tmp_path / "garbled.pt", garble)
        try:
            load_model_file(path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 20


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    bomb = torch.zeros(1).expand(10**12)
    path = tmp_path / "last.pt"
    torch.save({**training_state(), "format_version": 1, "ema": {"0.bias": bomb}}, path)
    assert path.stat().st_size < 100_000
    assert "dense tensors" in refusal(load_model_file, path)
    assert "dense tensors" in refusal(load_training_state, path)
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match=r"bomb\.pt does not fit .* 0\.bias \(torch\.float32 \(1000000000000,\)"):
        load_state(model, {**model.state_dict(), "0.bias": bomb}, "bomb.pt")


def test_lists_that_contain_one_another_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_MAX_VALUES", 10_000)
    lists: list[Any] = [0]
    for _ in range(40):
        lists = [lists, lists]
    endless: list[Any] = []
    endless.append(endless)
    for value in (lists, endless):
        torch.save({**training_state(), "format_version": 1, "config": {"a": value}}, tmp_path / "last.pt")
        assert "values or" in refusal(load_model_file, tmp_path / "last.pt")
        with pytest.raises(CheckpointError, match="values or"):
            save_training_state(tmp_path / "last.safetensors", training_state(config={"a": value}))


# ---- files of other projects and other versions


@pytest.mark.parametrize("content", [WEIGHTS, {"model": {}, "epoch": 3}, [1], {"format_version": True}])
def test_a_checkpoint_of_another_project_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "yolo.pt")
    assert "files of another project" in refusal(load_model_file, tmp_path / "yolo.pt")


def test_a_whole_module_is_refused_with_the_class_it_asks_for(tmp_path: Path) -> None:
    torch.save({"model": nn.BatchNorm2d(2)}, tmp_path / "yolo.pt")
    assert "torch.nn.modules.batchnorm BatchNorm2d" in refusal(load_model_file, tmp_path / "yolo.pt")


def with_document(path: Path, document: str | None) -> Path:
    metadata = {"format": "pt"} if document is None else {"detector": document, "sha256": "0" * 64}
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata)
    return path


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "[" * 100_000,
        '{"tensor": "missing", "order": [0]}',
        '{"tensor": "a", "order": [1]}',
        '{"tensor": "a", "order": 0}',
        '{"mapping": [["a", 1]], "b": 2}',
        '{"mapping": [[null, 1]]}',
        '{"mapping": [1]}',
        '{"set": [1]}',
        '{"mapping": [["format_version", 1], ["config", {"mapping": []}]]}',  # does not name the tensor
    ],
)
def test_training_state_with_a_corrupt_document_is_refused(document: str, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, {"detector_training": document, "sha256": "0" * 64})
    assert "is truncated or damaged" in refusal(load_training_state, path)
    assert "is truncated or damaged" in refusal(load_model_file, path)


def test_safetensors_of_another_project_or_with_a_corrupt_description_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    assert "does not describe its model" in refusal(load_model_file, with_document(path, None))
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    assert "does not describe its model" in refusal(load_model_file, path)
    for garbled in ("", "{", "\0", "[" * 100_000):
        assert "is not JSON" in refusal(load_model_file, with_document(path, garbled))
    for other in ("null", "[]", "{}", '{"format_version": "1", "config": {}}', '{"format_version": 0, "config": {}}'):
        assert "another project" in refusal(load_model_file, with_document(path, other))
    own = json.dumps({"format_version": 1, "config": {}})
    assert "does not match its SHA-256" in refusal(load_model_file, with_document(path, own))


def test_header_that_would_keep_the_reader_busy_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    entries = {f"{i:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "holds 60000 tensors, more than any model" in refusal(load_model_file, path)
    path.write_bytes(struct.pack("<Q", 90_000_000) + b"{" + b" " * 1000)
    assert "has a header of 90000000 bytes" in refusal(load_model_file, path)


def test_a_newer_format_is_refused_with_the_supported_version(tmp_path: Path) -> None:
    newer = {"format_version": FORMAT_VERSION + 1, "config": {}}
    torch.save(newer, tmp_path / "last.pt")
    with_document(tmp_path / "best.safetensors", json.dumps(newer))
    for name in ("last.pt", "best.safetensors"):
        message = refusal(load_model_file, tmp_path / name)
        assert f"version {FORMAT_VERSION + 1}, {FORMAT_VERSION} is supported: update detector" in message
