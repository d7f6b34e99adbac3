"""Model files and training states: the two kinds of file that a training run writes, and the checks on reading them.

`best.safetensors` is a model to distribute, `last.safetensors` a whole training state to resume from: tensors and one
JSON document (configuration, class names, category ids, metrics) under a SHA-256. Older versions
wrote the training state as an archive of `torch.save` (`last.pt`). Loading runs no code: an archive is searched for
unexpected names, and a copy made of the checked entries is unpickled with `weights_only=True`. Every save is atomic: a
file under its final name is always complete.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from detector.errors import CheckpointError
from detector.io.atomic import write_atomically
from detector.io.zip_entries import pack, pickled_names, read_entries
from detector.models.tensor_tree import flatten, unflatten

FORMAT_VERSION = 1

# Entries of a safetensors header's metadata: the document of a model or of a training state, and its digest.
_DOCUMENT_KEY, _STATE_KEY, _DIGEST_KEY = "detector", "detector_training", "sha256"
# A header of a training state has a few hundred kilobytes and names about two thousand tensors. The limit of the format
# itself, 100 MB, keeps its reader busy for minutes.
_LARGEST_SAFETENSORS_HEADER, _MAX_TENSORS = 10_000_000, 50_000
_NUM_NAMES_SHOWN = 5

# The description of a model besides its tensors: key -> expected type in words, the type, the types of items (): any.
_FIELDS: dict[str, tuple[str, type, tuple[type, ...]]] = {
    "config": ("a mapping", dict, ()),
    "class_names": ("a list of text", list, (str,)),
    "category_ids": ("a list of whole numbers", list, (int,)),
    "metrics": ("a mapping of names to numbers", dict, (int, float)),
    "operating_point": ("a mapping", dict, ()),
    "provenance": ("a mapping of names to text", dict, (str,)),
}

# A training state holds some thousand values; lists that contain one another a few dozen deep hold billions.
_MAX_VALUES, _MAX_DEPTH = 1_000_000, 64

# The names that an archive of tensors and plain data needs. The list that torch allows with `weights_only=True` is
# longer: its `bytearray`, for example, turns twenty bytes of a file into any number of gigabytes.
_ALLOWED_GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | {
    f"torch {kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}

# Errors that zipfile, pickletools and torch.load are known to raise on damaged or malicious files.
_ARCHIVE_ERRORS = (
    *(zlib.error, struct.error, pickle.UnpicklingError, EOFError, OSError),
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
)

_EXPECTED = "a .safetensors or .pt file that training saved"
_DAMAGED = "is truncated or damaged: copy it again or use another save of the run"


@dataclass(frozen=True)
class ModelFile:
    """Content of a model file.

    Attributes:
        config: the resolved experiment configuration, plain data; tuples come back as lists.
        class_names: name of each class, in the order of the model's class indices.
        category_ids: the data set's own id of each class, in the same order.
        state: the model's state dict; on loading, dense tensors on the CPU.
        metrics: measured values by name, for example AP.
        operating_point: the thresholds that were chosen for it, plain data as in `OperatingPoint`, or nothing.
        provenance: where its first weights came from, by `source`, `licence`, `trained_on` and `changes`; empty for
            weights that were random at first.
    """

    config: dict[str, object]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    state: dict[str, Tensor]
    metrics: dict[str, float] = field(default_factory=dict)
    operating_point: dict[str, object] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)


class RunIdentity(TypedDict):
    """Configuration, classes and provenance of a run, plain data as in a `ModelFile`; a hash of its annotations."""

    config: dict[str, object]
    class_names: list[str]
    category_ids: list[int]
    provenance: dict[str, str]
    data_digest: str


class TrainingState(RunIdentity, total=False):
    """Content of a training state, of which only the state dicts and the metrics are checked on loading."""

    metrics: dict[str, float]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    ema_updates: int
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    random: list[Tensor]
    step: int
    best_ap: float
    num_worse: int
    elapsed_s: float
    loss_sums: dict[str, float]
    num_summed: int
    skipped: list[str]


def save_model(path: Path, model_file: ModelFile) -> None:
    """Write a model file (safetensors), atomically; missing folders are created.

    Raises:
        CheckpointError: a tensor is not finite, a field is not as `ModelFile` describes it, or writing fails.
    """
    who = f"the model for {path}"
    checked = checked_model_file({key: getattr(model_file, key) for key in _FIELDS}, model_file.state, who)
    document = json.dumps({key: getattr(checked, key) for key in _FIELDS} | {"format_version": FORMAT_VERSION})
    # Cloned because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in checked.state.items()}
    content = safetensors.torch.save(tensors, {_DOCUMENT_KEY: document, _DIGEST_KEY: _digest(document, tensors)})
    write_atomically(path, lambda file: file.write(content))


def load_model_file(path: Path) -> ModelFile:
    """Load a model file, or the EMA weights of a training state; the content decides which of the two, not the name.

    Raises:
        CheckpointError: the file is neither, is damaged, is not finite, or is of another project or a newer version.
    """
    if _is_archive(path):
        return _of_training_state(_load_archive(path), path)
    key, text, state = _read_safetensors(path)
    if key == _STATE_KEY:
        return _of_training_state(_training_state(text, state, path), path)
    return checked_model_file(json.loads(text), state, str(path))


def _of_training_state(state: TrainingState, path: Path) -> ModelFile:
    return checked_model_file(state, state["ema"], str(path))


def _read_safetensors(path: Path) -> tuple[str, str, dict[str, Tensor]]:
    """Return the key and text of the JSON document in a file of this project, and its tensors, which it vouches for.

    Raises:
        CheckpointError: the file is damaged, or is of another project or a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata, names = file.metadata() or {}, file.keys()
            if len(names) > _MAX_TENSORS:
                raise CheckpointError(f"{path} holds {len(names)} tensors, more than any model: give {_EXPECTED}")
            # Cloned because these tensors are windows into the file, which another program may overwrite.
            state = {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} {_DAMAGED}") from error
    key = _STATE_KEY if _STATE_KEY in metadata else _DOCUMENT_KEY
    if key not in metadata or _DIGEST_KEY not in metadata:
        raise CheckpointError(f"{path} does not describe its model, like files of another project: give {_EXPECTED}")
    text = metadata[key]
    try:
        document = json.loads(text) if key == _DOCUMENT_KEY else unflatten(text, dict(state))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} {_DAMAGED} (its description is not JSON)") from error
    check_version(document, str(path))  # first of all: a newer version may compute another digest
    if _digest(text, state) != metadata[_DIGEST_KEY]:
        raise CheckpointError(f"{path} {_DAMAGED} (its content does not match its SHA-256)")
    return key, text, state


