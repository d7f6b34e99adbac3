"""Opening of exports: files of other programs, damaged and changed files are rejected."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from detector.errors import CheckpointError, ConfigError, DetectorError
from detector.export.export_target import export_targets
from detector.export.metadata import Description
from detector.export.pt2 import quietly
from detector.export.torch_archive import read_pt2
from detector.export.writer import open_export
from detector.models.checkpoint import ModelFile
from detector.tasks.detection_model import load_model
from detector.workflows.describe import describe_model

SUFFIXES = {name: target.suffix for name, target in export_targets().items()}
# test_tensorrt.py needs a GPU, test_ncnn.py and test_litert.py the libraries of their targets.
TARGETS = [name for name in SUFFIXES if name not in ("litert", "ncnn", "tensorrt")]


def copied(files: tuple[Path, ...], folder: Path) -> Path:
    for file in files:
        shutil.copy(file, folder)
    return folder / files[0].name


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_export(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) in message
    return message


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"not an export", b"PK\x03\x04" + b"\0" * 99, b"<net></net>"])
def test_file_that_is_no_export_is_rejected_in_one_sentence(target, content, tmp_path):
    path = tmp_path / f"m{SUFFIXES[target]}"
    path.write_bytes(content)
    refusal(path)


def archive(method: int = zipfile.ZIP_STORED, *, is_encrypted: bool = False) -> bytes:
    """Return an archive of one entry, marked as encrypted on request, and damaged if it is compressed."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as written:
        written.writestr("m/data", np.random.default_rng(0).bytes(3000))
    changed = bytearray(content.getvalue())
    if is_encrypted:
        changed[6] |= 1  # PKWARE's APPNOTE, 4.4.4: the flags before the entry and in the list at the end
        changed[changed.find(b"PK\x01\x02") + 8] |= 1
    if method != zipfile.ZIP_STORED:
        changed[2000:2200] = bytes(200)
    return bytes(changed)


@pytest.mark.parametrize("target", ["torchscript", "pt2"])
@pytest.mark.parametrize("content", [archive(is_encrypted=True), archive(zipfile.ZIP_LZMA)], ids=["encrypted", "lzma"])
def test_encrypted_or_compressed_archive_is_rejected(target, content, tmp_path):
    path = tmp_path / f"m{SUFFIXES[target]}"
    path.write_bytes(content)
    refusal(path)


def description() -> str:
    file = ModelFile({}, ("a",), (1,), {})
    return Description(file, "onnx", "fp32", 32, 3, "uint8", None, None).to_json()


def test_description_with_an_infinite_number_is_rejected():
    assert Description.of_json(description(), "m.pt2").max_stride == 32
    with pytest.raises(CheckpointError, match=r"m\.pt2 is damaged or of another program"):
        Description.of_json(description().replace('"max_stride": 32', '"max_stride": 1e999'), "m.pt2")


def test_onnx_file_whose_length_has_thousands_of_digits_is_rejected(tmp_path):
    model = onnx.ModelProto()
    for key, value in (("detector", description()), ("detector_length", "0" * 5000)):
        model.metadata_props.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert "changed after its export" in refusal(tmp_path / "m.onnx")


def test_torchscript_file_whose_description_is_not_utf8_is_rejected(tmp_path):
    with quietly():
        script = torch.jit.trace(torch.nn.Identity(), torch.zeros(1))
        torch.jit.save(script, tmp_path / "m.torchscript", _extra_files={"detector.json": b"\xff\xfe"})
    refusal(tmp_path / "m.torchscript")


@pytest.mark.parametrize("target", TARGETS)
def test_missing_file_is_named(target, tmp_path):
    assert "does not exist" in refusal(tmp_path / f"m{SUFFIXES[target]}")
    (tmp_path / f"m{SUFFIXES[target]}").mkdir()
    assert "is not a regular file" in refusal(tmp_path / f"m{SUFFIXES[target]}")


