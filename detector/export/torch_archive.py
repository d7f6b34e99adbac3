"""Checks of torch archives, which torch then opens in a copy made of the checked entries."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from detector.errors import CheckpointError
from detector.io.zip_entries import pack, pickled_names, read_entries

_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, EOFError, OSError, ValueError,
           RuntimeError, LookupError, TypeError, AttributeError)  # fmt: skip

# The only operators and expressions of an export. torch looks up any operator name in its own modules and passes
# expressions to sympy, which evaluates them as Python. Its own check of the pickled example input falls back to loading
# it unchecked.
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b|save\b)\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|truediv)"
)
_EXPRESSION = re.compile(
    r"(?:\b(?:Symbol|Integer|Mul|Add|Pow|Max|Min|FloorDiv|Mod|CeilDiv|CleanDiv|PythonMod|TruncToInt|IntTrueDiv)\b"
    r"|'s\d+'|\bs\d+\b|\bpositive=True\b|\binteger=True\b|-?\b\d{1,9}\b|[ (),*+/-])*"
)
_SAMPLE_GLOBALS = {"torch._utils _rebuild_tensor_v2", "torch ByteStorage", "torch FloatStorage",
                   "collections OrderedDict"}  # fmt: skip
_ENTRIES = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|models/model\.json|data/sample_inputs/model\.pt"
    r"|extra/detector\.json|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
_LARGEST_PROGRAM = 64 << 20  # bytes of the unpacked text of a program, which TorchScript compresses


def read_archive(path: Path, *, may_compress: bool = False) -> dict[str, bytes]:
    """Return the entries of an archive as torch writes it, each checked against its CRC-32.

    Args:
        path: the archive.
        may_compress: whether entries may be compressed, as TorchScript does with the text of a program.

    Raises:
        CheckpointError: it is no archive, is damaged, has data outside its entries, or unpacks to more bytes than such
            an archive holds.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}; give a file that `detector export` wrote")
        return read_entries(
            path.read_bytes(), may_compress=may_compress, max_extra_bytes=_LARGEST_PROGRAM if may_compress else 0
        )
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged or no export ({error}); export the model again") from error
    except _ERRORS as error:
        raise CheckpointError(f"{path} is damaged or no export; export the model again") from error


def read_pt2(path: Path) -> dict[str, bytes]:
    """Return the entries of a file of `torch.export` that contains only tensors and operators on tensors.

    Raises:
        CheckpointError: it contains more, or is damaged.
    """
    entries = read_archive(path)
    for name in entries:
        if _ENTRIES.fullmatch(name) is None:
            raise CheckpointError(
                f"{path} contains {name[:80]!r}, which no export does; give a file of `detector export`"
            )
    try:
        inputs = {name: read_entries(entries[name]) for name in entries if name.endswith("sample_inputs/model.pt")}
        reasons = [*_reasons(entries), *(reason for inner in inputs.values() for reason in _named_in(inner))]
    except _ERRORS as error:
        raise CheckpointError(f"{path} is damaged; export the model again") from error
    if reasons:
        raise CheckpointError(
            f"{path} asks for code ({reasons[0][:80]}) and was not loaded; give a file of `detector export`"
        )
    return entries | {name: pack(inner).getvalue() for name, inner in inputs.items()}


def _reasons(entries: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the parts of a file that could run code, without its example input."""
    for name, content in entries.items():
        if name.endswith("config.json"):
            config = json.loads(content)
            if any(entry["use_pickle"] is not False for entry in config["config"].values()):
                yield f"{name} is pickled"
        elif name.endswith("models/model.json"):
            program = json.loads(content)
            for text in program["range_constraints"]:
                if _EXPRESSION.fullmatch(text) is None:
                    yield text
            yield from _foreign(program["graph_module"])


def _named_in(entries: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the Python objects, other than a tensor's, that the pickle of the example input names."""
    for name, content in entries.items():
        if name.endswith(".pkl"):
            yield from sorted(pickled_names(content) - _SAMPLE_GLOBALS)


def _foreign(value: object) -> Iterator[str]:
    """Yield the operators and expressions of a graph, at any depth, that no export contains."""
    if isinstance(value, dict):
        for key, content in value.items():
            if key == "target" and isinstance(content, str) and _OPERATOR.fullmatch(content) is None:
                yield content
            elif key == "expr_str" and (not isinstance(content, str) or _EXPRESSION.fullmatch(content) is None):
                yield str(content)
            elif key in ("as_operator", "as_custom_obj", "as_graph") and content is not None:
                yield f"{key} {content}"
            else:
                yield from _foreign(content)
    elif isinstance(value, list):
        for content in value:
            yield from _foreign(content)
