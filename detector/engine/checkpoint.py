"""Model files and training states: the two kinds of file a training run writes, and everything that may be wrong with one.

`best.safetensors` is a model to hand on: its tensors and one JSON document (configuration, class names, category ids,
metrics) under a SHA-256. `last.pt` is a whole training state to resume from: tensors and plain data in an archive of
`torch.save`. Loading either runs no code: a `.pt` is searched for unexpected names before it is unpickled, and is then
unpickled with `weights_only=True` all the same. Every save is atomic: under its final name a file is always whole.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import pickle
import pickletools
import re
import struct
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from detector.errors import CheckpointError

FORMAT_VERSION = 1

_DOCUMENT_KEY, _DIGEST_KEY = "detector", "sha256"  # entries of a safetensors header's metadata
_LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
_NUM_NAMES_SHOWN = 5
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")

# A training state holds some thousand values; lists that hold one another a few dozen deep hold billions.
_MAX_VALUES, _MAX_DEPTH = 1_000_000, 64

# All that an archive of tensors and plain data has to name. The list torch goes by with `weights_only=True` is longer:
# its `bytearray`, for one, turns twenty bytes of a file into any number of gigabytes.
_KINDS_OF_STORAGE = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED_GLOBALS = frozenset(
    [
        "torch._utils _rebuild_tensor_v2",
        "collections OrderedDict",
        *(f"torch {kind}Storage" for kind in _KINDS_OF_STORAGE),
    ]
)

# What zipfile, pickletools and torch.load are known to raise on files that were made or damaged to confuse them.
_ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, EOFError, OSError, MemoryError),
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
)

_WANTED = "a .safetensors or .pt file that training saved"
_DAMAGED = "is truncated or damaged: copy it again or use another save of the run"


@dataclass(frozen=True)
class ModelFile:
    """What a model file carries.

    Attributes:
        config: the resolved experiment configuration, plain data; tuples come back as lists.
        class_names: name of each class, in the order of the model's class indices.
        category_ids: the data set's own id of each class, in the same order.
        state: the model's state dict; on loading, dense tensors on the CPU.
        metrics: what was measured, for example AP.
    """

    config: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    state: dict[str, Tensor]
    metrics: dict[str, float] = field(default_factory=dict)


def save_model(path: Path, model_file: ModelFile) -> None:
    """Writes a model file (safetensors), atomically; missing folders are made.

    Raises:
        CheckpointError: a tensor is not finite, a field is not what `ModelFile` says, or the disk refuses.
    """
    who = f"the model for {path}"
    source = {"format_version": FORMAT_VERSION, **{key: getattr(model_file, key) for key in _FIELDS}}
    checked = _model_file(source, model_file.state, who)
    document = json.dumps({key: getattr(checked, key) for key in _FIELDS} | {"format_version": FORMAT_VERSION})
    # Cloned because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in checked.state.items()}
    metadata = {"format": "pt", _DOCUMENT_KEY: document, _DIGEST_KEY: _digest(document, tensors)}
    content = safetensors.torch.save(tensors, metadata)
    _write_atomically(path, lambda file: file.write(content))


def load_model_file(path: Path) -> ModelFile:
    """Reads a model file, or the EMA weights of a training state; which of the two the content decides, not the name.

    Raises:
        CheckpointError: anything else, or a file that is damaged, not finite, of another project or of a newer version.
    """
    if _is_archive(path):
        training_state = load_training_state(path)
        return _model_file(training_state, training_state["ema"], str(path))
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Cloned because these tensors are windows into the file, which another program may overwrite.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} {_DAMAGED}") from error
    if _DOCUMENT_KEY not in metadata or _DIGEST_KEY not in metadata:
        raise CheckpointError(
            f"{path} says nothing of the model its tensors belong to, as files of another project do: give {_WANTED}"
        )
    try:
        document = json.loads(metadata[_DOCUMENT_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} {_DAMAGED} (its description is not JSON)") from error
    _check_version(document, str(path))  # first of all: a newer version may well compute another digest
    if _digest(metadata[_DOCUMENT_KEY], state) != metadata[_DIGEST_KEY]:
        raise CheckpointError(f"{path} {_DAMAGED} (its content does not match its SHA-256)")
    return _model_file(document, state, str(path))


def save_training_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state, atomically; missing folders are made.

    Args:
        path: the file, by custom `last.pt`.
        state: `config`, `class_names`, `category_ids` and `metrics` as in `ModelFile`, the state dicts `model` and
            `ema`, and whatever else resuming needs: dicts, lists, tuples, text, numbers, None and dense tensors.

    Raises:
        CheckpointError: a tensor of `model` or `ema` is not finite, `state` holds anything else, or the disk refuses.
    """
    who = f"the training state for {path}"
    content = _plain({**state, "format_version": FORMAT_VERSION}, who)
    _check_training_state(content, who)
    _model_file(content, content["ema"], who)
    # Protocol 2 names every class in a GLOBAL opcode, which is what `_check_archive` looks for.
    _write_atomically(path, lambda file: torch.save(content, file, pickle_protocol=2))


