"""Tensors of a `torch.save` archive of another program, read without unpickling it.

The pickle in such an archive is a list of instructions. Those that build dicts, lists, numbers and text are followed
here; those that rebuild a tensor give a tensor; every object of another kind becomes `Ignored`. No name in the file is
looked up, so no code in it can run. The archive itself is checked as it is read: nothing in it may be compressed, and
the checksum of every entry must be right.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.errors import CheckpointError

_DTYPES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
# Objects that training checkpoints hold besides tensors; they are ignored. Any other name is a reason for refusal.
_HARMLESS = {
    *_DTYPES,
    *(f"torch._utils {name}" for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *("collections OrderedDict", "collections defaultdict", "torch Size", "torch device", "argparse Namespace"),
    *(f"{module}.multiarray {name}" for module in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *("numpy dtype", "numpy ndarray", "_codecs encode", "pathlib PosixPath"),
}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_MARK = object()
_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, TypeError, LookupError,
           RuntimeError, AttributeError, ArithmeticError, AssertionError, NotImplementedError)  # fmt: skip


@dataclass(frozen=True)
class Ignored:
    """Object in a pickle that is neither plain data nor a tensor, such as a NumPy number.

    Attributes:
        name: its class or function, as module and name.
    """

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


def read_archive(path: Path) -> object:
    """Return the plain data and tensors that `torch.save` wrote into an archive; other objects are `Ignored`.

    Args:
        path: the file; it is read to its end.

    Raises:
        CheckpointError: the file is not an archive of `torch.save`, is truncated or damaged, or names code.
    """
    machine = _Machine()
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if head == b"\x80\x02":
            raise CheckpointError(
                f"{path} is in the old format of torch before 1.6, a bare pickle that could run code; if you trust it, "
                "load it with torch and save it again"
            )
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            if (
                any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values())
                or "data.pkl" not in entries
            ):
                raise CheckpointError(f"{path} is no archive of torch.save; give a .pth file")
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("wrong checksum")
            content = machine.run(archive.read(entries["data.pkl"]), lambda key: archive.read(entries[f"data/{key}"]))
    except _ERRORS as error:
        if not machine.foreign:
            raise CheckpointError(
                f"{path} is no .pth file, or is truncated or damaged; download or copy it again"
            ) from error
    if machine.foreign:
        raise CheckpointError(
            f"{path} asks for code ({', '.join(sorted(machine.foreign))[:80]}) and was not loaded; give the file of a "
            "publisher that you trust"
        )
    return content


class _Machine:
    """Interpreter of the instructions of a pickle that build plain data and tensors.

    Attributes:
        foreign: the names in the pickle that no checkpoint needs.
    """

    def __init__(self) -> None:
        self._bytes: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.foreign: set[str] = set()

    def run(self, pickled: bytes, read: Callable[[str], bytes]) -> object:
        """Return the object that a pickle describes; `read` returns the bytes of a storage by its key."""
        self._read = read
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name == "STOP":
                break
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self._stack.append(argument)
            elif name not in ("PROTO", "FRAME"):
                self._step(name, argument)
        return self._stack[-1]

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._marked()
            stack.append(tuple(items) if name == "TUPLE" else dict(_pairs(items)) if name == "DICT" else items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        else:
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        """Follow an instruction that names or builds an object of a class."""
        stack = self._stack
        if name == "GLOBAL":
            stack.append(self._named(str(argument)))
        elif name == "STACK_GLOBAL":
            second, first = stack.pop(), stack.pop()
            stack.append(self._named(f"{first} {second}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            del stack[-2 if name == "NEWOBJ_EX" else -1 :]
            stack.append(Ignored(getattr(stack.pop(), "name", "object")))
        elif name == "BUILD":
            stack.pop()  # attributes of the object below, such as the versions of a state dict
        else:
            self.foreign.add(f"{name} {argument or ''}".strip())
            raise LookupError(name)

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark off the stack, with the mark."""
        place = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _fill(self, name: str) -> None:
        """Add items to the list or dict below them."""
        num = {"APPEND": 1, "SETITEM": 2}.get(name)
        items = self._marked() if num is None else [self._stack.pop() for _ in range(num)][::-1]
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(items))
        elif isinstance(target, list):
            target.extend(items)

    def _named(self, name: str) -> Ignored:
        if name not in _HARMLESS:
            self.foreign.add(name)
        return Ignored(name)

    def _storage(self, identity: tuple[Any, ...]) -> _Storage:
        _, kind, key, _, _ = identity
        return _Storage(_DTYPES[kind.name], str(key))

    def _called(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Return the result of a call: a tensor, a dict, or an object that is ignored."""
        name = function.name if isinstance(function, Ignored) else "object"
        if name == "torch._utils _rebuild_tensor_v2":
            return self._tensor(*arguments[:4])
        if name == "torch._utils _rebuild_parameter":
            return arguments[0]
        return {} if name == "collections OrderedDict" else Ignored(name)

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """Return a copy of a part of a storage, after checking that the storage holds all of it."""
        if storage.key not in self._bytes:
            content = self._read(storage.key)
            self._bytes[storage.key] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
        flat = self._bytes[storage.key].view(storage.dtype)
        num = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if num else 0
        if min(offset, *size, *stride, 0) < 0 or (num and last >= len(flat)) or num > len(flat):
            raise ValueError("a tensor reaches beyond its storage")
        return flat.as_strided(size, stride, offset).clone() if num else flat.new_empty(size)


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)
