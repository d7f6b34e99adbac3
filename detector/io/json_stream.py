"""Reading of a large JSON object in little memory, one element of its lists at a time.

Python's `json` module decodes each value and defines the syntax; this module steps from value to value.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from detector.errors import DatasetError

Item: TypeAlias = "tuple[str, int, Any]"  # key, position, element
_CHUNK_BYTES = 2**20
MAX_VALUE_BYTES = 2**30
_NOT_SPACE = re.compile(r"[^ \t\n\r]")
_LONGEST_WORD = 16  # most characters by which a word or escape sequence can be cut at the end of a chunk
_NAMES_TRAILING_COMMA = sys.version_info >= (3, 13)  # earlier, `json` names the bracket after it

# First bytes of files that are mistaken for JSON.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe", "is text in UTF-16 or UTF-32, not in UTF-8; save it as UTF-8"),
    (b"\xfe\xff", "is text in UTF-16, not in UTF-8; save it as UTF-8"),
    (b"\x1f\x8b", "is compressed (gzip); unpack it"),
    (b"PK\x03\x04", "is compressed (zip); unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); unpack it"),
)


def read_items(path: Path, lists: Collection[str], on_duplicate: Callable[[str, str], None]) -> Iterator[Item]:
    """Yield the elements of some lists of the object in a JSON file, in the order of the file.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        lists: the keys of the lists.
        on_duplicate: called with each duplicate key of an object and its place; the last value is used.

    Yields:
        key, position, element. At the beginning of a list: its key, -1, []. For a value of such a key that is not a
        list: the key, -1, the value. For a file without an object: "", -1, the value, or [] for a list of any length.

    Raises:
        DatasetError: the file is not JSON; the message gives file, line and column.
    """
    with _opened(path) as file:
        yield from _Scanner(path, file, on_duplicate).items(lists)


def read_value(path: Path, what: str) -> Any:
    """Return the value that a JSON file holds; of a duplicate key the last value is used.

    Args:
        path: the file, UTF-8, with or without a byte order mark, of at most `MAX_VALUE_BYTES`.
        what: the expected content, for messages, such as "labelme file".

    Raises:
        DatasetError: the file is not JSON, or too large; the message gives file, line and column.
    """
    with _opened(path) as file:
        if (size := path.stat().st_size) > MAX_VALUE_BYTES:
            raise DatasetError(f"{path}: expected a {what} of at most {MAX_VALUE_BYTES} bytes, got {size}; split it")
        return _Scanner(path, file, lambda name, place: None, what).whole()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.is_dir():
        raise DatasetError(f"{path} cannot be read: Is a directory; name a file")
    if path.exists() and not path.is_file():  # reading a pipe would block, reading a device would never end
        raise DatasetError(f"{path} cannot be read: it is a pipe or a device; name a file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
            for signature, reason in _FOREIGN:
                if start.startswith(signature):
                    raise DatasetError(f"{path} {reason}")
            file.seek(0)
            yield file
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error


class _Scanner:
    """Window on the text of a file that moves on when a value does not fit into it."""

    def __init__(
        self, path: Path, file: BinaryIO, on_duplicate: Callable[[str, str], None], what: str = "COCO file"
    ) -> None:
        self._path, self._file, self._on_duplicate, self._what = path, file, on_duplicate, what
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._num_bytes, self._is_last = 0, False
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # of the first character of the window
        self._duplicates: list[str] = []

    def _begin(self) -> str:
        self._grow()
        self._text = self._text.removeprefix("\ufeff")
        start = self._next()
        if not start:
            raise DatasetError(f"{self._path} is empty, line 1, column 1; expected a {self._what}")
        return start

    def whole(self) -> Any:
        self._begin()
        value = self._value("the file")
        if self._next():
            raise self._error("Extra data", self._at)
        return value

    def items(self, lists: Collection[str]) -> Iterator[Item]:
        start = self._begin()
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
                self._on_duplicate(key, "the file")
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

    def _elements(self, key: str) -> Iterator[Item]:
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
        """Return the next character that is not white space without passing it; "" at the end of the file."""
        while True:
            match = _NOT_SPACE.search(self._text, self._at)
            if match:
                self._at = match.start()
                return match[0]
            self._at = len(self._text)
            if self._is_last:
                return ""
            self._grow()

    def _is_end(self, bracket: str) -> bool:
        """Pass a comma or the closing bracket; return true for the bracket."""
        character = self._next()
        if character != "," and character != bracket:
            raise self._error("Expecting ',' delimiter", self._at)
        if character == "," and _NAMES_TRAILING_COMMA and self._after_comma() == bracket:
            kind = "object" if bracket == "}" else "array"
            raise self._error(f"Illegal trailing comma before end of {kind}", self._at)
        self._at += 1
        return character == bracket

    def _after_comma(self) -> str:
        """Return the next character after the comma at the beginning, which stays in the window; "" at the end."""
        while not (match := _NOT_SPACE.search(self._text, self._at + 1)) and not self._is_last:
            self._grow()
        return match[0] if match else ""

    def _value(self, key: str, position: int = -1) -> Any:
        """Pass the next value and return it; `key` and `position` are its place."""
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
                raise DatasetError(f"{self._path} is no {self._what}: its objects are nested too deep") from error
            except ValueError as error:  # an integer of more digits than Python converts
                raise DatasetError(f"{self._path} is no {self._what}: {error}") from error
            self._duplicates.clear()
            self._grow()
        self._at = end
        if self._duplicates:
            for name in self._duplicates:
                self._on_duplicate(name, key if position < 0 else f"{key}[{position}]")
            self._duplicates.clear()
        return value

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    self._duplicates.append(name)
                seen.add(name)
        return entry

    def _grow(self) -> None:
        """Drop the passed text and read on, at least as much as is left."""
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