@pytest.mark.parametrize("target", TARGETS)
def test_truncated_or_damaged_export_is_rejected(target, exported, tmp_path):
    files = exported(target).exported.files
    for file in files:
        whole = file.read_bytes()
        rng = np.random.default_rng(3)
        changed = [whole[: len(whole) // 2], whole[:-1], whole + b"\0"]
        places = rng.integers(0, len(whole), 4).tolist()
        changed += [whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :] for place in places]
        for content in changed[: 3 if target in ("pt2", "torchscript") else None]:
            path = copied(files, tmp_path)
            (tmp_path / file.name).write_bytes(content)
            if not (target in ("pt2", "torchscript") and content == whole + b"\0"):  # archives may have a comment
                refusal(path)


def start_of(entry: zipfile.ZipInfo, content: bytes) -> int:
    """Return the position of the data of an entry, behind its name and its padding (PKWARE's APPNOTE, 4.3.7)."""
    name_bytes, extra_bytes = struct.unpack_from("<HH", content, entry.header_offset + 26)
    return entry.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def test_archive_with_a_damaged_weight_is_rejected(exported, tmp_path):
    for target in ("pt2", "torchscript"):
        path = copied(exported(target).exported.files, tmp_path)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        for entry in sorted(entries, key=lambda entry: entry.compress_size)[-3:]:
            damaged = content.copy()
            damaged[start_of(entry, content) + entry.compress_size // 2] ^= 0x10
            path.write_bytes(damaged)
            assert "is damaged" in refusal(path), entry


def test_onnx_file_of_another_program_or_with_a_copied_description_is_rejected(exported, tmp_path):
    path = copied(exported("onnx").exported.files, tmp_path)
    model = onnx.load_model(path)
    description = next(entry.value for entry in model.metadata_props if entry.key == "detector")
    del model.metadata_props[:]
    onnx.save_model(model, path)
    assert "does not describe its model" in refusal(path)
    model.metadata_props.add(key="detector", value=description)
    onnx.save_model(model, path)
    assert "changed after its export" in refusal(path)


def test_openvino_file_without_its_weights_is_rejected(exported, tmp_path):
    path = copied(exported("openvino").exported.files, tmp_path)
    path.with_suffix(".bin").unlink()
    assert "m.bin does not exist" in refusal(path)


def rewritten(path: Path, name: str, change: dict[str, str]) -> None:
    """Rewrite an entry of an archive, with a correct checksum."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries:
            text = content
            if entry.endswith(name):
                for old, new in change.items():
                    assert old.encode() in text
                    text = text.replace(old.encode(), new.encode(), 1)
            archive.writestr(entry, text)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("models/model.json", {"torch.ops.aten.conv2d.default": "torch.hub.load"}),
        ("models/model.json", {"torch.ops.aten.conv2d.default": "torch.ops.aten.from_file.default"}),
        ("models/model.json", {"Symbol(": "__import__('os').system("}),
        ("models/model.json", {"positive=True": "positive=exit()"}),
        ("weights_config.json", {'"use_pickle": false': '"use_pickle": true'}),
    ],
)
def test_program_that_asks_for_code_is_rejected_before_torch_reads_it(name, change, exported, tmp_path):
    path = copied(exported("pt2").exported.files, tmp_path)
    read_pt2(path)
    rewritten(path, name, change)
    assert "asks for code" in refusal(path)


def test_program_with_a_pickle_among_its_entries_is_rejected(exported, tmp_path):
    path = copied(exported("pt2").exported.files, tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/data/constants/opaque_obj_0", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    assert "which no export does" in refusal(path)
    path = copied(exported("pt2").exported.files, tmp_path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    sample = io.BytesIO()
    with zipfile.ZipFile(sample, "w") as inner:
        inner.writestr("model/data.pkl", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, sample.getvalue() if entry.endswith("sample_inputs/model.pt") else content)
    assert "asks for code (os system)" in refusal(path)


def test_missing_library_is_named_with_the_command_that_installs_it(exported, monkeypatch):
    for target, library in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        path = exported(target).exported.files[0]
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(DetectorError, match=rf'{library}.*pip install "detector-toolkit\[export\]"'):
            open_export(path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("input.arithmetic=opencv", "input.arithmetic: the export takes canvases of float32"),
        ("input.channels=1", "input.channels: the export takes 3, got 1"),
        ("model.recipe=true", "the network of an export cannot be changed"),
        ("runtime.precision=bf16", "the precision of an export, fp32, cannot be changed; leave precision"),
        ("input.sise=64", "input.sise"),
    ],
)
def test_override_that_the_export_cannot_follow_is_rejected(override, says, exported):
    with pytest.raises(ConfigError, match=says):
        load_model(exported("onnx").exported.files[0], [override])


def test_settings_of_evaluation_and_prediction_can_be_overridden(exported):
    config = load_model(exported("onnx").exported.files[0], ["predict.confidence=0.4", "evaluate.iou=0.5"]).config
    assert (config.predict.confidence, config.evaluate.iou) == (0.4, 0.5)


def test_export_is_described_like_its_model(exported, darknet_file):
    model, export = describe_model(darknet_file), describe_model(exported("onnx").exported.files[0])
    assert export.written == {"target": "onnx", "precision": "fp32"}
    assert export.has_weights
    for name in ("product", "network", "num_parameters", "gflops", "class_names", "provenance", "layers"):
        assert getattr(export, name) == getattr(model, name), name


def test_description_is_json_under_one_key_in_every_format(exported):
    model = onnx.load_model(exported("onnx").exported.files[0])
    document = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "detector"))
    assert document["export"]["dtype"] == "float32"
    assert document["class_names"] == ["ball", "box", "star"]
    for target in ("torchscript", "pt2"):
        with zipfile.ZipFile(exported(target).exported.files[0]) as archive:
            name = next(n for n in archive.namelist() if n.endswith("extra/detector.json"))
            assert json.loads(archive.read(name))["export"]["target"] == target