def peek_config(path: Path) -> dict[str, object]:
    """Return the configuration in a model file, without its tensors; empty if the file cannot be read or has none."""
    try:
        if _is_archive(path):
            document: object = _load_archive(path)
        else:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
            is_state = _STATE_KEY in metadata
            document = load_training_state(path) if is_state else json.loads(metadata.get(_DOCUMENT_KEY, "{}"))
    except (CheckpointError, SafetensorError, OSError, ValueError, RuntimeError):
        return {}
    config = document.get("config") if isinstance(document, dict) else None
    return config if isinstance(config, dict) else {}


def save_training_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a training state (safetensors), atomically; missing folders are created.

    Args:
        path: the file, by convention `last.safetensors`.
        state: `config`, `class_names`, `category_ids` and `metrics` as in `ModelFile`, the state dicts `model` and
            `ema`, and everything else that resuming needs, as dicts, lists, tuples, text, numbers, None and dense
            tensors.

    Raises:
        CheckpointError: a tensor of `model` or `ema` is not finite, `state` holds anything else, or writing fails.
    """
    who = f"the training state for {path}"
    content = _plain({**state, "format_version": FORMAT_VERSION}, who)
    _check_training_state(content, who)
    document, tensors = flatten(content)
    encoded = safetensors.torch.save(tensors, {_STATE_KEY: document, _DIGEST_KEY: _digest(document, tensors)})
    write_atomically(path, lambda file: file.write(encoded))


def load_training_state(path: Path) -> TrainingState:
    """Load a file of `save_training_state`, with `format_version` added; tensors are on the CPU.

    Raises:
        CheckpointError: the file is of another kind, is damaged, or is of another project or a newer version.
    """
    if _is_archive(path):
        return _load_archive(path)
    key, text, tensors = _read_safetensors(path)
    if key != _STATE_KEY:
        raise CheckpointError(f"{path} is a model without its training state: to resume, give the run's folder")
    return _training_state(text, tensors, path)


def _load_archive(path: Path) -> TrainingState:
    """Load a training state of an older version, an archive of `torch.save`."""
    try:
        content = torch.load(_checked_archive(path), map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} {_DAMAGED} ({error})") from error
    except _ARCHIVE_ERRORS as error:
        raise CheckpointError(f"{path} {_DAMAGED}") from error
    check_version(content, str(path))
    return _checked_training_state(content, path)


def _training_state(document: str, tensors: dict[str, Tensor], path: Path) -> TrainingState:
    return _checked_training_state(unflatten(document, tensors), path)


def _checked_training_state(content: object, path: Path) -> TrainingState:
    state: TrainingState = _plain(content, str(path))
    _check_training_state(state, str(path))
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], who: str) -> None:
    """Copy a state dict into a model; every name, shape and kind of number is checked before anything is copied.

    Args:
        model: receives the tensors and keeps its own dtypes and devices.
        state: a tensor for every entry of the model's state dict, and no others.
        who: the origin of `state`, for the error message.

    Raises:
        CheckpointError: a name is missing or unexpected, or a tensor has another shape or kind; the model is unchanged.
    """
    own: dict[str, Tensor] = model.state_dict()
    pairs = [(name, state[name], tensor) for name, tensor in own.items() if name in state]
    mismatched = [
        f"{name} ({given.dtype} {tuple(given.shape)} instead of {tensor.dtype} {tuple(tensor.shape)})"
        for name, given, tensor in pairs
        if given.shape != tensor.shape or given.is_floating_point() != tensor.is_floating_point()
    ]
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": mismatched,
    }
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise CheckpointError(
            f"{who} does not fit the model; build the model from the configuration saved with it ({listed})"
        )
    model.load_state_dict(dict(state), strict=True)


def _is_archive(path: Path) -> bool:
    """Return True for a zip archive and False for what looks like safetensors; reject everything else."""
    try:
        if not path.is_file():  # also a pipe or a device, whose opening or reading might never end
            what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}: give {_EXPECTED}")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): give {_EXPECTED}") from error
    if head.startswith(b"PK\x03\x04"):
        return True
    if head[8:9] == b"{":
        num_header_bytes = int.from_bytes(head[:8], "little")
        if num_header_bytes > _LARGEST_SAFETENSORS_HEADER:
            raise CheckpointError(
                f"{path} has a header of {num_header_bytes} bytes, more than the {_LARGEST_SAFETENSORS_HEADER} of any "
                f"model: give {_EXPECTED}"
            )
        return False
    raise CheckpointError(f"{path} {_what_it_is(head)}")


def _what_it_is(head: bytes) -> str:
    """Return the most likely explanation of a file that is not a model, from its first bytes."""
    if not head:
        return "is empty (0 bytes), as after an interrupted copy: copy it again or use another save of the run"
    if head.lstrip()[:1] == b"<":
        return "is a web page, as after a failed download: download the file again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to: run 'git lfs pull'"
    if head[:1] == b"\x80":
        return f"is a bare pickle, which could run code and is never opened: give {_EXPECTED}"
    is_text = (
        b"\0" not in head and head.decode("utf-8", "replace").count("\N{REPLACEMENT CHARACTER}") <= 1
    )  # one at the end may be cut
    return f"is {'text' if is_text else f'of an unknown kind (it starts with {head[:8]!r})'}: give {_EXPECTED}"


def _checked_archive(path: Path) -> BinaryIO:
    """Return the archive of a training state, made of its checked entries; reject what `torch.save` does not write."""
    entries = read_entries(path.read_bytes())
    pickles = [content for name, content in entries.items() if name.endswith(".pkl")]
    if not pickles:
        raise CheckpointError(f"{path} is a zip archive of something else: give {_EXPECTED}")
    foreign = set[str]().union(*map(pickled_names, pickles)) - _ALLOWED_GLOBALS
    if foreign:
        raise CheckpointError(f"{path} asks for code ({_some(sorted(foreign))}) and was not loaded: give {_EXPECTED}")
    return pack(entries)


def check_version(content: object, who: str) -> None:
    """Reject content that does not declare this format and a supported version.

    Raises:
        CheckpointError: it does not.
    """
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or "config" not in content or type(version) is not int or version < 1:
        raise CheckpointError(
            f"{who} has no format_version and config, like files of another project: give {_EXPECTED}"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{who} has format version {version}, {FORMAT_VERSION} is supported: update detector")


def checked_model_file(source: Mapping[str, object], state: object, who: str) -> ModelFile:
    """Return the model file of a description and a state dict.

    Raises:
        CheckpointError: a part of them is not as `ModelFile` describes it.
    """
    given = {"metrics": {}, "operating_point": {}, "provenance": {}} | {
        key: source[key] for key in _FIELDS if key in source
    }
    fields = _plain(given, who, as_json=True)
    for key, (expected, kind, item_kinds) in _FIELDS.items():
        value = fields.get(key)
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or (item_kinds and any(type(item) not in item_kinds for item in items or ())):
            raise CheckpointError(f"{who}: expected {expected} as {key}, got {value!r:.60}: correct that")
    num_classes, num_ids = len(fields["class_names"]), len(set(fields["category_ids"]))
    if not num_classes == num_ids == len(fields["category_ids"]):
        raise CheckpointError(f"{who}: expected a category id per class ({num_classes}), got {num_ids}: correct them")
    names, ids = tuple(fields["class_names"]), tuple(fields["category_ids"])
    try:
        metrics = {name: float(value) for name, value in fields["metrics"].items()}
    except OverflowError as error:
        raise CheckpointError(f"{who}: expected metrics within float64, got more digits: correct them") from error
    described = (fields["operating_point"], fields["provenance"])
    return ModelFile(fields["config"], names, ids, _state_dict(state, who), metrics, *described)


def _check_training_state(state: Mapping[str, object], who: str) -> None:
    _state_dict(state.get("model"), who)
    checked_model_file(state, state.get("ema"), who)


def _state_dict(state: object, who: str) -> dict[str, Tensor]:
    """Return a state dict of finite, dense tensors by name, or reject it."""
    content = _plain(state, who)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{who}: expected tensors by name as weights, got something else: give {_EXPECTED}")
    # A float of less than 4 bytes fits into float32; torch has no `isfinite` for 8-bit floats.
    floats = {name: tensor for name, tensor in content.items() if tensor.is_floating_point()}
    broken = [name for name, t in floats.items() if not (t.float() if t.element_size() < 4 else t).isfinite().all()]
    if broken:
        raise CheckpointError(f"{who} has weights that are not finite ({_some(map(str, broken))}): use an earlier save")
    return content


def _plain(root: object, who: str, as_json: bool = False) -> Any:
    """Return a copy of plain data and dense tensors (shared); `as_json` turns tuples into lists and rejects tensors."""
    num_values = 0

    def copy(value: object, where: str, depth: int) -> object:
        nonlocal num_values
        num_values += 1
        if num_values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise CheckpointError(f"{who} holds over {_MAX_VALUES} values or {_MAX_DEPTH} levels of them: save fewer")
        for kind in (bool, str, int, float):
            if isinstance(value, kind):
                return kind(value)
        if value is None:
            return None
        if isinstance(value, dict) and all(isinstance(k, str if as_json else (str, int)) for k in value):
            return {copy(k, where, depth): copy(v, f"{where}[{k!r}]", depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            items = [copy(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) and not as_json else items
        if isinstance(value, Tensor) and not as_json:
            return _dense(value, where, who)
        raise CheckpointError(
            f"{who}: expected plain data{'' if as_json else ' and tensors'} with text as keys, got "
            f"{type(value).__name__} at {where[:80] or 'its root'}: turn it into text, numbers or lists of them"
        )

    return copy(root, "", 0)


def _dense(tensor: Tensor, where: str, who: str) -> Tensor:
    """Return the bare tensor if its storage holds every element: a few bytes can claim to be a million million."""
    dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{who}: expected dense tensors, got another at {where[:80]}: save a contiguous copy of it"
        )
    return tensor.detach()


def _digest(document: str, state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a document and the name, dtype, shape and bytes of every tensor, as 64 hex digits."""
    digest = hashlib.sha256(document.encode())
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _some(names: Iterable[str]) -> str:
    """Return at most five names, each cut to 80 characters, and the number of the others."""
    listed = [repr(name[:80])[1:-1] for name in names]  # no control characters on a terminal
    more = len(listed) - _NUM_NAMES_SHOWN
    return ", ".join(listed[:_NUM_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
