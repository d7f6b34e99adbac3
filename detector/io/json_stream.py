"""Reading a large JSON object piece by piece: each element of its lists by itself, in little memory.

The syntax is that of Python's `json` module, which does the reading; here is only what walks from value to value.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from detector.errors import DatasetError

_CHUNK_BYTES = 2**20
_NOT_SPACE = re.compile(r"[^ \t\n\r]")
_LONGEST_WORD = 16  # characters that a word or an escape sequence cut at the end of a chunk may lack

# First bytes of what is taken for JSON by mistake.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe", "is text in UTF-16 or UTF-32, not in UTF-8; save it as UTF-8"),
    (b"\xfe\xff", "is text in UTF-16, not in UTF-8; save it as UTF-8"),
    (b"\x1f\x8b", "is compressed (gzip); unpack it"),
    (b"PK\x03\x04", "is compressed (zip); unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); unpack it"),
)


def read_items(
    path: Path, lists: Collection[str], on_twice: Callable[[str, str], None]
) -> Iterator[tuple[str, int, Any]]:
    """The elements of some lists of the object in a JSON file, in the order of the file.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        lists: the keys of the lists.
        on_twice: told the name of each key that an object has twice, and where; the last value is taken.

    Yields:
        key, position, element. Where a list begins: its key, -1, []. Where the value of such a key is no list: the key,
        -1, the value. Where the file holds no object: "", -1, the value, or [] for a list of any length.

    Raises:
        DatasetError: with file, line and column where the file is not JSON.
    """
    if path.is_dir():
        raise DatasetError(f"{path} cannot be read: Is a directory; name a file")
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device would never end
        raise DatasetError(f"{path} cannot be read: it is a pipe or a device; name a file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
            for signature, reason in _FOREIGN:
                if start.startswith(signature):
                    raise DatasetError(f"{path} {reason}")
            file.seek(0)
            yield from _Scanner(path, file, on_twice).items(lists)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error


class _Scanner:
    """A window on the text of a file; it moves on when a value does not fit into it."""

    def __init__(self, path: Path, file: BinaryIO, on_twice: Callable[[str, str], None]) -> None:
        self._path, self._file, self._on_twice = path, file, on_twice
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._num_bytes, self._is_last = 0, False
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # of the first character of the window
        self._twice: list[str] = []

    def items(self, lists: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        self._grow()
        self._text = self._text.removeprefix("\ufeff")
        start = self._next()
        if not start:
            raise DatasetError(f"{self._path} is empty, line 1, column 1; wanted a COCO file")
        if start != "{":
            yield "", -1, [] if start == "[" else self._value("the file")
            return
        self._at += 1
        keys: set[str] = set()
        is_end = self._next() == "}"
        self._at += is_end
        while not is_end:
            if self._next() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self._value("the file")
            if self._next() != ":":
                raise self._error("Expecting ':' delimiter", self._at)
            self._at += 1
            if key in keys:
                self._on_twice(key, "the file")
            keys.add(key)
            if key in lists and self._next() == "[":
                yield key, -1, []
                yield from self._elements(key)
            else:
                value = self._value(key)
                if key in lists:
                    yield key, -1, value
            is_end = self._is_end("}")
        if self._next():
            raise self._error("Extra data", self._at)

    def _elements(self, key: str) -> Iterator[tuple[str, int, Any]]:
        self._at += 1
        if self._next() == "]":
            self._at += 1
            return
        position = 0
        while True:
            yield key, position, self._value(key, position)
            if self._is_end("]"):
                return
            position += 1

    def _next(self) -> str:
        """The next character that is no space, which is not passed; none at the end of the file."""
        while True:
            found = _NOT_SPACE.search(self._text, self._at)
            if found:
                self._at = found.start()
                return found[0]
            self._at = len(self._text)
            if self._is_last:
                return ""
            self._grow()

    def _is_end(self, bracket: str) -> bool:
        """Passes a comma or the closing bracket; whether it was the bracket."""
        found = self._next()
        if found != "," and found != bracket:
            raise self._error("Expecting ',' delimiter", self._at)
        self._at += 1
        return found == bracket

    def _value(self, key: str, position: int = -1) -> Any:
        """The next value, which is passed; `key` and `position` say where it is."""
        self._next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # "1" may be the start of "1.5", "1e5" or "1e+5".
                is_whole = isinstance(value, (dict, list, str)) or end < len(self._text) - 2
                if is_whole or self._is_last:
                    break
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - _LONGEST_WORD or error.msg.startswith("Unterminated string")
                if self._is_last or not is_cut:
                    raise self._error(error.msg, error.pos) from error
            except RecursionError as error:
                raise DatasetError(f"{self._path} is no COCO file: its objects are nested too deep") from error
            except ValueError as error:  # an integer of more digits than Python converts
                raise DatasetError(f"{self._path} is no COCO file: {error}") from error
            self._twice.clear()
            self._grow()
        self._at = end
        if self._twice:
            for name in self._twice:
                self._on_twice(name, key if position < 0 else f"{key}[{position}]")
            self._twice.clear()
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    self._twice.append(name)
                seen.add(name)
        return entry

    def _grow(self) -> None:
        """Forgets what was passed and reads on, as much again as is left."""
        passed, left = self._text[: self._at], self._text[self._at :]
        num_lines = passed.count("\n")
        self._column = len(passed) - passed.rfind("\n") if num_lines else self._column + len(passed)
        self._line += num_lines
        data = self._file.read(max(_CHUNK_BYTES, len(left)))
        num_pending = len(self._utf8.getstate()[0])
        self._is_last = not data
        try:
            self._text = left + self._utf8.decode(data, final=self._is_last)
        except UnicodeDecodeError as error:
            place = self._num_bytes - num_pending + error.start
            raise DatasetError(f"{self._path} is not JSON in UTF-8, at byte {place}; save it as UTF-8") from error
        self._num_bytes += len(data)
        self._at = 0

    def _error(self, message: str, at: int) -> DatasetError:
        before = self._text[:at]
        num_lines = before.count("\n")
        column = len(before) - before.rfind("\n") if num_lines else self._column + len(before)
        where = f"line {self._line + num_lines}, column {column}"
        return DatasetError(f"{self._path} is not JSON, {where}: {message}; export or download it again")