def load_training_state(path: Path) -> dict[str, Any]:
    """Reads what `save_training_state` wrote, with `format_version` added; tensors are on the CPU.

    Raises:
        CheckpointError: the file is anything else, is damaged, or is of another project or a newer version.
    """
    if not _is_archive(path):
        raise CheckpointError(f"{path} is a model without its training state: to resume, give the run's last.pt")
    try:
        with path.open("rb") as file:
            _check_archive(path, file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except _ARCHIVE_ERRORS as error:
        raise CheckpointError(f"{path} {_DAMAGED}") from error
    _check_version(content, str(path))
    state: dict[str, Any] = _plain(content, str(path))
    _check_training_state(state, str(path))
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], who: str) -> None:
    """Copies a state dict into a model; every name, shape and kind of number is checked before anything is copied.

    Args:
        model: receives the tensors, keeping its own dtypes and devices.
        state: a tensor for every entry of the model's state dict, and none besides.
        who: where `state` comes from, for the error.

    Raises:
        CheckpointError: a name is missing or unexpected, or a tensor has another shape or kind; the model is unchanged.
    """
    wanted: dict[str, Tensor] = model.state_dict()
    mismatched = [
        f"{name} ({_describe(state[name])} instead of {_describe(tensor)})"
        for name, tensor in wanted.items()
        if name in state
        and (state[name].shape != tensor.shape or state[name].is_floating_point() != tensor.is_floating_point())
    ]
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": mismatched,
    }
    if any(faults.values()):
        found = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise CheckpointError(
            f"{who} does not fit {type(model).__name__}, use the configuration it was saved with: {found}"
        )
    model.load_state_dict(dict(state), strict=True)


def sweep_temporary(folder: Path) -> None:
    """Removes what interrupted saves left in a folder; to be called before a run's first save, when none is under way.

    Raises:
        CheckpointError: the folder cannot be listed or a leftover cannot be removed.
    """
    try:
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file():
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be cleared of interrupted saves ({_reason(error)})") from error


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside `path`, forces the bytes to disk, and only then takes the name: a crash leaves one whole file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = (
            error if isinstance(error, OSError) else error.__context__
        )  # torch.save hides a full disk in the context
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{path} could not be saved ({_reason(cause)}) and what was there before is whole: "
            "free space or give a folder that can be written"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the error above matters more, and `sweep_temporary` comes by
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Forces a rename to disk, where folders can be synchronised."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip archive (True) or looks like safetensors (False); anything else is refused in words."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: give {_WANTED}")
        if not path.is_file():  # also a pipe or a device, whose opening or reading might never end
            what = "is not a regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}: give {_WANTED}")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}): give {_WANTED}") from error
    if head.startswith(b"PK\x03\x04"):
        return True
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_SAFETENSORS_HEADER:
        return False
    raise CheckpointError(f"{path} {_what_it_is(head)}")


def _what_it_is(head: bytes) -> str:
    """The most likely story of a file that is no model, from its first bytes."""
    if not head:
        return "is empty (0 bytes), as after an interrupted copy: copy it again or use another save of the run"
    if head.lstrip()[:1] == b"<":
        return "is a web page, as after a failed download: download the file again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to: run 'git lfs pull'"
    if head[:1] == b"\x80":
        return f"is a bare pickle, which could run code and is never opened: give {_WANTED}"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # incremental: the last character may be cut
    except UnicodeDecodeError:
        printable = False
    else:
        printable = b"\0" not in head
    return f"is {'text' if printable else f'of an unknown kind (first bytes {head[:8].hex()})'}: give {_WANTED}"


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Refuses an archive that `torch.save` would not have written, before anything in it is unpickled."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > path.stat().st_size:
            raise CheckpointError(
                f"{path} would unpack to {unpacked} bytes and may be made to exhaust the memory, for training never "
                f"compresses its files: give {_WANTED}"
            )
        if archive.testzip() is not None:
            raise CheckpointError(f"{path} {_DAMAGED}")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if not pickles:
            raise CheckpointError(f"{path} is a zip archive of something else: give {_WANTED}")
        for entry in pickles:
            for opcode, argument, _ in pickletools.genops(archive.read(entry)):
                if opcode.name == "GLOBAL" and argument not in _ALLOWED_GLOBALS:
                    name = str(argument).replace(" ", ".")[:80]
                    raise CheckpointError(
                        f"{path} is refused unopened because it asks for the Python object {name!r}, where training "
                        f"saves nothing but tensors and plain data: give {_WANTED}"
                    )


def _check_version(content: object, who: str) -> None:
    if not isinstance(content, dict) or "format_version" not in content or "config" not in content:
        raise CheckpointError(f"{who} has no format_version and config, as files of another project: give {_WANTED}")
    version = content["format_version"]
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{who} has no usable format_version (a whole number from 1 on): give {_WANTED}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{who} has format version {version}, this detector reads versions up to {FORMAT_VERSION}: update detector"
        )


_FIELDS = ("config", "class_names", "category_ids", "metrics")  # of a `ModelFile`, besides its tensors


def _model_file(source: Mapping[str, Any], state: object, who: str) -> ModelFile:
    """The checked model file with `source`'s description and `state`'s tensors."""
    config, class_names, category_ids = (source.get(key) for key in _FIELDS[:3])
    metrics = source.get("metrics", {})
    if not isinstance(config, dict):
        raise CheckpointError(f"{who} wants a mapping as config, found {type(config).__name__}: give {_WANTED}")
    if not isinstance(class_names, (list, tuple)) or not all(isinstance(name, str) for name in class_names):
        raise CheckpointError(f"{who} wants a list of text as class_names: give {_WANTED}")
    if not isinstance(category_ids, (list, tuple)) or not all(type(number) is int for number in category_ids):
        raise CheckpointError(f"{who} wants a list of whole numbers as category_ids: give {_WANTED}")
    if not len(class_names) == len(category_ids) == len(set(category_ids)):
        raise CheckpointError(
            f"{who} wants a category id of its own for each of the {len(class_names)} classes, found "
            f"{len(set(category_ids))} of them: give {_WANTED}"
        )
    if not isinstance(metrics, dict) or not all(isinstance(value, (int, float)) for value in metrics.values()):
        raise CheckpointError(f"{who} wants names and numbers as metrics: give {_WANTED}")
    return ModelFile(
        config=_plain(config, who, as_json=True),
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        state=_state_dict(state, who),
        metrics={str(name): float(value) for name, value in metrics.items()},
    )


def _check_training_state(state: Mapping[str, Any], who: str) -> None:
    for key in ("model", "ema"):
        if key not in state:
            raise CheckpointError(f"{who} wants the weights {key!r}, found {_some(map(str, state))}: give {_WANTED}")
        _state_dict(state[key], f"{who}, {key!r},")


def _state_dict(state: object, who: str) -> dict[str, Tensor]:
    """A state dict of finite, dense tensors under names, or a refusal."""
    content = _plain(state, who)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{who} wants names and tensors as weights: give {_WANTED}")
    broken = [name for name, tensor in content.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{who} has weights that are infinite or not a number ({_some(broken)}) and is of no use: "
            "go back to an earlier save and lower the learning rate"
        )
    return content


def _is_finite(tensor: Tensor) -> bool:
    # Below 4 bytes a float fits into float32; torch cannot ask the 8-bit ones directly.
    return not tensor.is_floating_point() or bool(
        torch.isfinite(tensor.float() if tensor.element_size() < 4 else tensor).all()
    )


def _plain(root: object, who: str, as_json: bool = False) -> Any:
    """A copy of nested data that holds nothing but plain data and dense tensors (the tensors themselves are shared).

    Args:
        root: dicts, lists, tuples, text, numbers, None and tensors; subclasses become their plain counterparts.
        who: what is copied, for the error.
        as_json: what JSON can say, no more: tuples become lists, keys must be text, tensors are refused.
    """
    num_values = 0

    def copy(value: object, where: str, depth: int) -> Any:
        nonlocal num_values
        num_values += 1
        if num_values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise CheckpointError(
                f"{who} holds more than {_MAX_VALUES} values or {_MAX_DEPTH} levels of them: save less than that"
            )
        if value is None or isinstance(value, bool):
            return value
        for kind in (str, int, float):
            if isinstance(value, kind):
                return kind(value)
        if isinstance(value, dict) and all(isinstance(k, str if as_json else (str, int)) for k in value):
            return {copy(k, where, depth): copy(v, f"{where}[{k!r}]", depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            items = [copy(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) and not as_json else items
        if isinstance(value, Tensor) and not as_json:
            return _dense(value, where, who)
        raise CheckpointError(
            f"{who} wants plain data{'' if as_json else ' and tensors'} with text as keys, found "
            f"{type(value).__name__} at {where[:80] or 'its root'}: turn it into text, numbers or lists of them"
        )

    return copy(root, "", 0)


def _dense(tensor: Tensor, where: str, who: str) -> Tensor:
    """The bare tensor, if it has memory of its own for every element: a few bytes can claim to be a million million."""
    if (
        tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):
        raise CheckpointError(
            f"{who} wants dense tensors, found {_describe(tensor)} at {where[:80]} that is not: save a copy"
        )
    return tensor.detach()


def _digest(document: str, state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a document and the name, dtype, shape and bytes of every tensor, as 64 hexadecimal digits."""
    digest = hashlib.sha256(document.encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _some(names: Iterable[str]) -> str:
    """At most five names and the number of the others."""
    listed = list(names)
    more = len(listed) - _NUM_NAMES_SHOWN
    return ", ".join(listed[:_NUM_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
